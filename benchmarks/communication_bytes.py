"""What a client sends and receives in a round of the study, by `communication.meter`, from its parameters alone.

Masked runs: sessions of all clients with one colluder, on a complete graph or a ring of neighbours, with the packed
words that the ring's modulus takes. Runs in the clear: float32 values, and for FLASC which ones they are. A vote is a
session of its own, in the rounds that have one. Down: the support, and the state: whole, or what its mask leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from benchmarks.communication_setting import Setting
from fedlora_priv.communication.download import download_bytes
from fedlora_priv.communication.flasc import Density, published_bytes
from fedlora_priv.communication.meter import KINDS, Kind, Summed, wire_bytes
from protocols.quantise import Quantiser
from protocols.secagg.session import SessionParameters, recommended
from protocols.sparsify import support_bytes
from protocols.voting import BALLOT_BOUND, VoteRules

COLLUDERS = 1

RING = 4
"""Neighbours on the ring."""

ANCHOR_BYTES = 420
"""What a client signs of its ledger in a session, about."""


@dataclass(frozen=True)
class RoundBytes:
    """Mean bytes of a client and round, by kind."""

    up: Mapping[Kind, float]
    down: Mapping[Kind, float]

    @property
    def uploaded(self) -> float:
        """All that is sent."""
        return sum(self.up.values())

    @property
    def downloaded(self) -> float:
        """All that is received."""
        return sum(self.down.values())


def round_bytes(setting: Setting, dimension: int, neighbours: int | None = RING) -> RoundBytes:
    """Return the bytes of a run's mean client and round.

    Args:
        dimension: coordinates of a change, before any are left out.
        neighbours: of each client on the ring; None for a complete graph.
    """
    k = setting.travelling(dimension)
    if setting.method == "flasc":
        sizes = published_bytes(dimension, Density(setting.density, setting.density))
        return RoundBytes({"values": float(sizes.up)}, {"values": float(sizes.down)})
    down: dict[Kind, float] = {
        "support": support_bytes(dimension, k),
        "values": _state_bytes(setting, dimension),
    }
    whole, voting = setting.whole / setting.rounds, setting.votes / setting.rounds
    if setting.value_bits is None:
        return RoundBytes({"values": 4 * (whole * dimension + (1 - whole) * k)}, down)
    form = Quantiser(1.0, setting.value_bits, setting.clients)
    rules = VoteRules(dimension, k, k, setting.clients, b"")
    sessions = (
        (1 - whole, (k, form.modulus_bits, form.levels, "values")),
        (whole, (dimension, form.modulus_bits, form.levels, "values")),
        (voting, (dimension, rules.modulus_bits, BALLOT_BOUND, "votes")),
    )
    totals = {"up": dict[Kind, float](), "down": down}
    for share, (length, bits, bound, carries) in sessions:
        for way, more in _session_bytes(setting.clients, neighbours, length, bits, bound, carries).items():
            totals[way] = _plus(totals[way], more, share)
    return RoundBytes(totals["up"], totals["down"])


def _plus(sizes: Mapping[Kind, float], more: Mapping[Kind, float], times: float) -> dict[Kind, float]:
    """Return sizes + times·more, by kind."""
    sums = {kind: sizes.get(kind, 0) + times * more.get(kind, 0) for kind in KINDS}
    return {kind: size for kind, size in sums.items() if size}


def dense_bytes(dimension: int) -> int:
    """Return what dense LoRA in float32 uploads, without any framing."""
    return 4 * dimension


def _state_bytes(setting: Setting, dimension: int) -> int:
    """Return the bytes of the state as it travels down."""
    if setting.download_density == 1:
        return 4 * dimension
    return download_bytes(dimension, max(1, int(setting.download_density * dimension)))


@cache
def _session_bytes(
    clients: int,
    neighbours: int | None,
    length: int,
    modulus_bits: int,
    bound: int,
    carries: Literal["values", "votes"] = "values",
) -> Mapping[str, Mapping[Kind, float]]:
    """Return the bytes of one session's mean client, by direction and kind."""
    parameters = session(clients, neighbours, length, modulus_bits, bound)
    table = wire_bytes([Summed(parameters, carries, attachment_bytes=ANCHOR_BYTES)])
    result: dict[str, dict[Kind, float]] = {"up": {}, "down": {}}
    for (_, way, kind), size in table.items():
        result[way][kind] = result[way].get(kind, 0) + size
    return {way: {kind: size / clients for kind, size in kinds.items()} for way, kinds in result.items()}


def session(
    clients: int, neighbours: int | None, length: int, modulus_bits: int, bound: int
) -> SessionParameters:
    """Return the proposal of a session of so many clients, with the smallest safe counts."""
    counts = recommended(clients, COLLUDERS, neighbours)
    return SessionParameters(
        session_id=bytes(32),
        round=1,
        exchange=0,
        roster=tuple(f"client-{k}" for k in range(1, clients + 1)),
        max_colluders=COLLUDERS,
        quorum=counts.quorum,
        threshold=counts.threshold,
        min_survivors=counts.min_survivors,
        degree=counts.degree,
        vector_length=length,
        modulus_bits=modulus_bits,
        bound=bound,
        context=bytes(32),
    )
