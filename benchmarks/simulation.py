"""A session in one process whose server is timed by call: what `sessions` and `scaling` measure."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from protocols.quantise import Quantiser
from protocols.secagg.client import SecAggClient
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.local import Phase, SessionLog, run_session
from protocols.secagg.server import SecAggResult, SecAggServer
from protocols.secagg.session import ClientPolicy, SessionParameters, recommended

VALUE_BITS = 8
CONTEXT = bytes(32)


class TimedServer:
    """A server that adds up its CPU seconds by (method, phase)."""

    def __init__(self, server: SecAggServer) -> None:
        self.seconds: Counter[tuple[str, str]] = Counter()
        self._server = server

    def start(self) -> dict[str, bytes]:
        """See `SecAggServer`."""
        return self._timed("start")

    def receive(self, client_id: str, message: bytes) -> None:
        """See `SecAggServer`."""
        self._timed("receive", client_id, message)

    def advance(self) -> dict[str, bytes]:
        """See `SecAggServer`."""
        return self._timed("advance")

    def result(self) -> SecAggResult:
        """See `SecAggServer`."""
        return self._server.result()

    def _timed(self, method: str, *arguments: str | bytes) -> dict[str, bytes]:
        """Call a method of the server and count its time."""
        phase, began = self._server.phase, time.process_time()
        try:
            return cast(dict[str, bytes], getattr(self._server, method)(*arguments))
        finally:
            self.seconds[method, phase] += time.process_time() - began


@dataclass
class Simulation:
    """`n` clients with vectors of `d` 8-bit values and, in a sparse graph, `degree` neighbours each."""

    n: int
    d: int
    degree: int | None = None
    max_colluders: int = 1
    dropouts: dict[str, Phase] = field(default_factory=dict)
    log: SessionLog = field(default_factory=SessionLog)

    def __post_init__(self) -> None:
        self.names = tuple(f"c{i}" for i in range(self.n))
        identities = {name: Identity.generate() for name in self.names}
        roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
        sizes = recommended(self.n, self.max_colluders, self.degree)
        self.quantiser = Quantiser(1.0, VALUE_BITS, self.n)
        self.parameters = SessionParameters(
            session_id=os.urandom(32), round=1, exchange=0, roster=self.names,
            max_colluders=self.max_colluders, quorum=sizes.quorum, threshold=sizes.threshold,
            min_survivors=sizes.min_survivors, degree=sizes.degree, vector_length=self.d,
            modulus_bits=self.quantiser.modulus_bits, bound=self.quantiser.levels, context=CONTEXT,
        )  # fmt: skip
        self.clients = {
            name: SecAggClient(
                client_id=name, identity=identities[name], roster=roster, policy=ClientPolicy(),
                guard=MemoryGuard(), context=CONTEXT,
            )
            for name in self.names
        }  # fmt: skip
        self.server = TimedServer(SecAggServer(parameters=self.parameters, roster=roster))

    def run(self) -> SecAggResult:
        """Run the session; every client's vector is all ones, and one array serves them all."""
        ones = np.ones(self.d, np.uint32)
        vectors = dict.fromkeys(self.names, ones)
        result = run_session(
            self.clients, cast(SecAggServer, self.server), vectors, self.dropouts, log=self.log
        )
        if not (result.sum == len(result.survivors)).all():
            raise AssertionError("the sum is wrong")
        return result
