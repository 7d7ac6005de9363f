"""Who trains what: named shapes, their statistics, enough clients everywhere, and clear refusals at plan time.

Statistical checks allow 1e-7 of false alarm each by Hoeffding's bound, and run on fixed seeds.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fedlora_priv.allocation import (
    AllocationError,
    Allocator,
    Cost,
    CostModel,
    FedRA,
    FisherLayers,
    Geometric,
    LayerScores,
    NothingFits,
    Profile,
    Public,
    RandomGeometric,
    RankByCapability,
    ThinLayer,
    holders_needed,
)
from fedlora_priv.allocation.cover import covered
from fedlora_priv.allocation.shapes import SHAPES, dealt, has_shape, order, weights
from fedlora_priv.methods import public as public_randomness
from fedlora_priv.methods.base import Shared
from tests.allocation.lab import SEED, layout, public, tiers

FALSE_ALARM = 1e-7


# Shapes.


def test_fed_hellos_own_lists_and_distributions() -> None:
    """The released code: twelve layers, three groups with 6, 9 and 12 of them."""
    budgets = {"a": 6, "b": 9, "c": 12}
    bottleneck = [3, 3, 3, 2, 2, 1, 1, 1, 2, 3, 3, 3]
    assert dealt("bottleneck", budgets, 12)["a"] == [0, 1, 2, 9, 10, 11]
    assert np.allclose(weights("bottleneck", 12) * 27, bottleneck)
    assert np.allclose(weights("triangle", 12) * 27, [3] * 6 + [2] * 3 + [1] * 3)
    assert np.allclose(weights("inverted", 12) * 27, [1] * 3 + [2] * 3 + [3] * 6)
    assert np.allclose(weights("uniform", 12), 1 / 12)
    assert dealt("uniform", {"a": 6}, 12)["a"] == [0, 2, 4, 6, 8, 10]


@given(st.integers(1, 40), st.sampled_from(SHAPES))
@settings(max_examples=60, deadline=None)
def test_an_order_has_every_layer_once(layers: int, shape) -> None:
    assert sorted(order(shape, layers)) == list(range(layers))


@given(st.integers(3, 24), st.lists(st.integers(1, 24), min_size=2, max_size=12), st.sampled_from(SHAPES))
@settings(max_examples=120, deadline=None)
def test_fixed_layers_form_their_shape_or_are_refused(layers: int, wanted: list[int], shape) -> None:
    budgets = [min(budget, layers) for budget in wanted]
    profiles, known = tiers(*budgets), public(layers)
    ends = {"triangle": [0], "inverted": [layers - 1], "bottleneck": [0, layers - 1], "uniform": []}[shape]
    try:
        allocation = Geometric(shape).allocate(1, profiles, known)
    except AllocationError:
        if shape == "uniform":
            assert sum(budgets) < layers
        else:  # some layer has nobody, all counts are alike, or a client's odd layer makes one end alone broad
            counts = np.bincount(
                np.concatenate([order(shape, layers)[:b] for b in budgets]), minlength=layers
            )
            assert min(counts) == 0 or min(counts[end] for end in ends) == min(counts)
        return
    counts = allocation.counts()
    assert [len(allocation.parts[c].layers) for c in profiles] == budgets
    assert has_shape(shape, counts)
    assert min(counts) >= 1
    assert all(counts[end] > min(counts) for end in ends)
    assert not ends or max(counts) == counts[ends[0]]
    if shape == "uniform":
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("shape", "counts", "has"),
    [
        ("triangle", [3, 2, 2, 1], True), ("triangle", [2, 2, 2], False), ("triangle", [1, 2, 3], False),
        ("triangle", [3, 1, 2], False), ("inverted", [1, 1, 2], True), ("inverted", [2, 1], False),
        ("bottleneck", [3, 1, 3], True), ("bottleneck", [3, 1], False), ("bottleneck", [3, 2, 1], False),
        ("bottleneck", [3, 1, 2, 1, 3], False), ("uniform", [2, 3, 2], True), ("uniform", [1, 3], False),
    ],
)  # fmt: skip
def test_what_is_of_a_shape(shape, counts: list[int], has: bool) -> None:
    assert has_shape(shape, counts) == has


def test_a_shape_that_cannot_be_is_refused() -> None:
    with pytest.raises(AllocationError, match="do not form the shape 'triangle'"):
        Geometric("triangle").allocate(1, tiers(6, 6, 6), public(6))
    with pytest.raises(AllocationError, match=r"2 layers .* do not form the shape 'bottleneck'"):
        Geometric("bottleneck").allocate(1, tiers(1, 2, 2), public(2))
    with pytest.raises(AllocationError, match="do not form the shape 'bottleneck'"):
        RandomGeometric("bottleneck").allocate(1, tiers(1, 2, 2), public(2))
    with pytest.raises(ThinLayer, match=r"encoder\.layer\.5 would be trained by 0 of at least 1"):
        Geometric("triangle").allocate(1, tiers(2, 3, 5), public(6))
    for kind in (Geometric, RandomGeometric):
        with pytest.raises(AllocationError, match="no shape 'circle'"):
            kind("circle")


# Draws.


def inclusion(p: np.ndarray, count: int) -> np.ndarray:
    """The chance of each layer to be among `count` drawn one after the other without replacement, by all subsets."""
    reached = {frozenset(): 1.0}
    for _ in range(count):
        following: dict[frozenset, float] = {}
        for taken, chance in reached.items():
            left = 1.0 - sum(p[i] for i in taken)
            for i in set(range(len(p))) - taken:
                grown = taken | {i}
                following[grown] = following.get(grown, 0.0) + chance * p[i] / left
        reached = following
    return np.array([sum(c for taken, c in reached.items() if i in taken) for i in range(len(p))])


def margin(trials: int, checks: int) -> float:
    """How far a mean of `trials` may be off, in any of `checks`, with probability FALSE_ALARM (Hoeffding)."""
    return math.sqrt(math.log(2 * checks / FALSE_ALARM) / (2 * trials))


@pytest.mark.parametrize("strategy", [*(RandomGeometric(s) for s in SHAPES), FedRA()], ids=lambda s: s.name)
def test_layers_are_drawn_with_the_shapes_chances(strategy: Allocator) -> None:
    layers, budgets, rounds = 8, (2, 4, 6), 300
    profiles, known = tiers(*(b for b in budgets for _ in range(4))), public(layers)
    seen = {budget: np.zeros(layers) for budget in budgets}
    for number in range(1, rounds + 1):
        parts = strategy.allocate(number, profiles, known).parts
        for client_id, part in parts.items():
            assert len(set(part.layers)) == profiles[client_id].max_layers
            seen[len(part.layers)][list(part.layers)] += 1
    p = weights(getattr(strategy, "shape", "uniform"), layers)
    allowed = margin(rounds * 4, layers * len(budgets))
    assert allowed < 0.1
    expected = np.zeros(layers)
    for budget in budgets:
        wanted = inclusion(p, budget)
        expected += wanted
        assert np.abs(seen[budget] / (rounds * 4) - wanted).max() < allowed
    together = sum(seen.values()) / (rounds * 4)
    for a, b in itertools.pairwise(range(layers)):  # and so all clients together have the shape
        if abs(expected[a] - expected[b]) > 6 * allowed:
            assert (together[a] > together[b]) == (expected[a] > expected[b])


def test_an_allocation_is_the_same_for_everybody_and_another_each_round() -> None:
    profiles, known, strategy = tiers(2, 3, 4, 5, 6), public(6), RandomGeometric("triangle")
    first = strategy.allocate(1, profiles, known)
    again = RandomGeometric("triangle").allocate(1, dict(reversed(profiles.items())), known)
    assert first == again
    assert first.digest() == again.digest()
    others = [strategy.allocate(r, profiles, known) for r in range(2, 12)]
    assert len({first.digest(), *(other.digest() for other in others)}) == 11
    assert strategy.allocate(1, profiles, replace(known, seed=12)).parts != first.parts
    assert first.digest().hex() == GOLDEN
    record = json.loads(json.dumps(first.record()))
    assert record["counts"] == first.counts()
    assert record["parts"]["client-1"] == {"layers": list(first.parts["client-1"].layers), "rank": 4}


GOLDEN = "a66443e83e9950e5111bbd5b61a6126bda4baf24a1311ffe95ad478d5738433d"
"""Other machines and other numpys must deal alike: clients set their policies by an allocation they make themselves."""


def test_clients_draw_apart() -> None:
    """Two clients of one budget are not dealt the same layers: over 40 rounds by chance 1 in 20^40."""
    same = [
        len({part.layers for part in FedRA().allocate(r, tiers(3, 3, 6), public(6)).parts.values()}) == 2
        for r in range(1, 41)
    ]
    assert not all(same)


# FIM-HLA.


def scored(*values: float) -> LayerScores:
    return LayerScores.of_public_data(values, "a hundred public rows")


def test_layers_of_higher_scores_are_drawn_more_often() -> None:
    layers, rounds = 6, 300
    strategy, profiles = FisherLayers(first=3, every=10), tiers(*[2] * 12)
    known = public(layers, scores=scored(0.1, 5.0, 0.2, 9.0, 0.1, 9.5))
    seen = np.zeros(layers)
    for number in range(3, 3 + rounds):
        for part in strategy.allocate(number, profiles, known).parts.values():
            seen[list(part.layers)] += 1
    p = np.array([1, 2, 1, 3, 1, 3]) / 11
    assert np.abs(seen / (12 * rounds) - inclusion(p, 2)).max() < margin(12 * rounds, layers)
    early = [strategy.allocate(1, profiles, public(layers)) for _ in range(2)]
    assert early[0] == early[1]
    assert [r for r in range(1, 40) if strategy.scores_before(r)] == [3, 13, 23, 33]


# Ranks.


def test_every_client_gets_the_largest_rank_that_fits() -> None:
    cost = CostModel.declared(layout(3, rank=8), memory=Cost(0.0, 0.0, 1.0))
    profiles = {f"client-{i}": Profile(6 + 3 * 22 * rank + 1) for i, rank in enumerate((1, 2, 3, 7, 8, 20))}
    allocation = RankByCapability([8, 1, 2, 4]).allocate(1, profiles, Public(SEED, cost))
    assert [part.rank for part in allocation.parts.values()] == [1, 2, 2, 4, 8, 8]
    assert allocation.holders(2, 4) == ("client-4", "client-5")
    assert allocation.own(layout(3, rank=8), "client-4") is None
    own = allocation.own(layout(3, rank=8), "client-3")
    assert own is not None
    assert {module.rank for module in own.modules} == {4}
    pruned = RankByCapability([8, 1, 2, 4]).allocate(2, profiles, Public(SEED, cost, ranks={"client-3": 3}))
    assert pruned.parts["client-3"].rank == 3
    with pytest.raises(
        ThinLayer, match=r"component 8 of encoder\.layer\.0 would be trained by 2 of at least 3"
    ):
        RankByCapability([1, 2, 4, 8], holders=3).allocate(1, profiles, Public(SEED, cost))


def test_ranks_that_are_none_are_refused() -> None:
    for ranks in ([], [0, 4], [-1]):
        with pytest.raises(AllocationError, match="a rank cannot be"):
            RankByCapability(ranks)
    with pytest.raises(AllocationError, match="rank 8 is offered"):
        RankByCapability([8]).allocate(1, tiers(3), public(3, rank=4))
    with pytest.raises(AllocationError, match="announced a rank of 0"):
        RankByCapability([4]).allocate(1, tiers(3), public(3, ranks={"client-1": 0}))
    with pytest.raises(AllocationError, match="cannot be trained by 0 clients"):
        RankByCapability([4], holders=0)


# Enough clients.


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_exchanging_layers_gives_each_enough_wherever_that_is_possible(data: st.DataObject) -> None:
    layers = data.draw(st.integers(1, 8))
    chosen = {
        f"c{i}": sorted(data.draw(st.sets(st.integers(0, layers - 1), min_size=1)))
        for i in range(data.draw(st.integers(1, 7)))
    }
    needed = data.draw(st.integers(1, 5))

    def draw(label: str, count: int) -> np.ndarray:
        return public_randomness.unit(Shared(SEED, 1), label, count)

    possible = sum(map(len, chosen.values())) >= needed * layers and len(chosen) >= needed
    if not possible:
        with pytest.raises(ThinLayer):
            covered(chosen, layers, needed, lambda *_: True, draw)
        return
    after = covered(chosen, layers, needed, lambda *_: True, draw)
    assert {c: len(held) for c, held in after.items()} == {c: len(held) for c, held in chosen.items()}
    before_counts = np.bincount(np.concatenate(list(chosen.values())).astype(int), minlength=layers)
    counts = np.bincount(np.concatenate(list(after.values())).astype(int), minlength=layers)
    assert counts.min() >= needed
    moved = sum(len(set(after[c]) - set(chosen[c])) for c in chosen)
    assert moved <= np.maximum(needed - before_counts, 0).sum()  # each exchange mends one want


@pytest.mark.parametrize("strategy", [FedRA(4), RandomGeometric("bottleneck", 4), FisherLayers(holders=4)])
def test_drawn_layers_have_enough_clients_every_round(strategy: Allocator) -> None:
    profiles = tiers(2, 2, 2, 3, 3, 4, 4, 6)  # 26 places for 24
    for number in range(1, 40):
        assert min(strategy.allocate(number, profiles, public(6)).counts()) >= 4
    with pytest.raises(
        ThinLayer, match="of at least 4 clients: together they train 23 layers, and it takes 24"
    ):
        strategy.allocate(1, tiers(2, 2, 2, 3, 3, 4, 4, 3), public(6))


@pytest.mark.parametrize(
    ("least", "loss", "risk", "groups"), [(3, 0.1, 0.01, 12), (2, 0.3, 1e-6, 1), (5, 0.0, 0.1, 4)]
)
def test_holders_needed_is_the_least_number_that_survives(
    least: int, loss: float, risk: float, groups: int
) -> None:
    def fails(holders: int) -> float:
        return groups * float(binom.cdf(least - 1, holders, 1 - loss))

    needed = holders_needed(least, loss, risk, groups)
    assert fails(needed) <= risk * (1 + 1e-9)
    assert needed == least or fails(needed - 1) > risk


@pytest.mark.parametrize(
    "wrong", [(0, 0.1, 0.1, 1), (3, 1.0, 0.1, 1), (3, -0.1, 0.1, 1), (3, 0.1, 0.0, 1), (3, 0.1, 0.1, 0)]
)
def test_impossible_losses_are_refused(wrong: tuple[int, float, float, int]) -> None:
    with pytest.raises(AllocationError):
        holders_needed(*wrong)


# What every strategy refuses.

EVERY: list[Callable[[], Allocator]] = [
    lambda: Geometric("triangle"), lambda: RandomGeometric("uniform"), FedRA, FisherLayers,
    lambda: RankByCapability([4]),
]  # fmt: skip


@pytest.mark.parametrize("make", EVERY)
def test_nobody_and_no_round_are_refused(make: Callable[[], Allocator]) -> None:
    with pytest.raises(AllocationError, match="no client"):
        make().allocate(1, {}, public(4))
    with pytest.raises(AllocationError, match="no round 0"):
        make().allocate(0, tiers(4), public(4))


@pytest.mark.parametrize("make", EVERY)
def test_who_fits_nothing_is_named(make: Callable[[], Allocator]) -> None:
    known = Public(SEED, CostModel.declared(layout(4), memory=Cost(1000.0)))
    with pytest.raises(NothingFits, match="client-2 cannot train"):
        make().allocate(1, {"client-1": Profile(2000), "client-2": Profile(500)}, known)


@pytest.mark.parametrize("make", [lambda: RandomGeometric("triangle"), FedRA, lambda: Geometric("uniform")])
def test_budgets_that_leave_a_layer_with_nobody_are_refused(make: Callable[[], Allocator]) -> None:
    with pytest.raises(ThinLayer, match="of at least 1 clients"):
        make().allocate(1, tiers(1, 1, 1), public(4))
