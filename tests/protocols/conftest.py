"""A small federation for protocol tests: identities, parameters, clients, a server, and the plain sum."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protocols.errors import GuardViolation, LocalProtocolError, PolicyViolation, RemoteProtocolError
from protocols.secagg.client import SecAggClient
from protocols.secagg.codec import decode, encode
from protocols.secagg.guard import Guard, MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.interface import PHASES, Phase
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy, SessionParameters, recommended

CONTEXT = bytes(range(32))


@functools.cache
def identity(number: int) -> Identity:
    """The identity of client-<number>, the same in every test."""
    return Identity.from_private_bytes(bytes([number % 256, number // 256]) + bytes(30))


class Federation:
    """`n` clients called client-1..client-n, one server, and random vectors within the bound."""

    def __init__(
        self, n: int = 5, max_colluders: int = 1, degree: int | None = None, **changes: object
    ) -> None:
        self.names = tuple(f"client-{i + 1}" for i in range(n))
        self.roster = Roster({name: identity(i).public_bytes for i, name in enumerate(self.names)})
        counts = recommended(n, max_colluders, degree)
        parameters = SessionParameters(
            session_id=bytes([7]) * 32,
            round=1,
            exchange=0,
            roster=self.names,
            max_colluders=max_colluders,
            quorum=counts.quorum,
            threshold=counts.threshold,
            min_survivors=counts.min_survivors,
            degree=counts.degree,
            vector_length=7,
            modulus_bits=11,
            bound=1023 // n,
            context=CONTEXT,
        )
        self.parameters = replace(parameters, **{"groups": (), "min_contributors": 0, **changes})
        self.policy = ClientPolicy(
            max_colluders=max_colluders,
            min_survivors=2,
            min_quorum=2,
            min_contributors=2,
            exact_round=None,
            exact_form=None,
            allow_remask=True,
        )
        self.guards: dict[str, Guard] = {name: MemoryGuard() for name in self.names}
        rng = np.random.default_rng(n)
        bound, modulus = self.parameters.bound, 2**self.parameters.modulus_bits
        self.vectors: dict[str, NDArray[np.uint32]] = {
            name: (rng.integers(-bound, bound + 1, self.parameters.vector_length) % modulus).astype(np.uint32)
            for name in self.names
        }
        self.clients = {name: self.client(name) for name in self.names}
        self.server = SecAggServer(parameters=self.parameters, roster=self.roster)

    def client(self, name: str, **changes: object) -> SecAggClient:
        """A fresh client with the federation's identities and guards."""
        return SecAggClient(**{**self._arguments(name), **changes})

    def restore(self, name: str, snapshot: bytes, **changes: object) -> SecAggClient:
        """The client that a snapshot was taken of."""
        return SecAggClient.restore(snapshot, **{**self._arguments(name), **changes})

    def _arguments(self, name: str) -> dict[str, Any]:
        """What a client is made and restored with."""
        return {
            "client_id": name,
            "identity": identity(self.names.index(name)),
            "roster": self.roster,
            "policy": self.policy,
            "guard": self.guards[name],
            "context": CONTEXT,
        }

    def answer(self, name: str, phase: str, message: bytes) -> bytes:
        """What an honest client answers in a phase."""
        client = self.clients[name]
        if phase == "mask":
            return client.mask(message, self.vectors[name])
        return bytes(getattr(client, phase)(message))

    def drive(
        self,
        until: str = "done",
        lost: Iterable[tuple[str, Phase]] = (),
        tamper: Callable[[str, str, bytes], bytes] = lambda name, phase, message: message,
    ) -> dict[str, bytes]:
        """Run honest clients up to a phase, and return the messages that ask for it.

        `lost` are lost before they answer in that phase; `tamper` may change what the server sends.
        """
        drops = set(lost)
        gone: set[str] = set()
        inbox = self.server.start()
        for phase in PHASES:
            inbox = {name: tamper(name, phase, message) for name, message in inbox.items()}
            if phase == until:
                return inbox
            gone |= {name for name, when in drops if when == phase}
            for name in [name for name in inbox if name not in gone]:
                self.server.receive(name, self.answer(name, phase, inbox[name]))
            inbox = self.server.advance()
        return inbox

    @staticmethod
    def edited(data: bytes, kind: type[Any], **changes: object) -> bytes:
        """A message with some fields changed."""
        return encode(replace(decode(kind, data, "test"), **changes))

    def refuses(self, phase: str, message: bytes, match: str, by: str = "client-1") -> None:
        """The client raises, gives nothing away, and is out of the session with its secrets gone."""
        client = self.clients[by]
        with pytest.raises((RemoteProtocolError, PolicyViolation, GuardViolation), match=match):
            self.answer(by, phase, message)
        assert client.phase == "refused"
        assert len(client.snapshot()) < 200
        with pytest.raises(LocalProtocolError):
            self.answer(by, phase, message)

    def plain_sum(self, names: Iterable[str]) -> NDArray[np.uint32]:
        """The sum of the vectors in the clear, by Python integers."""
        modulus = 2**self.parameters.modulus_bits
        columns = zip(*(self.vectors[name].tolist() for name in names), strict=True)
        return np.array([sum(column) % modulus for column in columns], dtype=np.uint32)


@pytest.fixture(scope="session")
def make_federation() -> type[Federation]:
    """The class of small federations."""
    return Federation


@pytest.fixture
def federation() -> Federation:
    """Five clients, one colluder tolerated: quorum, threshold and min_survivors are 4."""
    return Federation()
