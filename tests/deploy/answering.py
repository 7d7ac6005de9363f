"""Somebody who answers on 127.0.0.1: with a server's certificate, or without TLS, at the hour that he says it is."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from fedlora_priv import config_file
from fedlora_priv.doctor import Finding

PATIENCE_S = 60.0


@contextlib.contextmanager
def answering(folder: Path | None, *, ahead_s: float = 0.0, dated: bool = True) -> Iterator[int]:
    """A server with the certificate of a server's folder, or without TLS; yields its port.

    Args:
        folder: with server.pem and server.key; None for one without TLS.
        ahead_s: how far its clock is ahead of this machine's.
        dated: whether its answers bear a date.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if folder is not None:
        context.load_cert_chain(folder / "server.pem", folder / "server.key")

    def answer(connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        if folder is None:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.recv(1024)
            return
        with context.wrap_socket(connection, server_side=True) as secure:
            if secure.recv(4096):  # else the other side only wanted to see the certificate
                at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=ahead_s)
                date = f"Date: {email.utils.format_datetime(at, usegmt=True)}\r\n" if dated else ""
                secure.sendall(f"HTTP/1.1 404 Not Found\r\n{date}Connection: close\r\n\r\n".encode())

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed: the test is over
            with connection, contextlib.suppress(OSError):  # the other side had seen enough
                answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes whoever waits in accept
            thread.join(timeout=PATIENCE_S)
            assert not thread.is_alive()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def change(file: Path, table: str | None = None, **values: object) -> Path:
    """Write a party's file once more with other values; None leaves one out."""
    import tomli_w

    read = config_file.read(file)
    section = read if table is None else read[table]
    section |= values
    for key in [key for key, value in section.items() if value is None]:
        del section[key]
    file.write_text(tomli_w.dumps(read))
    return file


def failures(findings: list[Finding]) -> dict[str, str]:
    """What was found to fail, and why."""
    return {finding.what: finding.detail for finding in findings if finding.status == "FAIL"}
