"""The process that keeps a node's rows, keys and model, and the local socket by which Flower's app asks it.

A SuperNode starts a process for every message. If that process opened the client itself, each message would cost the
loading of torch and of the model, and whatever code Flower brings would run beside the rows. So the client lives in
one process, `fedlora node start`, and the app only carries bytes: what it can ask for is what a server can ask for
(`FederationClient.handle`), where the round in progress was suspended, and a signature over the node it runs on.

    app → keeper   GREET(Flower's run, node)            → client_id, signature
    app → keeper   ANSWER(suspended, message)           → suspended, answer

The socket is a file that the node's own account alone may use.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from fedlora_priv.errors import EnvironmentProblem, FederationError
from fedlora_priv.federation.client import FederationClient

logger = logging.getLogger(__name__)

SOCKET = "node.sock"
GREET, ANSWER, DONE, FAILED = b"G", b"A", b"D", b"F"
MAX_PART_BYTES = 2**31
POLL_S = 0.5
ASK_TIMEOUT_S = 24 * 3600.0
"""A training may take long; the server's own time-out ends the waiting."""
_LENGTH = struct.Struct(">Q")

Sign = Callable[[int, int], bytes]
"""(Flower's run, node) → the client's signature that it is there."""


def serve(path: Path, client: FederationClient, sign: Sign, going_on: Callable[[], bool]) -> None:
    """Answer the apps of a node, one after the other, for as long as `going_on()`.

    Args:
        path: of the socket; a stale one is replaced, the home's lock sees to it that no other process serves.
        client: what answers the server's messages.
        sign: what signs where the node is.
        going_on: asked twice a second.
    """
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        listener.settimeout(POLL_S)
        try:
            while going_on():
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    with connection:
                        _answer(connection, client, sign)
        finally:
            path.unlink(missing_ok=True)


def _answer(connection: socket.socket, client: FederationClient, sign: Sign) -> None:
    """Answer one app; whatever goes wrong is logged here and reaches it as the name of an error."""
    connection.settimeout(ASK_TIMEOUT_S)
    try:
        kind, *parts = _receive(connection)
        if kind == GREET and len(parts) == 2:
            flower_run, node = (int.from_bytes(part, "big") for part in parts)
            _send(connection, DONE, client.client_id.encode(), sign(flower_run, node))
        elif kind == ANSWER and len(parts) == 2:
            client.resume(parts[0])
            answer = client.handle(parts[1])
            _send(connection, DONE, client.suspend(), answer)
        else:
            raise FederationError("an app asked for something that no app asks for")
    except OSError:
        logger.warning("an app went away before it had its answer")
    except Exception as error:
        logger.error("%s: %s", type(error).__name__, error)
        with contextlib.suppress(OSError):
            _send(connection, FAILED, type(error).__name__.encode())


def ask(path: Path, kind: bytes, *parts: bytes) -> list[bytes]:
    """Return the keeper's answer, as an app asks for it.

    Raises:
        EnvironmentProblem: no keeper is there.
        FederationError: it could not answer; says the name of its error.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ASK_TIMEOUT_S)
        try:
            connection.connect(str(path))
            _send(connection, kind, *parts)
            outcome, *answer = _receive(connection)
        except OSError as error:
            raise EnvironmentProblem(
                f"the node's own process does not answer at {path} ({error.strerror or error})",
                "start it with 'fedlora node start'",
            ) from None
    if outcome != DONE:
        raise FederationError(f"the node could not answer: {b' '.join(answer).decode(errors='replace')[:64]}")
    return answer


def _send(connection: socket.socket, *parts: bytes) -> None:
    """Send some parts: how many there are, then each with its length."""
    connection.sendall(_LENGTH.pack(len(parts)))
    for part in parts:
        connection.sendall(_LENGTH.pack(len(part)))
        connection.sendall(part)


def _receive(connection: socket.socket) -> list[bytes]:
    """Return the parts that the other side has sent.

    Raises:
        FedloraError: too many or too large ones.
        OSError: it went away.
    """
    (count,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if count > 4:
        raise FederationError("a frame on the node's own socket has too many parts")
    return list(_parts(connection, count))


def _parts(connection: socket.socket, count: int) -> Iterator[bytes]:
    """Yield that many parts."""
    for _ in range(count):
        (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
        if length > MAX_PART_BYTES:
            raise FederationError("a part on the node's own socket is too large")
        yield _exactly(connection, length)


def _exactly(connection: socket.socket, size: int) -> bytes:
    """Return so many bytes. Raises ConnectionResetError if there are fewer."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 2**20))
        if not piece:
            raise ConnectionResetError("the other side has gone")
        data += piece
    return bytes(data)
