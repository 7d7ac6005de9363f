"""A plan's bytes are those that the wire then counts: round by round, client by client, kind by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlora_priv.communication.meter import Table
from fedlora_priv.federation.foretold import foretold

from .test_rounds import Federation

DENSE: dict[str, Any] = {"support": "dense", "density": 1.0, "value_bits": 8}
SPARSE: dict[str, Any] = {"support": "server-topk", "density": 0.1, "value_bits": 5}
ROUNDS = 2


def counted_and_foretold(path: Path) -> tuple[list[Table], list[Table], list[Table]]:
    """Run the rounds; return what the meter counted, what was foretold and its bound, without kinds of nothing."""
    federation = Federation(path)
    try:
        told = foretold(federation.parts)
        counted = []
        for _ in range(ROUNDS):
            assert federation.round().record.aborted is None
            counted.append(+federation.engine.take().table)
    finally:
        federation.close()
    return counted, [+one.drawn for one in told], [+one.longest for one in told]


def direction(table: Table, way: str) -> Table:
    return Counter({key: size for key, size in table.items() if key[1] == way})


def of_all(table: Table) -> Counter[Any]:
    """The table without saying whose the bytes are."""
    totals: Counter[Any] = Counter()
    for (_, way, kind), size in table.items():
        totals[way, kind] += size
    return totals


def run_of(experiment_file: Callable[..., Path], **sections: dict[str, Any]) -> Path:
    """An experiment of a few rounds whose noise and batches are always the same."""
    federation = {"rounds": ROUNDS, **sections.pop("federation", {})}
    return experiment_file(federation=federation, training={"deterministic_noise": True}, **sections)


@pytest.mark.parametrize(
    ("method", "more"),
    [("flora", {}), ("fra", {"aggregation": {"products": "two-pass"}, "communication": {"value_bits": 12}})],
)
def test_a_whole_round_takes_what_was_foretold(
    experiment_file: Callable[..., Path], method: str, more: dict[str, Any]
) -> None:
    """Both directions, to the byte: what was added to the base grows by the ranks of sums, and travels down."""
    communication = {**DENSE, **more.get("communication", {})}
    path = run_of(experiment_file, federation={"method": method}, **{**more, "communication": communication})
    counted, told, longest = counted_and_foretold(path)
    assert counted == told == longest


@pytest.mark.parametrize(
    ("communication", "secure"),
    [
        (DENSE, {"mode": "insecure"}),
        (SPARSE, {}),
        (SPARSE, {"neighbours": 2, "max_colluders": 0}),
        ({**SPARSE, "support": "voted-topk"}, {}),
        ({"support": "server-topk", "density": 1.0, "densities": [0.1, 0.3, 0.3, 0.3, 0.3]}, {}),
        (
            {"support": "server-topk", "density": 1.0, "densities": [0.1, 0.3, 0.3, 0.3, 0.3]},
            {"neighbours": 2, "max_colluders": 0},
        ),
    ],
)
def test_uploads_take_what_was_foretold(
    experiment_file: Callable[..., Path], communication: dict[str, Any], secure: dict[str, Any]
) -> None:
    """What travels down depends on which coordinates have moved; on a ring, a client's bytes on who is beside it."""
    path = run_of(experiment_file, communication=communication, secure_aggregation=secure)
    counted, told, longest = counted_and_foretold(path)
    for there, before, bound in zip(counted, told, longest, strict=True):
        for key, size in direction(there, "up").items():
            assert size <= bound[key]
        if secure.get("neighbours") is None:
            assert direction(there, "up") == direction(before, "up")
        assert of_all(direction(there, "up")) == of_all(direction(before, "up"))
        for kind in ("keys", "shares"):
            assert of_all(there)["down", kind] == of_all(before)["down", kind]
        down = [of_all(table)["down", "values"] for table in (there, before)]
        assert down[0] == pytest.approx(down[1], rel=0.25)
    assert of_all(told[0])["up", "values"] > 0
    assert of_all(told[0])["down", "values"] == 0  # nothing has moved yet
    assert (of_all(told[0])["up", "votes"] > 0) == (communication["support"] == "voted-topk")
