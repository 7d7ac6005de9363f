"""A session in one process whose server is timed by call: what `sessions` and `scaling` measure."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from protocols.quantise import Quantiser
from protocols.secagg.client import SecAggClient
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.interface import Phase, SecAggResult
from protocols.secagg.local import SessionLog, run_session
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy, SessionParameters, Thresholds, recommended

VALUE_BITS = 8
CONTEXT = bytes(32)


class TimedServer(SecAggServer):
    """A server that adds up its CPU seconds by (method, phase)."""

    def __init__(self, *, parameters: SessionParameters, roster: Roster) -> None:
        super().__init__(parameters=parameters, roster=roster)
        self.seconds: defaultdict[tuple[str, str], float] = defaultdict(float)

    def receive(self, client_id: str, message: bytes) -> None:
        """See `SecAggServer`."""
        with self._timed("receive"):
            super().receive(client_id, message)

    def advance(self) -> dict[str, bytes]:
        """See `SecAggServer`."""
        with self._timed("advance"):
            return super().advance()

    @contextmanager
    def _timed(self, method: str) -> Iterator[None]:
        """Count the time of what is done inside for the phase that is open now."""
        phase, began = self.phase, time.process_time()
        yield
        self.seconds[method, phase] += time.process_time() - began


@dataclass
class Simulation:
    """`n` clients with vectors of `d` 8-bit values; the counts are the recommended ones unless given."""

    n: int
    d: int
    max_colluders: int = 1
    counts: Thresholds | None = None
    dropouts: dict[str, Phase] = field(default_factory=dict)
    log: SessionLog = field(default_factory=SessionLog)

    def __post_init__(self) -> None:
        self.names = tuple(f"c{i}" for i in range(self.n))
        identities = {name: Identity.generate() for name in self.names}
        roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
        sizes = self.counts or recommended(self.n, self.max_colluders)
        self.quantiser = Quantiser(1.0, VALUE_BITS, self.n)
        self.parameters = SessionParameters(
            session_id=os.urandom(32), round=1, exchange=0, roster=self.names,
            max_colluders=self.max_colluders, quorum=sizes.quorum, threshold=sizes.threshold,
            min_survivors=sizes.min_survivors, degree=sizes.degree, vector_length=self.d,
            modulus_bits=self.quantiser.modulus_bits, bound=self.quantiser.levels, context=CONTEXT,
        )  # fmt: skip
        policy = ClientPolicy(exact_round=(1, 0), exact_form=self.parameters.form)
        self.clients = {
            name: SecAggClient(
                client_id=name, identity=identities[name], roster=roster, policy=policy,
                guard=MemoryGuard(), context=CONTEXT,
            )
            for name in self.names
        }  # fmt: skip
        self.server = TimedServer(parameters=self.parameters, roster=roster)

    def run(self) -> SecAggResult:
        """Run the session; every client's vector is all ones, and one array serves them all."""
        ones = np.ones(self.d, np.uint32)
        vectors = dict.fromkeys(self.names, ones)
        result = run_session(self.clients, self.server, vectors, self.dropouts, log=self.log)
        if not (result.sum == len(result.survivors)).all():
            raise AssertionError("the sum is wrong")
        return result
