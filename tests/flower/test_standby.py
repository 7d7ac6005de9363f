"""Nodes that load their model for messages that need it, and no other: the sums of clients that always have it."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context
from numpy.testing import assert_array_equal

from fedlora_priv.deploy.bundle import Plan, deploy_trial
from fedlora_priv.deploy.start import NODE_VARIABLE
from fedlora_priv.engines.flower.engine import FlowerEngine
from fedlora_priv.engines.flower.node_app import InstalledNode
from fedlora_priv.federation import checkpoint, wire
from fedlora_priv.federation.client import FederationClient
from fedlora_priv.federation.node import open_server
from fedlora_priv.federation.provenance import versions
from fedlora_priv.federation.run import Outcome, conduct

from .deployment import tiny
from .killing import PATIENT
from .lab import Link, in_one_process
from .traced import KeptSum, sums, sums_kept

ROUNDS = 2
WHOLE = {"support": "dense", "density": 1.0, "value_bits": 16}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "what stays at each client": {"federation": {"method": "fedsa"}, "communication": WHOLE},
    "unequal ranks": {
        "federation": {"method": "flexlora"},
        "aggregation": {"products": "exact"},
        "lora": {"rank": 4, "alpha": 4.0, "ranks": [4, 2, 4]},
        "communication": WHOLE,
    },
    "layers that are scored again": {
        "allocation": {
            "strategy": "fisher",
            "rescore_every": 1,
            "scores_of": "held-out rows",
            "tiers": [{"clients": ["client-2"], "max_layers": 1}],
        },
        "secure_aggregation": {"max_colluders": 0},
        "communication": WHOLE,
    },
    "a support of half, adaptive clipping": {
        "communication": {"support": "server-topk", "density": 0.5, "value_bits": 16},
        "training": {"clipping": "adaptive"},
    },
    "ranks that clients prune": {
        "federation": {"method": "hetlora", "clients": 5, "rounds": 3, "local_steps": 4},
        "lora": {"rank": 4, "alpha": 8.0},
        "training": {"learning_rate": 0.3},
        "privacy": {"epsilon": 50.0},
        "communication": WHOLE,
        "allocation": {"strategy": "ranks", "ranks": [4], "pruning": {"keep": 0.5, "penalty": 1.0}},
    },
}


class NodeOfFile(InstalledNode):
    """The node of one node.toml among several on this machine; notes what was opened for which message."""

    def __init__(self, file: Path, environment: pytest.MonkeyPatch) -> None:
        self._file, self._environment = file, environment
        self.opened: Counter[tuple[str, bool]] = Counter()

    def open(self, context: Context, data: bytes) -> FederationClient:
        self._environment.setenv(NODE_VARIABLE, str(self._file))
        client = super().open(context, data)
        with_model = client._setup.train.__name__ != "_no_model"  # type: ignore[attr-defined] # it is a function
        self.opened[wire.decode(data).kind, with_model] += 1
        return client

    def greeting(self, context: Context) -> tuple[str, bytes]:
        self._environment.setenv(NODE_VARIABLE, str(self._file))
        return super().greeting(context)


def through_flower(
    deployment: Path, folder: Path, silent: Any, environment: pytest.MonkeyPatch
) -> tuple[dict[str, KeptSum], Outcome, list[NodeOfFile]]:
    """Run a deployment's parties over Flower's messages, a node for each."""
    files = sorted(deployment.glob("nodes/*/node.toml"))
    nodes = [NodeOfFile(file, environment) for file in files]
    link = Link({100 + i: node for i, node in enumerate(nodes, start=1)})
    server = open_server(deployment / "server" / "server.toml")
    try:
        with sums_kept(folder):
            engine = FlowerEngine(link, server.roster, server.folder.run, PATIENT)  # type: ignore[arg-type] # a Link is no Grid
            outcome = conduct(server.parts, server.folder, server.roster, engine, silent)
    finally:
        server.folder.close()
    return sums(folder), outcome, nodes


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_nodes_on_standby_give_the_sums_of_nodes_that_are_not(
    tiny_model: Path,
    tiny_data: Path,
    tmp_path: Path,
    silent: Any,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    sections = {name: dict(values) for name, values in CASES[case].items()}
    sections["federation"] = {"clients": 3, "rounds": ROUNDS, **sections.get("federation", {})}
    sections["training"] = {**sections.get("training", {}), "deterministic_noise": True}
    experiment = tiny(tiny_model, tiny_data, **sections)
    deploy_trial(Plan.on_one_machine(experiment, tmp_path / "one"), versions(), lambda line: None)
    shutil.copytree(tmp_path / "one", tmp_path / "other")

    known, outcome, nodes = through_flower(tmp_path / "one", tmp_path / "sums", silent, monkeypatch)
    expected, alive = in_one_process(tmp_path / "other", tmp_path / "expected", silent)

    assert len(known) >= ROUNDS
    assert known.keys() == expected.keys()
    for name, kept in known.items():
        assert kept.total.any()
        assert_array_equal(kept.total, expected[name].total)
        assert kept.survivors == list(experiment.client_ids)
    one, other = (checkpoint.load(run.folder / "checkpoints") for run in (outcome, alive))
    assert one is not None
    assert other is not None
    for name, array in one[0].state.items():
        assert_array_equal(array, other[0].state[name])
    ours = [{key: value for key, value in row.items() if "bytes" not in key} for row in outcome.metrics]
    theirs = [{key: value for key, value in row.items() if "bytes" not in key} for row in alive.metrics]
    assert ours == theirs  # quality of each client's own model too
    ranks = [entry.findings.ranks for entry in one[1].records]
    assert ranks == [entry.findings.ranks for entry in other[1].records]
    assert bool(ranks[-1]) is ("pruning" in sections.get("allocation", {}))
    for node in nodes:
        kinds = dict(list(node.opened))
        assert len(kinds) == len(node.opened)  # a kind of message always does, or never
        assert kinds.pop(wire.TRAIN)
        assert kinds.pop(wire.PERSONAL, True)
        assert kinds.keys() >= {wire.PHASE, wire.CLOSE}
        assert not any(kinds.values())
