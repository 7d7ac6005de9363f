"""HetLoRA whose clients prune their ranks, end to end: models, penalty, masks, losses, report and audit.

What comes out is held to the method once more in plain numpy, made of what the clients have trained (as an empirical
audit is told it) and of who was heard.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora_priv.config import Experiment
from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.layout import Layout
from fedlora_priv.reports.auditing import audit_files

from .references import LARGEST_NORM, Arrays, Seen, expected
from .test_every_method import TOLERANCE, Watched

KEEP, NEEDED, ALPHA = 0.5, 3, 8.0
PRUNING = {
    "federation": {"clients": 6, "rounds": 4, "method": "hetlora", "local_steps": 4},
    "lora": {"rank": 4, "alpha": ALPHA},
    "training": {"deterministic_noise": True, "learning_rate": 0.3},
    "privacy": {"epsilon": 50.0},
    "communication": {"support": "dense", "density": 1.0, "value_bits": 16},
    "aggregation": {"largest_norm": LARGEST_NORM},
    "allocation": {
        "strategy": "ranks",
        "ranks": [2, 4],
        "tiers": [{"clients": ["client-2"], "max_rank": 2}],
        "pruning": {"keep": KEEP, "penalty": 1.0},
    },
}
LOSSES = [
    # It has trained, and what it announces is lost with its answer.
    {"round": 2, "client_id": "client-1", "phase": "advertise"},
    # Heard, and not in the sum.
    {"round": 2, "client_id": "client-3", "phase": "mask"},
    {"round": 3, "client_id": "client-5", "phase": "reveal"},
]


@pytest.fixture
def pruned(experiment_file: Callable[..., Path]) -> Callable[..., Watched]:
    def go(**sections: dict[str, Any]) -> Watched:
        whole = {n: {**PRUNING.get(n, {}), **sections.get(n, {})} for n in {*PRUNING, *sections}}
        return Watched(Experiment.load(experiment_file(**whole))).go()

    return go


def rank_of(state: Arrays) -> int:
    """The rank of what a client has trained."""
    (rank,) = {array.shape[0] for name, array in state.items() if name.endswith("lora_A")}
    return rank


def at_rank(layout: Layout, rank: int) -> Layout:
    """The layout of a model of that rank, its adapters scaled by α/rank."""
    return replace(layout, modules=tuple(replace(m, rank=rank, scaling=ALPHA / rank) for m in layout.modules))


def tail(state: Arrays, keep: int) -> float:
    """Σ over modules of ‖B_tail‖·‖A_tail‖."""
    stems = [name.removesuffix("lora_A") for name in state if name.endswith("lora_A")]
    return sum(
        math.sqrt(float((state[f"{stem}lora_B"].astype(float)[:, keep:] ** 2).sum()))
        * math.sqrt(float((state[f"{stem}lora_A"].astype(float)[keep:] ** 2).sum()))
        for stem in stems
    )


def next_ranks(w: Watched, number: int, ranks: dict[str, int], heard: list[str]) -> dict[str, int]:
    """Everybody's rank after a round: halved where a tail has faded, the first in the roster first, as far as
    NEEDED clients keep all."""
    left = dict(ranks)
    for client_id in heard:
        start, result = w.trained[number, client_id]
        keep = max(1, int(KEEP * ranks[client_id]))
        if tail(result, keep) >= tail(start, keep):
            continue
        if ranks[client_id] == 4 and sum(rank == 4 for rank in left.values()) <= NEEDED:
            continue
        left[client_id] = keep
    return left


@pytest.mark.long
def test_a_federation_prunes_ranks_as_hetlora_says(pruned: Callable[..., Watched]) -> None:
    w = pruned(simulate={"dropouts": LOSSES})
    assert w.outcome.problem is None
    clients, layout, report = w.experiment.client_ids, w.parts.layout, w.outcome.report
    contracts = {n: contract for contract in report["method"]["contracts"] for n in contract["rounds"]}
    ranks = dict.fromkeys(clients, 4) | {"client-2": 2}
    seen_ranks = []
    for record in report["rounds"]:
        number = record["round"]
        seen_ranks.append(ranks)
        trained = {c: w.trained[number, c] for c in clients}
        assert {c: rank_of(state) for c, (state, _) in trained.items()} == ranks
        stated = contracts[number]["allocation"]
        assert {c: part["rank"] for c, part in stated["clients"].items()} == ranks
        assert contracts[number]["noised"] == {
            c: sum(array.size for array in state.values()) for c, (state, _) in trained.items()
        }
        survivors = [(at_rank(layout, ranks[c]), *trained[c]) for c in record["survivors"]]
        shared = Shared(w.experiment.experiment.seed, number)
        before, after = w.states[number - 1], w.states[number]
        wanted = expected("hetlora", Seen(layout, before, survivors, shared))
        for name, array in wanted.items():
            assert np.linalg.norm(after[name] - array) < TOLERANCE * np.linalg.norm(array - before[name])
        gone = {loss["client_id"] for loss in record["lost"] if loss["phase"] == "train"}
        heard = [c for c in clients if c not in gone]
        followed = next_ranks(w, number, ranks, heard)
        assert set(record["faded"]) >= {c for c in clients if followed[c] < ranks[c]}
        ranks = followed
    # Nobody's tail can fade in the first round, in which B begins at zero; later some do, and not all who would may.
    assert seen_ranks[0] == seen_ranks[1] != seen_ranks[2]
    second = report["rounds"][1]["faded"]
    assert "client-1" not in second
    assert seen_ranks[2]["client-3"] == 2  # it was heard, and then lost
    assert sum(rank == 4 for rank in seen_ranks[2].values()) == NEEDED
    assert len(second) > sum(seen_ranks[2][c] < seen_ranks[1][c] for c in clients)
    assert 1 in w.parts.pruned  # the last rank that anybody may have was rehearsed, though nobody came so far
    files = sorted((w.outcome.folder / "clients").glob("*/private-audit-*.jsonl"))
    assert len(files) == len(clients)
    verdicts = audit_files(w.outcome.folder, private=files)
    # 13: noise can be drawn again.
    assert {verdict.check for verdict in verdicts if verdict.status == "FAIL"} == {13}
    assert {verdict.check for verdict in verdicts if verdict.status == "PASS"} >= {4, 7, 11}
