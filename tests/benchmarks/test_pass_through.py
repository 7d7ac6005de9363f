"""The pass-through of the benchmark of real processes: every byte arrives, and is counted once, by its way."""

from __future__ import annotations

import socket
import threading
import time

from benchmarks.pass_through import PassThrough

ASKED, ANSWERED = b"q" * 300_000, b"a" * 70_000


def test_bytes_arrive_and_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as file:
                assert file.read(len(ASKED)) == ASKED
                connection.sendall(ANSWERED)

        thread = threading.Thread(target=answer)
        thread.start()
        began = time.time()
        way = PassThrough(listener.getsockname()[1])
        with (
            socket.create_connection(("127.0.0.1", way.port)) as connection,
            connection.makefile("rb") as file,
        ):
            connection.sendall(ASKED)
            assert file.read() == ANSWERED  # up to where the other side has closed
        thread.join(timeout=60.0)
        assert (way.count("up"), way.count("down")) == (len(ASKED), len(ANSWERED))
        assert way.count("up", end=began) == way.count("down", begin=time.time() + 1) == 0
        way.close()
