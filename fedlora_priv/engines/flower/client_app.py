"""A node's side of Flower: one message in, one answer out.

A SuperNode starts a process for every message, so what a client has in memory is suspended into the node's
`context.state` after each one; ledger, guard and finished update are in the client's home. Whatever goes wrong here
reaches the server as the name of an error and no text: Flower itself would send the text along.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlora_priv.engines.flower.records import HELLO, MESSAGE, RECORD, from_record, to_record
from fedlora_priv.federation import wire

logger = logging.getLogger(__name__)

SUSPENDED, ANSWERED, ANSWER = "suspended", "answered", "answer"
"""What a node keeps between two messages: its client's suspended round, the last message's digest, the last answer."""


class SuspendableClient(Protocol):
    """A `FederationClient`, as far as a node needs it."""

    def handle(self, data: bytes) -> bytes:
        """Return the answer to a message."""
        ...

    def resume(self, suspended: bytes) -> None:
        """Go on where the process before this one suspended."""
        ...

    def suspend(self) -> bytes:
        """Return what the next process needs."""
        ...

    def close(self) -> None:
        """Let another process use the home."""
        ...


class Node(Protocol):
    """What a ClientApp needs to know of the client at its node."""

    def open(self, context: Context, data: bytes) -> SuspendableClient:
        """Return the client that is to answer a message, with the lock of its home."""
        ...

    def greeting(self, context: Context) -> tuple[str, bytes]:
        """Return the client's name and its signature over this node (`greeting.sign`)."""
        ...


def make_app(node: Node) -> ClientApp:
    """Return the ClientApp of a node."""

    def hello(message: Message, context: Context) -> Message:
        def answer() -> dict[str, bytes]:
            client_id, signature = node.greeting(context)
            return {"client_id": client_id.encode(), "signature": signature}

        return _guarded(message, answer)

    def handle(message: Message, context: Context) -> Message:
        return _guarded(message, lambda: {ANSWER: _answered(node, message, context)})

    app = ClientApp()
    app.query(HELLO.partition(".")[2])(hello)
    app.train(MESSAGE.partition(".")[2])(handle)
    return app


def _answered(node: Node, message: Message, context: Context) -> bytes:
    """Return the client's answer, with what the next process needs in the node's state.

    A message that comes twice in a row gets the same answer twice and is not handled again: on a network that is
    nobody's fault.
    """
    data = from_record(message.content, "message")
    known = RECORD in context.state
    if known and from_record(context.state, ANSWERED) == _digest(data):
        return from_record(context.state, ANSWER)
    client = node.open(context, data)
    try:
        client.resume(from_record(context.state, SUSPENDED) if known else b"")
        answer = client.handle(data)
        kept = {SUSPENDED: client.suspend(), ANSWERED: _digest(data), ANSWER: answer}
    finally:
        client.close()
    context.state[RECORD] = to_record(**kept)[RECORD]
    return answer


def _digest(data: bytes) -> bytes:
    """Return 32 bytes over a message."""
    return hashlib.sha256(data).digest()


def _guarded(message: Message, answer: Callable[[], dict[str, bytes]]) -> Message:
    """Return the reply; an error becomes its name, and its text stays in this node's own log."""
    try:
        values = answer()
    except Exception as error:  # whatever it is: Flower would send its text to the server
        logger.error("%s: %s", type(error).__name__, error)
        refusal = wire.Message(wire.REFUSED, {"code": type(error).__name__})
        values = {ANSWER: wire.encode(refusal)}
    return Message(to_record(**values), reply_to=message)
