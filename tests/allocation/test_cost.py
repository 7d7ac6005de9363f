"""What a client can hold: the numbers, what is fitted to measurements, and clear refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedlora_priv.allocation import AllocationError, Cost, CostModel, Measurement, NothingFits, Profile
from fedlora_priv.allocation.layers import layers_of
from fedlora_priv.methods.layout import Layout, LoraModule
from tests.allocation.lab import layout

A_LAYER = 2 * 4 * (6 + 5)  # query and value at rank 4
HEAD = 6


def test_layers_are_in_the_order_of_the_forward_pass() -> None:
    layers = layers_of(layout(12))
    assert [layer.name for layer in layers] == [f"encoder.layer.{i}" for i in range(12)]
    assert [m.name.split(".")[-1] for m in layers[10].modules] == ["query", "value"]
    assert [layer.coordinates(rank) for layer in layers[:1] for rank in (1, 4, 9)] == [22, A_LAYER, A_LAYER]


def test_layers_that_cannot_be_told_are_refused() -> None:
    lone = LoraModule("lm_head", 4, 4, 1, 1.0)
    with pytest.raises(AllocationError, match="lm_head does not tell its layer"):
        layers_of(Layout((lone,), {}))
    two = [LoraModule(f"{stack}.block.0.q", 4, 4, 1, 1.0) for stack in ("encoder", "decoder")]
    with pytest.raises(AllocationError, match="two stacks"):
        layers_of(Layout(tuple(two), {}))
    with pytest.raises(AllocationError, match="no adapted layer"):
        CostModel.declared(Layout((), {}))


def test_memory_and_time_are_what_the_numbers_say() -> None:
    cost = replace(
        CostModel.declared(layout(6), memory=Cost(1000.0, 50.0, 3.0), step=Cost(0.5, 0.1, 0.001)), steps=10
    )
    part = [1, 4]
    assert cost.crossed(part) == 5
    assert cost.coordinates(part, 4) == HEAD + 2 * A_LAYER
    assert cost.memory_bytes(part, 4) == 1000 + 5 * 50 + 3 * (HEAD + 2 * A_LAYER)
    trained, whole = HEAD + 2 * A_LAYER, HEAD + 6 * A_LAYER
    wanted = 10 * (0.5 + 5 * 0.1 + 0.001 * trained) / 2 + 4 * 2 * whole / 1000
    assert cost.seconds(Profile(speed=2.0, bytes_per_s=1000.0), part, 4) == pytest.approx(wanted)


@pytest.mark.parametrize("part", [[0], [5], [0, 5], [2, 3, 4], list(range(6))])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_what_fits_is_what_stays_within_every_limit(part: list[int], rank: int) -> None:
    cost = replace(
        CostModel.declared(layout(6), memory=Cost(1000.0, 50.0, 3.0), step=Cost(0.5, 0.1, 0.001)),
        steps=10, round_s=10.0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        profile = Profile(rng.uniform(1000, 3000), rng.uniform(0.5, 2), rng.uniform(300, 2000), 4, 3)
        fits = cost.fits(profile, part, rank)
        seen.add(fits)
        assert fits == (
            cost.memory_bytes(part, rank) <= profile.memory_bytes
            and cost.seconds(profile, part, rank) <= 10.0
            and len(part) <= 4
            and rank <= 3
        )
    assert seen == ({False} if len(part) > 4 or rank > 3 else {False, True})


def test_a_budget_holds_wherever_its_layers_are_and_one_more_does_not() -> None:
    cost = CostModel.declared(layout(7, uneven=True), memory=Cost(100.0, 50.0, 3.0))
    rng = np.random.default_rng(0)
    for memory in (1100, 1500, 2000, 2600, 3300):
        profile = Profile(memory)
        budget = cost.budget(profile)
        for _ in range(50):
            assert cost.fits(profile, sorted(rng.choice(7, budget, replace=False)), 4)
        others = sorted(range(1, 7), key=lambda i: -cost.layers[i].coordinates(4))
        assert not cost.fits(profile, [0, *others[:budget]], 4) or budget == 7


def test_measurements_give_the_numbers_back() -> None:
    true = CostModel.declared(layout(6), memory=Cost(1e9, 5e7, 40.0), step=Cost(0.5, 0.1, 2e-4))
    runs = [
        Measurement(part, rank, true.memory_bytes(part, rank), true.seconds(Profile(), part, rank))
        for part, rank in (((5,), 4), ((0,), 4), (tuple(range(6)), 4), ((0, 5), 2), ((2, 3), 1))
    ]
    found = CostModel.measured(layout(6), runs)
    for ours, theirs in ((found.memory, true.memory), (found.step, true.step)):
        assert (ours.fixed, ours.crossed, ours.trained) == pytest.approx(
            (theirs.fixed, theirs.crossed, theirs.trained), rel=1e-6
        )
    with pytest.raises(AllocationError, match="do not tell what a layer costs"):
        CostModel.measured(layout(6), runs[:2])
    with pytest.raises(AllocationError, match="do not tell what a layer costs"):
        CostModel.measured(layout(6), [])


def test_no_number_is_negative_whatever_was_measured() -> None:
    rng = np.random.default_rng(0)
    parts = [((5,), 4), ((0,), 4), (tuple(range(6)), 4), ((0, 5), 2)]
    for _ in range(20):
        runs = [Measurement(part, rank, *rng.uniform(1, 2, 2)) for part, rank in parts]
        found = CostModel.measured(layout(6), runs)
        for cost in (found.memory, found.step):
            assert min(cost.fixed, cost.crossed, cost.trained) >= 0


def test_a_profile_that_fits_nothing_says_what_is_missing() -> None:
    cost = CostModel.declared(layout(6), memory=Cost(1000.0, 500.0, 1.0), step=Cost(1.0))
    with pytest.raises(
        NothingFits, match=r"phone cannot train one layer: it needs 4,094 bytes and has 2,000"
    ):
        cost.budget(Profile(2000), "phone")
    with pytest.raises(NothingFits, match=r"\(the top one would fit\)"):
        cost.budget(Profile(2000), "phone")
    with pytest.raises(NothingFits, match=r"it takes 10\.0 s of 2\.0"):
        replace(cost, round_s=2.0).budget(Profile(speed=0.1), "phone")
    with pytest.raises(NothingFits, match="phone cannot train all layers at rank 2"):
        cost.largest_rank(Profile(2000), [4, 2], "phone")
    assert cost.largest_rank(Profile(1000 + 6 * 500 + HEAD + 6 * 22 * 2), [1, 2, 4]) == 2


@pytest.mark.parametrize("wrong", ["memory_bytes", "speed", "bytes_per_s", "max_layers", "max_rank"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_a_profile_of_nothing_is_refused(wrong: str, value: float) -> None:
    with pytest.raises(AllocationError, match=f"{wrong} must be positive"):
        Profile(**{wrong: value})
