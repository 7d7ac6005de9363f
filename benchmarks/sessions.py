"""Whole sessions in one process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Row, best
from protocols.quantise import Quantiser
from protocols.secagg.client import SecAggClient
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.local import run_session
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy, SessionParameters, recommended


def rows() -> Iterator[Row]:
    """A whole session, clients and server together, against the same without a loss."""
    whole = best(lambda: _session(5, 40_000, {}), 3)
    yield Row(
        "session, 5 clients × 40k, one lost",
        best(lambda: _session(5, 40_000, {"c1": "mask"}), 3),
        "none lost",
        whole,
    )
    yield Row(
        "session, 50 clients × 40k, none lost", best(lambda: _session(50, 40_000, {}), 1), "5 clients", whole
    )


def _session(n: int, d: int, dropouts: dict[str, str]) -> NDArray[np.uint32]:
    """Run one session in this process and return its sum."""
    names = tuple(f"c{i}" for i in range(n))
    identities = {name: Identity.generate() for name in names}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    sizes, quantiser, context = recommended(n, max_colluders=1), Quantiser(1.0, 8, n), bytes(32)
    parameters = SessionParameters(
        session_id=os.urandom(32), round=1, exchange=0, roster=names, max_colluders=1, quorum=sizes.quorum,
        threshold=sizes.threshold, min_survivors=sizes.min_survivors, degree=sizes.degree, vector_length=d,
        modulus_bits=quantiser.modulus_bits, bound=quantiser.levels, context=context,
    )  # fmt: skip
    clients = {
        name: SecAggClient(
            client_id=name, identity=identities[name], roster=roster, policy=ClientPolicy(),
            guard=MemoryGuard(), context=context,
        )
        for name in names
    }  # fmt: skip
    vectors = {name: np.ones(d, np.uint32) for name in names}
    server = SecAggServer(parameters=parameters, roster=roster)
    return run_session(clients, server, vectors, dropouts).sum  # type: ignore[arg-type]
