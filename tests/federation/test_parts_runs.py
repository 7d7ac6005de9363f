"""Federations of clients that train parts of the model, end to end: models, masks, losses, report, adapter and audit.

What each method makes of a layer must be what its equations (`tests.federation.references`) make of those alone who
have trained that layer and are in the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.federation.allocating import allocation
from fedlora_priv.federation.preview import preview
from fedlora_priv.reports.auditing import audit_files

from .references import LARGEST_NORM, expected
from .test_every_method import SMALLEST, TOLERANCE, Watched, mode_of, value

CLIENTS, ROUNDS = 6, 2
SCORED = {"scores": [1.0, 3.0], "scores_of": "public rows"}
SMALL = [{"clients": ["client-1", "client-2"], "max_layers": 1}]
LOW = [{"clients": ["client-2"], "max_rank": 1}]
CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("fedit", {"strategy": "random-geometric", "shape": "inverted", "tiers": SMALL}),
    ("ffa", {"strategy": "geometric", "shape": "inverted", "tiers": SMALL}),
    ("rolora", {"strategy": "fedra", "tiers": SMALL}),
    ("fra", {"strategy": "fisher", "tiers": SMALL, **SCORED}),
    ("fed-sb", {"strategy": "fedpilot", "tiers": SMALL, **SCORED}),
    ("hetlora", {"strategy": "geometric", "shape": "inverted", "tiers": SMALL}),
    ("fedit", {"strategy": "ranks", "ranks": [1, 2], "tiers": LOW}),
    ("flexlora", {"strategy": "ranks", "ranks": [1, 2], "tiers": LOW}),
    ("hetlora", {"strategy": "ranks", "ranks": [1, 2], "tiers": LOW}),
]
LOSSES = [
    {"round": 1, "client_id": "client-3", "phase": "mask"},
    {"round": 2, "client_id": "client-4", "phase": "reveal"},
]


@pytest.fixture
def watched(experiment_file: Callable[..., Path]) -> Callable[..., Watched]:
    def go(method: str, dealt: dict[str, Any], **sections: dict[str, Any]) -> Watched:
        given: dict[str, dict[str, Any]] = {
            "federation": {"clients": CLIENTS, "rounds": ROUNDS, "method": method},
            "training": {"deterministic_noise": True, "learning_rate": 1.0},
            "communication": {"support": "dense", "density": 1.0, "value_bits": 16},
            "simulate": {"dropouts": LOSSES},
            "allocation": dealt,
            "aggregation": {"largest_norm": LARGEST_NORM} if method == "hetlora" else {},
        }
        for name, section in sections.items():
            given[name] = {**given.get(name, {}), **section}
        return Watched(Experiment.load(experiment_file(**given))).go()

    return go


def holders(w: Watched, record: dict[str, Any], module: str) -> list[str]:
    """The survivors that train a module."""
    dealt = allocation(w.experiment, w.parts.layout, record["round"], Findings())
    assert dealt is not None
    return [client_id for client_id in record["survivors"] if module in dealt.trains(client_id)]


def wanted(w: Watched, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """The global state after a round: the head's mean over all, each module's over its holders."""
    number = record["round"]
    name, mode = w.parts.method.at(number).name, mode_of(w.experiment, record)
    every = expected(name, w.seen(record), mode)
    found = {what: array for what, array in every.items() if what in w.parts.layout.heads}
    for module in w.parts.layout.modules:
        alone = w.seen(record | {"survivors": holders(w, record, module.name)})
        of_it = {module.a_name, module.b_name, module.r_name, f"map/{module.name}"}
        found |= {what: array for what, array in expected(name, alone, mode).items() if what in of_it}
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "dealt"), CHOICES, ids=lambda of: of if isinstance(of, str) else of["strategy"]
)
def test_a_layer_is_a_federation_of_those_who_train_it(
    watched: Callable[..., Watched], method: str, dealt: dict[str, Any]
) -> None:
    w = watched(method, dealt)
    assert w.outcome.problem is None
    for number, record in enumerate(w.outcome.report["rounds"], 1):
        assert len(record["survivors"]) == (5 if number == 1 else 6)
        seen = w.seen(record)
        thin = [len(holders(w, record, module.name)) for module in w.parts.layout.modules]
        assert (min(thin) < len(record["survivors"])) is (dealt["strategy"] != "ranks")
        if (method, dealt["strategy"]) != ("fedit", "ranks"):
            for what, array in wanted(w, record).items():
                got, before = value(seen, what, w.states[number]), value(seen, what, w.states[number - 1])
                error = np.linalg.norm(got - array) / max(np.linalg.norm(array - before), SMALLEST)
                assert error < TOLERANCE, (number, what)
        else:
            by_component(w, record)
        frozen(w, record)
    failed = {verdict.check for verdict in audit_files(w.outcome.folder) if verdict.status == "FAIL"}
    assert failed == {13}  # noise that can be drawn again


def by_component(w: Watched, record: dict[str, Any]) -> None:
    """Each row of A and column of B is the mean over those who have it."""
    number, trainers = record["round"], w.parts.trainers
    before, after = w.states[number - 1], w.states[number]
    for place, m in enumerate(w.parts.layout.modules):
        for j in range(m.rank):
            a, b = [], []
            for client_id in record["survivors"]:
                own = trainers[client_id].layout.modules[place]
                if own.rank > j:
                    start, end = w.trained[number, client_id]
                    a.append(end[m.a_name][j].astype(float) - start[m.a_name][j])
                    b.append(
                        (end[m.b_name][:, j].astype(float) - start[m.b_name][:, j]) * own.scaling / m.scaling
                    )
            assert len(a) == len(record["survivors"]) - j  # client-2 has the first component alone
            for name, moved, mean in ((m.a_name, (j,), a), (m.b_name, (slice(None), j), b)):
                change = (after[name].astype(float) - before[name])[moved]
                assert np.linalg.norm(change - np.mean(mean, axis=0)) < TOLERANCE * np.linalg.norm(change)


def frozen(w: Watched, record: dict[str, Any]) -> None:
    """What a client does not train comes out of its training bit for bit, and is in no count of what it noises."""
    number = record["round"]
    (contract,) = [c for c in w.outcome.report["method"]["contracts"] if number in c["rounds"]]
    for client_id in record["survivors"]:
        start, end = w.trained[number, client_id]
        moved = [name for name in end if end[name].tobytes() != start[name].tobytes()]
        stays = {name for name in moved if name not in w.parts.layout.heads}
        mine = w.parts.trainers[client_id].layout
        assert {name.rpartition(".")[0] for name in stays} == {
            m.name for m in mine.modules if client_id in holders(w, record, m.name)
        }
        assert contract["noised"][client_id] == sum(end[name].size for name in moved)


@pytest.mark.long
def test_a_round_in_which_a_layer_loses_its_clients_is_lost(watched: Callable[..., Watched]) -> None:
    """Three train the lower layer. One that is lost before masking takes the round with it; later it does not."""
    dealt = {
        "strategy": "geometric",
        "shape": "inverted",
        "tiers": [{"clients": ["client-1", "client-2", "client-3"], "max_layers": 1}],
    }
    lost = [
        {**LOSSES[0], "client_id": "client-6"},
        {**LOSSES[1], "client_id": "client-6", "phase": "confirm"},
    ]
    w = watched("ffa", dealt, simulate={"dropouts": lost})
    first, second = w.outcome.report["rounds"]
    assert first["survivors"] == []
    assert "contribute to a group" in first["aborted"]
    assert all(np.array_equal(array, w.states[0][name]) for name, array in w.states[1].items())
    assert second["aborted"] is None
    assert len(second["survivors"]) == CLIENTS
    failed = {verdict.check for verdict in audit_files(w.outcome.folder) if verdict.status == "FAIL"}
    assert failed == {13}


def test_what_a_run_takes_is_foretold_to_the_byte(
    watched: Callable[..., Watched],
) -> None:
    from fedlora_priv.engines.base import Traffic
    from fedlora_priv.federation.foretold import foretold

    w = watched(*CHOICES[0], simulate={"dropouts": []})
    told = [Traffic(told.drawn).by_client() for told in foretold(w.parts)]
    assert told == [row["bytes_by_kind"] for row in w.outcome.metrics]


def test_the_least_and_the_most_that_is_trained_is_rehearsed(
    experiment_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedlora_priv.federation import setup

    seen: list[Any] = []
    monkeypatch.setattr(setup, "rehearse", lambda *_, support, **__: seen.append(support))
    tiers = [*SMALL, {"clients": ["client-4"], "max_layers": 1}]
    path = experiment_file(
        federation={"clients": CLIENTS, "method": "fedit"},
        communication={"support": "dense", "density": 1.0},
        allocation={"strategy": "fedra", "tiers": tiers},
    )
    parts = setup.assemble(Experiment.load(path), lambda line: None)
    replace(parts, observe=None).rehearse()
    least, most = seen
    assert most is None, "somebody trains everything"
    trained = {name.rpartition(".")[0] for name, mask in least.items() if mask.all()} - {"classifier"}
    assert len(trained) == 2, "query and value of one layer"
    assert all(mask.all() or not mask.any() for mask in least.values())


@pytest.mark.parametrize(("room", "survived"), [(3, 0), (2, 1), (0, 2)])
def test_a_plan_says_how_many_losses_a_layer_bears(
    experiment_file: Callable[..., Path], room: int, survived: int
) -> None:
    """With three, four and six clients on the lower layer of which three are needed; sessions alone bear two."""
    tiers = [{"clients": ["client-1", "client-2", "client-3"][:room], "max_layers": 1}] if room else []
    shape = "inverted" if room else "uniform"
    path = experiment_file(
        federation={"clients": CLIENTS, "method": "fedit"},
        communication={"support": "dense", "density": 1.0},
        allocation={"strategy": "geometric", "shape": shape, "tiers": tiers},
    )
    stated = preview(Experiment.load(path))["secure_aggregation"]
    assert stated["losses_survived"] == survived
    assert stated["abort_bounds"] == ({} if survived == 2 else {str(survived + 1): 1.0})
