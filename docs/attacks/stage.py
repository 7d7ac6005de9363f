"""A federation to attack: honest clients of ours, a server that the script plays, and a verdict for each attempt.

A script prints what it tried and what came of it. It exits 0 if every attempt was in vain and 1 if one of them
worked, or was stopped by another check than the one it is about.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np

from protocols.errors import ProtocolError
from protocols.secagg.client import SecAggClient
from protocols.secagg.codec import decode, encode
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.interface import PHASES
from protocols.secagg.messages import Confirmation, ConfirmStatement
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy, SessionParameters, recommended
from protocols.secagg.statements import attachment_digest
from protocols.secagg.transcript import to_bitmap

CONTEXT = bytes(range(32))  # stands for the digest that each client computes of what it loaded
VICTIM = "client-1"
Tamper = Callable[[str, str, bytes], bytes]


class Stage:
    """`n` honest clients, client-1 to client-n, and a server; the attacker holds every message and the server.

    Keyword arguments change the session's parameters. Five clients with one colluder: quorum, threshold and
    min_survivors are four. `after` is an earlier session of the same clients, with the same guards and vectors.
    """

    def __init__(
        self,
        n: int = 5,
        max_colluders: int = 1,
        degree: int | None = None,
        after: Stage | None = None,
        **changes: Any,
    ) -> None:
        self.names = tuple(f"client-{i + 1}" for i in range(n))
        self.identities = after.identities if after else {name: Identity.generate() for name in self.names}
        self.roster = Roster({name: identity.public_bytes for name, identity in self.identities.items()})
        counts = recommended(n, max_colluders, degree)
        proposed = {
            "session_id": bytes([7]) * 32,
            "round": 1,
            "exchange": 0,
            "roster": self.names,
            "max_colluders": max_colluders,
            "quorum": counts.quorum,
            "threshold": counts.threshold,
            "min_survivors": counts.min_survivors,
            "degree": counts.degree,
            "vector_length": 8,
            "modulus_bits": 16,
            "bound": (2**15 - 1) // n,
            "context": CONTEXT,
        }
        self.parameters = SessionParameters(**{**proposed, **changes})
        self.policy = ClientPolicy(max_colluders, 2, 2, 2, exact_round=None, exact_form=None)
        self.guards = after.guards if after else {name: MemoryGuard() for name in self.names}
        rng = np.random.default_rng(1)
        bound = self.parameters.bound
        drawn = {
            name: rng.integers(0, bound, self.parameters.vector_length, dtype=np.uint32, endpoint=True)
            for name in self.names
        }
        self.vectors = after.vectors if after else drawn
        self.clients = {name: self.client(name) for name in self.names}
        self.server = SecAggServer(parameters=self.parameters, roster=self.roster)

    def client(self, name: str, snapshot: bytes | None = None, **changes: Any) -> SecAggClient:
        """A client as its owner would make it, or restore it; keyword arguments change what it is given."""
        arguments = {
            "client_id": name,
            "identity": self.identities[name],
            "roster": self.roster,
            "policy": self.policy,
            "guard": self.guards[name],
            "context": CONTEXT,
            **changes,
        }
        return SecAggClient(**arguments) if snapshot is None else SecAggClient.restore(snapshot, **arguments)

    def answer(self, name: str, phase: str, message: bytes) -> bytes:
        """What an honest client sends in a phase."""
        if phase == "mask":
            return self.clients[name].mask(message, self.vectors[name])
        return getattr(self.clients[name], phase)(message)

    def until(
        self,
        phase: str,
        lost: Collection[tuple[str, str]] = (),
        tamper: Tamper = lambda name, phase, data: data,
    ) -> dict[str, bytes]:
        """Run the session up to a phase; return, by client, the messages that ask for it.

        `lost` are (client, phase) pairs: from that phase on the client is silent. `tamper` changes what the
        server sends.
        """
        inbox = self.server.start()
        gone: set[str] = set()
        for step in PHASES:
            inbox = {name: tamper(name, step, data) for name, data in inbox.items()}
            if step == phase:
                return inbox
            gone |= {name for name, when in lost if when == step}
            for name in [name for name in inbox if name not in gone]:
                self.server.receive(name, self.answer(name, step, inbox[name]))
            inbox = self.server.advance()
        return inbox

    def sum_is_right(self) -> bool:
        """Whether the server's result is the plain sum of its survivors."""
        result = self.server.result()
        plain = sum(self.vectors[name].astype(np.int64) for name in result.survivors)
        return np.array_equal(result.sum, plain % 2**self.parameters.modulus_bits)

    def confirmation(self, name: str, request: bytes) -> ConfirmStatement:
        """What the server relays of a client's answer to `request`."""
        message = decode(Confirmation, self.answer(name, "confirm", request), name)
        return ConfirmStatement(
            self.names.index(name), attachment_digest(message.attachment), message.signature
        )

    def bitmap(self, *members: int) -> bytes:
        """A set of roster indices as it travels."""
        return to_bitmap(members, self.parameters.n)


def edited(data: bytes, kind: type[Any], **changes: Any) -> bytes:
    """A message with some of its fields changed, well-formed again."""
    return encode(replace(decode(kind, data, "attacker"), **changes))


def refused(attempt: str, action: Callable[[], object], check: str) -> None:
    """Go on only if `action` is refused with a typed error that says `check`."""
    print(f"tried:    {attempt}")
    try:
        action()
    except ProtocolError as refusal:
        print(f"refused:  {type(refusal).__name__}: {refusal}")
        if check in str(refusal):
            return
        print(f"BUT this script is about another check: {check!r}")
        sys.exit(1)
    print("NOT REFUSED: the attack worked")
    sys.exit(1)


def in_vain(attempt: str, worked: bool, outcome: str) -> None:
    """Go on only if an attempt that nobody has to refuse gave the attacker nothing."""
    print(f"tried:    {attempt}")
    if worked:
        print("IT WORKED")
        sys.exit(1)
    print(f"in vain:  {outcome}")
