"""Experiments whose clients are not equal: what the file may ask for, and who trains what by it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from fedlora_priv.allocation import shapes
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.config_allocation import AllocationSection
from fedlora_priv.errors import ConfigError
from fedlora_priv.federation.allocating import (
    allocation,
    cost_model,
    holders,
    profiles,
    require_allocations,
)
from fedlora_priv.federation.session import min_contributors
from fedlora_priv.methods import Method, for_experiment
from fedlora_priv.methods.flexlora import FlexLoRA
from fedlora_priv.methods.hetlora import HetLoRA
from fedlora_priv.methods.partial import Partial
from tests.allocation.lab import layout

SIX = [f"client-{k}" for k in range(1, 7)]
TIERS = [{"clients": SIX[:2], "max_layers": 2}, {"clients": SIX[2:3], "max_layers": 3}]
DENSE = {"support": "dense", "density": 1.0}
LAYERS = 4
RESCORED = {"strategy": "fisher", "scores_of": "held-out rows", "rescore_every": 2}
PRIVATE = {"public": False, "labels": ["no", "yes"], "declared_examples_per_client": 400, "dataset_id": "d"}


@pytest.fixture
def asked(experiment_file: Callable[..., Path]) -> Callable[..., Experiment]:
    """An experiment of six clients in three tiers, with keys of [allocation] and other sections replaced."""

    def load(sections: dict[str, dict[str, Any]] | None = None, **keys: Any) -> Experiment:
        given: dict[str, dict[str, Any]] = {
            "federation": {"clients": 6, "rounds": 4, "method": "fedit"},
            "communication": DENSE,
            "allocation": {"strategy": "fedra", "tiers": TIERS} | keys,
        }
        for name, section in (sections or {}).items():
            given[name] = {**given.get(name, {}), **section}
        given["allocation"] = {key: value for key, value in given["allocation"].items() if value is not None}
        return Experiment.load(experiment_file(**given))

    return load


STRATEGIES: list[dict[str, Any]] = [
    {"strategy": "geometric", "shape": "inverted"},
    {"strategy": "random-geometric", "shape": "triangle"},
    {"strategy": "fedra"},
    {"strategy": "fisher", "scores": [1.0, 5.0, 2.0, 9.0], "scores_of": "SST-2's training rows"},
    {"strategy": "fedpilot", "scores": [1.0, 5.0, 2.0, 9.0], "scores_of": "SST-2's training rows"},
]


@pytest.mark.parametrize("keys", STRATEGIES, ids=lambda keys: keys["strategy"])
def test_every_layer_has_enough_clients_and_nobody_more_than_it_can(
    asked: Callable[..., Experiment], keys: dict[str, Any]
) -> None:
    experiment = asked(**keys)
    assert min_contributors(experiment) == 3
    for number in range(1, 5):
        found = allocation(experiment, layout(LAYERS), number, Findings())
        assert found is not None
        assert min(found.counts()) >= holders(experiment, layout(LAYERS)) == 3
        budgets = [len(found.parts[client_id].layers) for client_id in SIX]
        assert max(budgets[:2]) <= 2
        assert budgets[2] <= 3
        assert max(budgets[3:]) <= LAYERS
        again = allocation(Experiment.from_toml(experiment.to_toml()), layout(LAYERS), number, Findings())
        assert again == found, "anybody who has the file makes the same"


def test_drawn_layers_differ_by_round_and_seed(asked: Callable[..., Experiment]) -> None:
    drawn = [allocation(asked(), layout(8), number, Findings()) for number in (1, 2)]
    other = allocation(asked({"experiment": {"seed": 4}}), layout(8), 1, Findings())
    assert drawn[0] is not None
    assert drawn[1] is not None
    assert other is not None
    assert drawn[0].parts != drawn[1].parts
    assert drawn[0].parts != other.parts


def test_everybody_trains_everything_unless_a_strategy_is_chosen(asked: Callable[..., Experiment]) -> None:
    assert allocation(asked(strategy="all", tiers=None), layout(LAYERS), 1, Findings()) is None


def test_ranks_are_dealt_by_what_clients_can_hold(asked: Callable[..., Experiment]) -> None:
    tiers = [{"clients": SIX[:3], "memory_bytes": 150.0}, {"clients": SIX[3:4], "max_rank": 2}]
    experiment = asked(
        {"lora": {"rank": 4}, "secure_aggregation": {"max_colluders": 0}},
        strategy="ranks",
        ranks=[1, 2, 4],
        tiers=tiers,
        cost={"memory_fixed_bytes": 50.0, "memory_coordinate_bytes": 1.0},
    )
    whole = layout(2)
    # a layer has (6 + 5)·2 coordinates a rank and the head has 6: 94 at rank 2, 50 at rank 1, of 100 that fit
    found = allocation(experiment, whole, 1, Findings())
    assert found is not None
    assert [found.parts[client_id].rank for client_id in SIX] == [2, 2, 2, 2, 4, 4]
    assert cost_model(experiment, whole).memory_bytes([0, 1], 2) == 50 + 94
    assert profiles(experiment)["client-4"].max_rank == 2
    assert profiles(experiment)["client-6"].max_rank is None


@pytest.mark.parametrize(
    ("method", "keys", "wanted"),
    [
        ("hetlora", {"strategy": "ranks", "ranks": [2, 4], "tiers": None}, HetLoRA),
        ("hetlora", {}, Partial),
        ("flexlora", {"strategy": "ranks", "ranks": [2, 4], "tiers": None}, FlexLoRA),
        ("fedit", {"strategy": "ranks", "ranks": [2, 4], "tiers": None}, Partial),
    ],
)
def test_who_divides_by_what_clients_hold(
    asked: Callable[..., Experiment], method: str, keys: dict[str, Any], wanted: type[Method]
) -> None:
    sections = {
        "federation": {"method": method},
        "lora": {"rank": 4},
        "aggregation": {"largest_norm": 3.0} if method == "hetlora" else {},
    }
    made = for_experiment(asked(sections, **keys))
    assert type(made) is wanted
    padded = made.method if isinstance(made, Partial) else made
    if isinstance(padded, HetLoRA):  # what all ranks on offer have travels as changes; of layers, everything
        assert (padded.largest, padded.common) == (3.0, 2 if keys else 4)


def test_losses_are_planned_for(asked: Callable[..., Experiment]) -> None:
    experiment = asked({"federation": {"clients": 12}}, dropout_rate=0.1, tiers=None)
    assert holders(experiment, layout(12)) == 7  # as in the docstring of holders_needed
    assert min_contributors(asked(min_contributors=4)) == 4
    assert min_contributors(asked({"secure_aggregation": {"min_survivors": 5}})) == 5
    assert min_contributors(asked({"secure_aggregation": {"mode": "insecure"}})) == 1


def refused() -> list[tuple[dict[str, Any], dict[str, Any], str]]:
    """Sections and keys, and what the refusal says."""
    drawn = {"strategy": "random-geometric", "shape": "uniform"}
    return [
        ({}, {"strategy": "geometric"}, "allocation.shape is missing"),
        ({}, {"shape": "uniform"}, "allocation.shape has no effect with allocation.strategy = 'fedra'"),
        ({}, {"strategy": "all"}, "allocation.tiers has no effect with allocation.strategy = 'all'"),
        ({}, {"strategy": "fisher"}, "allocation.scores is missing"),
        ({}, {"strategy": "fedpilot", "scores": [1.0]}, "scores of clients' own data would be a release"),
        (
            {},
            {"rescore_every": 2},
            "allocation.rescore_every has no effect with allocation.strategy = 'fedra'",
        ),
        ({}, {"strategy": "fisher", "rescore_every": 2}, "allocation.scores_of is missing"),
        ({}, {**RESCORED, "rescore_every": 0}, "should be greater than or equal to 1"),
        (
            {},
            {**RESCORED, "rescore_every": 4, "scores": [1.0]},
            "no effect in 4 rounds that begin with scores",
        ),
        ({"data": PRIVATE}, RESCORED, "on the held-out rows, which are not declared public"),
        (
            {"model": {"task": "language-modelling"}},
            RESCORED,
            "by the label's logit, and a language model has none",
        ),
        ({}, {"strategy": "ranks", "tiers": None}, "allocation.ranks is missing"),
        ({}, {"strategy": "ranks", "tiers": None, "ranks": [1]}, "largest of allocation.ranks is 1"),
        ({}, {"strategy": "ranks", "tiers": None, "ranks": [0, 2]}, "should be greater than or equal to 1"),
        ({}, {"strategy": "ranks", "ranks": [1, 2]}, "max_layers of the tier of client-1 has no effect"),
        ({}, {"strategy": "rank"}, "did you mean 'ranks'"),
        ({}, {"tiers": [{"clients": ["client-7"]}]}, "'client-7', which is not a client"),
        ({}, {"tiers": [*TIERS, TIERS[0]]}, "lists client-1 2 times"),
        (
            {},
            {"tiers": [{"clients": ["client-1"], "memory_bytes": 1e9}]},
            "does not say what memory training",
        ),
        ({}, {"tiers": [{"clients": ["client-1"], "speed": 2.0}]}, "without allocation.cost.round_s"),
        (
            {},
            {"tiers": [{"clients": ["client-1"], "speed": 2.0}], "cost": {"round_s": 9.0}},
            "does not say how long a step takes",
        ),
        ({}, {"tiers": [{"clients": ["client-1"], "max_rank": 1}]}, "which deals out layers"),
        ({}, {"min_contributors": 2}, "would be hidden by nobody; use at least 3"),
        ({}, {"min_contributors": 5}, "is above secure_aggregation.min_survivors = 4"),
        ({}, {"holders": 2}, "allocation.holders = 2 is not between min_contributors = 3 and the 6 clients"),
        ({}, {"holders": 4, "dropout_rate": 0.1}, "dropout_rate has no effect"),
        ({}, {"failure_probability": 0.2}, "failure_probability has no effect"),
        ({"federation": {"method": "flora"}}, {}, "'flora' counts components itself"),
        ({"federation": {"method": "fedsa"}}, {}, "keeps arrays at each client"),
        (
            {"federation": {"method": "fra"}},
            {"strategy": "ranks", "tiers": None, "ranks": [2]},
            "by component",
        ),
        ({"federation": {"method": "flexlora"}, "lora": {"ranks": [2] * 6}}, drawn, "both say what clients"),
        ({"communication": {"support": "server-topk", "density": 0.5}}, {}, "must arrive whole"),
        (
            {"federation": {"method": "hetlora"}, "lora": {"ranks": [2] * 6}},
            {"strategy": "all", "tiers": None},
            "lora.ranks has no effect with federation.method = 'hetlora'",
        ),
        ({"communication": {"error_feedback": True}}, {}, "must arrive whole"),
        ({"communication": {"download_density": 0.5}}, {}, "must arrive whole"),
        ({"communication": {"value_bits": 7}}, {}, "at least 8 bits"),
    ]


@pytest.mark.parametrize(("sections", "keys", "complaint"), refused())
def test_what_the_file_may_not_ask_for_is_refused(
    asked: Callable[..., Experiment], sections: dict[str, Any], keys: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)) as error:
        asked(sections, **keys)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("layers", "keys", "complaint"),
    [
        (
            4,
            {"strategy": "geometric", "shape": "triangle", "tiers": None},
            "do not form the shape 'triangle'",
        ),
        (12, {"holders": 6}, "layer 0 is left with"),
        (3, {"strategy": "fedpilot", "scores": [1.0, 2.0], "scores_of": "x"}, "2 scores for 3 layers"),
        (
            4,
            {"tiers": [{"clients": SIX[:1], "memory_bytes": 10.0}], "cost": {"memory_fixed_bytes": 11.0}},
            "client-1 cannot train one layer: it needs 11 bytes and has 10",
        ),
    ],
)
def test_what_the_model_cannot_give_is_refused_when_it_is_known(
    asked: Callable[..., Experiment], layers: int, keys: dict[str, Any], complaint: str
) -> None:
    experiment = asked(**keys)
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        require_allocations(experiment, layout(layers))


def test_more_allocations_than_a_report_states_are_refused(asked: Callable[..., Experiment]) -> None:
    experiment = asked({"federation": {"rounds": 1100}})
    with pytest.raises(ConfigError, match="a report states at most 1000"):
        require_allocations(experiment, layout(12))
    require_allocations(asked({"federation": {"rounds": 1100}}, **STRATEGIES[0]), layout(LAYERS))
    again = {"strategy": "fedpilot", "scores": None, "scores_of": "x", "rescore_every": 60}
    with pytest.raises(ConfigError, match="a report states at most 1000"):  # 1040 of which nothing is known
        require_allocations(asked({"federation": {"rounds": 1100}}, **again), layout(LAYERS))


def test_the_file_knows_the_shapes_that_there_are() -> None:
    (literal, _) = get_args(AllocationSection.model_fields["shape"].annotation)
    assert get_args(literal) == shapes.SHAPES
