"""A TCP connection passed on byte by byte and counted: what two processes really say to each other, TLS and all."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Way = Literal["up", "down"]
WAYS: tuple[Way, ...] = ("up", "down")
CHUNK = 1 << 16


@dataclass(frozen=True)
class Passed:
    """Bytes that went through at a moment, as `time.time` has it; "up" is to whom the connections are for."""

    at: float
    way: Way
    size: int


class PassThrough:
    """Listens on a free port of 127.0.0.1 and passes every connection on to another.

    Args:
        target: the port of 127.0.0.1 where they go.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._passed: list[Passed] = []
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def count(self, way: Way, begin: float = 0.0, end: float = float("inf")) -> int:
        """Return the bytes that went one way between two moments."""
        return sum(one.size for one in list(self._passed) if one.way == way and begin <= one.at < end)

    def close(self) -> None:
        """End all connections."""
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):  # closed by its other side
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        """Pass on whoever comes, until `close`."""
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                try:
                    called = socket.create_connection(("127.0.0.1", self._target))
                except ConnectionRefusedError:  # nobody is there yet, and so the caller is told
                    caller.close()
                    continue
                self._open += [caller, called]
                self._start(self._pass, caller, called, "up")
                self._start(self._pass, called, caller, "down")

    def _pass(self, one: socket.socket, other: socket.socket, way: Way) -> None:
        """Pass on what one says to the other until it stops."""
        with contextlib.suppress(OSError):
            while data := one.recv(CHUNK):
                self._passed.append(Passed(time.time(), way, len(data)))
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    @staticmethod
    def _start(work: Callable[..., None], *of: object) -> None:
        threading.Thread(target=work, args=of, daemon=True).start()
