"""What a plan says of its allocations: the thinnest sum and what each tier needs, against every round's allocation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.federation.allocating import all_rounds, allocation, cost_model, profiles
from fedlora_priv.federation.tiers import asked_of_clients
from fedlora_priv.methods.registry import for_experiment
from tests.allocation.lab import layout

SEVEN = [f"client-{k}" for k in range(1, 8)]
LAYERS = 6
SMALL, LARGE = 5_500.0, 1e9
COST = {"memory_fixed_bytes": 1000.0, "memory_layer_bytes": 500.0, "memory_coordinate_bytes": 4.0,
        "step_fixed_s": 0.5, "step_layer_s": 0.25, "round_s": 60.0}  # fmt: skip


@pytest.fixture
def asked(experiment_file: Callable[..., Path]) -> Callable[..., Experiment]:
    """Seven clients, of which two are small by memory and two slow, with keys of [allocation] replaced."""

    def load(**keys: Any) -> Experiment:
        tiers = [
            {"clients": SEVEN[:2], "memory_bytes": SMALL},
            {"clients": SEVEN[2:4], "memory_bytes": LARGE, "speed": 0.5},
        ]
        given = {"strategy": "fedra", "tiers": tiers, "cost": COST} | keys
        return Experiment.load(experiment_file(
            federation={"clients": 7, "rounds": 5, "method": "fedit"},
            lora={"rank": 4, "alpha": 8.0},
            communication={"support": "dense", "density": 1.0},
            allocation={key: value for key, value in given.items() if value is not None},
        ))  # fmt: skip

    return load


def test_the_thinnest_place_and_the_tiers_are_those_of_all_rounds(asked: Callable[..., Experiment]) -> None:
    experiment, model = asked(), layout(LAYERS)
    found = asked_of_clients(
        experiment, model, for_experiment(experiment), all_rounds(experiment, Findings())
    )
    assert found is not None
    dealt = [allocation(experiment, model, number, Findings()) for number in range(1, 6)]
    places = {
        (number, layer): sum(layer in part.layers for part in one.parts.values())
        for number, one in enumerate(dealt, 1)
        if one is not None
        for layer in range(LAYERS)
    }
    thin = found["fewest"]
    assert thin["clients"] == min(places.values()) == places[thin["round"], thin["layer"]]
    assert found["min_contributors"] == 3
    cost, has = cost_model(experiment, model), profiles(experiment)
    small, slow, others = found["tiers"]
    assert [tier["clients"] for tier in (small, slow, others)] == [SEVEN[:2], SEVEN[2:4], SEVEN[4:]]
    for tier in (small, slow, others):
        parts = [one.parts[c] for one in dealt if one is not None for c in tier["clients"]]
        assert tier["layers"] == [min(len(p.layers) for p in parts), max(len(p.layers) for p in parts)]
        needs = [1000 + 500 * (6 - min(p.layers)) + 4 * cost.coordinates(p.layers, 4) for p in parts]
        assert tier["memory_bytes"] == max(needs)
        assert tier["coordinates"] == max(2 * 4 * (6 + 5) * len(p.layers) + 6 for p in parts)
        assert tier["round_s"] == max(cost.seconds(has[tier["clients"][0]], p.layers, 4) for p in parts)
    assert (small["has_bytes"], slow["has_bytes"], others["has_bytes"]) == (SMALL, LARGE, None)
    assert small["memory_bytes"] <= SMALL
    assert small["layers"][1] < others["layers"][0] == LAYERS
    assert slow["round_s"] == pytest.approx(2 * others["round_s"])


def test_the_coordinates_are_those_that_the_method_trains(asked: Callable[..., Experiment]) -> None:
    tiers = [{"clients": SEVEN[:3], "max_layers": 2}]
    experiment = asked(strategy="geometric", shape="inverted", tiers=tiers, cost=None)
    trained = []
    for name in ("fedit", "ffa", "rolora"):  # A and B of query and value, B alone, A and B by turns
        section = experiment.federation.model_copy(update={"method": name})
        changed = experiment.model_copy(update={"federation": section})
        found = asked_of_clients(
            changed, layout(LAYERS), for_experiment(changed), all_rounds(changed, Findings())
        )
        assert found is not None
        trained.append([tier["coordinates"] for tier in found["tiers"]])
    a, b, head = 2 * 4 * 5, 2 * 4 * 6, 6
    assert trained == [[n * per + head for n in (2, LAYERS)] for per in (a + b, b, max(a, b))]


def test_of_unequal_ranks_the_last_component_is_the_thinnest(asked: Callable[..., Experiment]) -> None:
    tiers = [{"clients": SEVEN[:3], "max_rank": 2}]
    experiment = asked(strategy="ranks", ranks=[2, 4], tiers=tiers, cost=None)
    found = asked_of_clients(
        experiment, layout(LAYERS), for_experiment(experiment), all_rounds(experiment, Findings())
    )
    assert found is not None
    assert found["fewest"] == {"clients": 4, "round": 1, "layer": 0, "component": 3}
    assert [(tier["rank"], tier["layers"]) for tier in found["tiers"]] == [(2, [6, 6]), (4, [6, 6])]
    assert (
        {tier["memory_bytes"] for tier in found["tiers"]}
        == {tier["round_s"] for tier in found["tiers"]}
        == {None}
    )


def test_without_parts_there_is_nothing_to_say(experiment_file: Callable[..., Path]) -> None:
    experiment = Experiment.load(experiment_file())
    assert (
        asked_of_clients(
            experiment, layout(LAYERS), for_experiment(experiment), all_rounds(experiment, Findings())
        )
        is None
    )
