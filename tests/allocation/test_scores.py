"""Scores of layers: clusters and knapsacks against brute force, their origin, and what they are on a real model."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora_priv.adapters import trainable_parameters
from fedlora_priv.allocation import (
    AllocationError,
    Cost,
    CostModel,
    FedPilot,
    FisherLayers,
    LayerScores,
    NothingFits,
    PrivateScores,
    Profile,
    Public,
    RankPruning,
    ThinLayer,
)
from fedlora_priv.allocation.fisher import clusters
from fedlora_priv.allocation.pilot import most_valuable
from fedlora_priv.methods.layout import Layout
from tests.allocation.lab import SEED, layout, public, tiers
from tests.methods.lab import random_state

PLAIN = (1.0, 2.0, 3.0, 4.0)


def scored(*values: float) -> LayerScores:
    return LayerScores.of_public_data(values, "a hundred public rows")


# Clusters.


@given(st.lists(st.integers(0, 12).map(float), min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_clusters_have_the_least_squares_and_are_sorted(values: list[float]) -> None:
    found = clusters(values)
    count = min(3, len(set(values)))
    assert set(found) == set(range(count))
    assert [found[i] for i in np.argsort(values, kind="stable")] == sorted(found)
    assert all(a == b for a, b, x, y in zip(found, found, values, values, strict=True) if x == y)

    def cost(labels: tuple[int, ...]) -> float:
        groups = [[v for v, k in zip(values, labels, strict=True) if k == g] for g in set(labels)]
        return sum(float(np.var(group)) * len(group) for group in groups)

    best = min(cost(labels) for labels in itertools.product(range(count), repeat=len(values)))
    assert cost(tuple(found)) == pytest.approx(best, abs=1e-9)


# Knapsack.


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_the_knapsack_is_the_best_of_all_sets_that_fit(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 6))
    values = data.draw(st.lists(st.integers(0, 9).map(float), min_size=layers, max_size=layers))
    numbers = st.sampled_from([0.0, 1.0, 40.0])
    cost = replace(
        CostModel.declared(
            layout(layers, uneven=True),
            memory=Cost(data.draw(numbers), data.draw(numbers), 1.0),
            step=Cost(0.0, data.draw(numbers), 0.1),
        ),
        round_s=data.draw(st.sampled_from([30.0, 90.0, 1e9])),
    )
    profile = Profile(
        memory_bytes=data.draw(st.integers(50, 900)), max_layers=data.draw(st.sampled_from([None, 1, 3]))
    )
    sets = [
        held for size in range(1, layers + 1) for held in itertools.combinations(range(layers), size)
        if cost.fits(profile, held, 4)
    ]  # fmt: skip
    found = most_valuable(values, profile, cost)
    if not sets:
        assert found == []
        return
    assert cost.fits(profile, found, 4)
    assert found == sorted(set(found))
    assert sum(values[i] for i in found) == max(sum(values[i] for i in held) for held in sets)


def test_a_client_takes_what_is_worth_most_to_everybody_and_to_itself() -> None:
    local = LayerScores.charged((9.0, 0.0, 0.0, 0.0), "round 3, scores")
    known = public(4, scores=scored(*PLAIN), local_scores={"client-2": local})
    parts = FedPilot(local_weight=0.5).allocate(1, tiers(2, 2, 4), known).parts
    assert parts["client-1"].layers == (2, 3)
    assert parts["client-2"].layers == (0, 3)  # worth 5.0, 1.0, 1.5, 2.0
    assert FedPilot(local_weight=0.0).allocate(1, tiers(2, 2, 4), known).parts["client-2"].layers == (2, 3)


def test_alike_clients_exchange_layers_until_each_has_enough() -> None:
    cost = CostModel.declared(layout(4), memory=Cost(0.0, 100.0, 1.0))
    small, large = Profile(2 * 88 + 6 + 200), Profile(2 * 88 + 6 + 400)  # the top two, or any two
    profiles = {f"client-{i}": (small if i < 3 else large) for i in range(7)}
    known = Public(SEED, cost, scores=scored(*PLAIN))
    allocation = FedPilot(holders=2).allocate(1, profiles, known)
    assert min(allocation.counts()) >= 2
    for client_id, profile in profiles.items():
        assert cost.fits(profile, allocation.parts[client_id].layers, 4)
    with pytest.raises(ThinLayer, match="layer 0 is left with 0 of at least 1 clients; "):
        FedPilot().allocate(1, dict.fromkeys(profiles, small), known)
    with pytest.raises(NothingFits, match="client-0 has no room for any layer"):
        FedPilot().allocate(1, {c: Profile(100) for c in profiles}, known)


# Origin.


@pytest.mark.parametrize("strategy", [FisherLayers(first=1), FedPilot()])
def test_scores_that_nobody_declared_are_refused(strategy) -> None:
    profiles = tiers(2, 3, 4)
    with pytest.raises(PrivateScores, match="nobody has declared public or charged"):
        strategy.allocate(1, profiles, public(4, scores=PLAIN))
    with pytest.raises(AllocationError, match="needs a score of each layer"):
        strategy.allocate(1, profiles, public(4))
    with pytest.raises(AllocationError, match="3 scores for 4 layers"):
        strategy.allocate(1, profiles, public(4, scores=scored(1.0, 2.0, 3.0)))
    charged = LayerScores.charged(PLAIN, "round 3, noised scores")
    assert strategy.allocate(1, profiles, public(4, scores=charged)).counts()


def test_scores_name_their_origin() -> None:
    with pytest.raises(PrivateScores, match="neither public data nor a ledger event"):
        LayerScores.of_public_data(PLAIN, " ")
    with pytest.raises(PrivateScores):
        LayerScores.charged(PLAIN, "")
    for values in ((), (1.0, float("nan")), (-1.0,)):
        with pytest.raises(AllocationError, match="finite and 0 or more"):
            scored(*values)
    known = public(4, scores=scored(*PLAIN), local_scores={"client-1": scored(*PLAIN)})
    with pytest.raises(PrivateScores, match="client-1's own data are not charged"):
        FedPilot().allocate(1, tiers(4), known)
    with pytest.raises(AllocationError, match="weight 2"):
        FedPilot(local_weight=2.0)
    for wrong in ((0, 5), (5, 0)):
        with pytest.raises(AllocationError, match="cannot be scored"):
            FisherLayers(*wrong)


# A model's scores.


@pytest.mark.parametrize("squares", [False, True], ids=["A and B", "with Fed-SB's R"])
def test_fisher_scores_are_squared_gradients_of_the_labels_logit(tiny_model, squares: bool) -> None:
    from fedlora_priv.allocation.fisher_scores import fisher_scores
    from fedlora_priv.modeling import LoraSettings, add_squares, load_model
    from fedlora_priv.training import TokenisedExamples

    lora = LoraSettings(("query", "value"), rank=2)
    model = load_model(tiny_model, pooling="mean", num_labels=2, lora=lora, seed=0)
    if squares:
        add_squares(model)
    rng = np.random.default_rng(0)
    with torch.no_grad():  # away from B = 0, where A has no gradient
        for name, parameter in trainable_parameters(model).items():
            if name.endswith((".lora_B", ".lora_R")):
                parameter.copy_(torch.from_numpy(rng.normal(0, 0.2, parameter.shape)).float())
    ids = tuple(rng.integers(1, 15, int(n)) for n in rng.integers(3, 9, 10))
    examples = TokenisedExamples(ids, rng.integers(0, 2, 10), 0)
    wanted = np.zeros(2)
    model.eval()
    for i in range(10):
        batch = examples.subset([i]).collate(torch.device("cpu"))
        model.zero_grad()
        model(**batch.inputs).logits[0, int(batch.labels[0])].backward()
        for name, parameter in trainable_parameters(model).items():
            if ".layer." in name:
                wanted[int(name.split(".layer.")[1][0])] += float(parameter.grad.double().square().sum()) / 10
    model.zero_grad()
    found = fisher_scores(model, examples, "made-up rows", batch_size=4)
    assert np.allclose(found.values, wanted, rtol=1e-4)
    assert not found.is_charged
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(AllocationError, match="no examples"):
        fisher_scores(model, examples.subset([]), "made-up rows")
    with pytest.raises(PrivateScores):
        fisher_scores(model, examples, "")
    with pytest.raises(AllocationError, match="no labels"):
        fisher_scores(model, TokenisedExamples(ids, None, 0), "made-up rows")


# Self-pruning.


def states(seed: int) -> tuple[Layout, dict]:
    model = layout(2, rank=6)
    return model, random_state(model, np.random.default_rng(seed))


def test_the_penaltys_gradient_is_that_of_the_tail() -> None:
    model, state = states(0)
    pruning = RankPruning(keep=0.5, penalty=0.3)
    state = {name: array.astype(np.float64) for name, array in state.items()}
    gradient = pruning.gradient(model, state)
    rng = np.random.default_rng(1)
    for name in gradient:
        direction, step = rng.normal(size=state[name].shape), 1e-6
        up, down = (pruning.tail(model, state | {name: state[name] + s * direction}) for s in (step, -step))
        assert 0.3 * (up - down) / (2 * step) == pytest.approx(
            float((gradient[name] * direction).sum()), rel=1e-5
        )
        first = gradient[name][:3] if name.endswith("A") else gradient[name][:, :3]
        assert not first.any()
    zero = {name: np.zeros_like(array) for name, array in state.items()}
    assert not any(array.any() for array in pruning.gradient(model, zero).values())


def test_a_rank_falls_when_its_tail_has_faded_and_never_to_nothing() -> None:
    model, start = states(0)
    pruning = RankPruning(keep=0.7)
    name = "encoder.layer.0.query.lora_B"
    faded, grown = (start | {name: start[name] * np.float32(factor)} for factor in (0.9, 1.1))
    assert pruning.fades(model, start, faded)
    assert not pruning.fades(model, start, grown)
    assert not pruning.fades(model, start, start)
    assert pruning.kept(6) == 4
    assert [RankPruning(keep=0.1).kept(rank) for rank in (1, 2, 30)] == [1, 1, 3]
    assert RankPruning(keep=0.1, least=2).kept(6) == 2
    for wrong in ({"keep": 1.0}, {"keep": 0.0}, {"penalty": -1.0}, {"least": 0}):
        with pytest.raises(AllocationError, match="pruning cannot keep"):
            RankPruning(**wrong)
