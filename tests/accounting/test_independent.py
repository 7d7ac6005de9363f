"""The audit's own accountant: bounds that hold, that are narrow, and that owe nothing to the first one."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from accounting import pricing
from accounting.errors import PricingError
from accounting.events import (
    AdaptiveClipPoissonGaussian,
    DistributedSkellam,
    FixedSizeGaussian,
    Gaussian,
    NonPrivate,
    PoissonGaussian,
    RepeatedTrials,
    ShuffledGaussian,
)
from accounting.independent import Bracket, bracket, can_price, gaussian_epsilon
from accounting.loss_grid import Direction, Step, cells, coarser, finer, loss, outcome_at

REPOSITORY = Path(__file__).parents[2]
DELTA = 1e-5


def exact_delta(step: Step, direction: Direction, epsilon: float) -> float:
    """Delta of one step, from the masses beyond the outcome whose loss is epsilon. Brute force, no grid."""
    z, q, replace = step
    mass = norm.sf if direction == "remove" else norm.cdf
    x = float(outcome_at(step, np.array([epsilon if direction == "remove" else -epsilon]))[0])
    p = (1 - q) * mass(x / z) + q * mass((x - 1) / z)
    other = (1 - q) * mass(x / z) + q * mass((x + 1) / z) if replace else mass(x / z)
    return float(p - math.exp(epsilon) * other if direction == "remove" else other - math.exp(epsilon) * p)


def solve(delta_at: object, delta: float) -> float:
    low, high = 0.0, 200.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


# --- golden values ---


@pytest.mark.parametrize(
    ("z", "q", "steps", "prv"),
    [
        (1.0, 0.01, 10_000, (6.186385, 6.187712, 6.189040)),
        (0.8, 0.004, 15_000, (4.378217, 4.379475, 4.380733)),
    ],
)
def test_bounds_lie_within_those_of_prv_accountant(
    z: float, q: float, steps: int, prv: tuple[float, float, float]
) -> None:
    low, estimate, up = prv
    found = bracket([PoissonGaussian(z, q, steps, 1.0)], DELTA, tolerance=1e-4)
    assert low < found.low < estimate < found.high < up
    assert found.high - found.low < 1e-3


@pytest.mark.parametrize(
    ("event", "pld"),
    [
        (PoissonGaussian(1.0, 0.01, 10_000, 1.0), 6.187745),
        (PoissonGaussian(0.8, 0.004, 15_000, 1.0), 4.379534),
        (PoissonGaussian(1.0, 0.01, 1, 1.0), 0.199450),
        (PoissonGaussian(0.4, 0.02, 1000, 1.0), 48.761186),
        (PoissonGaussian(1.0, 0.01, 10_000, 1.0, "replace-one"), 10.880807),
        (Gaussian(10.0, 100, 1.0), 4.377179),
        (Gaussian(10.0, 100, 1.0, "replace-one"), 9.997256),
    ],
)
def test_the_certified_prices_are_inside_or_just_above(event: PoissonGaussian | Gaussian, pld: float) -> None:
    """PLD is an upper bound too: it may lie above the truth by its grid, never below."""
    found = bracket([event], DELTA)
    assert found.low - 1e-6 < pld < found.high + 2e-4
    assert found.high - found.low <= 1e-3 * found.high


def test_where_pld_rounds_up_most_the_truth_is_known_better() -> None:
    """z=20, q=.01, T=1000: PLD says .045551; CLT, which is good here, .045274."""
    found = bracket([PoissonGaussian(20.0, 0.01, 1000, 1.0)], DELTA)
    assert 0.045274 < found.low < found.high < 0.045551


def test_the_gaussian_alone_is_exact() -> None:
    assert gaussian_epsilon(1.0, DELTA) == pytest.approx(4.377178, abs=1e-6)
    found = bracket([Gaussian(10.0, 99, 1.0), PoissonGaussian(10.0, 1.0, 1, 3.0)], DELTA)
    assert found.low == found.high == pytest.approx(4.377178, abs=1e-6)
    # Beyond any grid: a thousand of noise multiplier .1.
    wild = bracket([Gaussian(0.1, 1000, 1.0)], DELTA)
    mu = math.sqrt(1000) / 0.1
    assert wild.low == pytest.approx(mu**2 / 2 + mu * norm.isf(DELTA), rel=1e-3)


@pytest.mark.parametrize(("z", "q", "steps"), [(1.7, 0.03, 700), (0.7, 0.2, 40)])
def test_bounds_meet_those_of_prv_accountant_itself(z: float, q: float, steps: int) -> None:
    """The library, where it is installed: two brackets of one number must overlap, and ours is the narrower."""
    prv = pytest.importorskip("prv_accountant", reason="prv-accountant is not installed")
    mechanism = prv.PoissonSubsampledGaussianMechanism(noise_multiplier=z, sampling_probability=q)
    theirs = prv.PRVAccountant(
        prvs=[mechanism], max_self_compositions=[steps], eps_error=0.02, delta_error=1e-10
    )
    low, _, up = theirs.compute_epsilon(delta=DELTA, num_self_compositions=[steps])
    found = bracket([PoissonGaussian(z, q, steps, 1.0)], DELTA)
    assert low < found.high
    assert found.low < up
    assert found.high - found.low < up - low


# --- against brute force ---


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([0.3, 0.5, 1.0, 2.0, 5.0]),
    st.sampled_from([0.001, 0.01, 0.1, 0.5, 0.9]),
    st.booleans(),
    st.sampled_from([1e-3, 1e-5, 1e-8, 1e-12]),
)
def test_one_step_is_bracketed(z: float, q: float, replace: bool, delta: float) -> None:
    step = Step(z, q, replace)
    exact = max(solve(lambda at, way=way: exact_delta(step, way, at), delta) for way in ("remove", "add"))
    found = bracket([PoissonGaussian(z, q, 1, 1.0, "replace-one" if replace else "add-remove")], delta)
    assert found.low <= exact + 1e-9
    assert exact - 1e-9 <= found.high


@pytest.mark.parametrize("direction", ["remove", "add"])
@pytest.mark.parametrize("replace", [False, True])
def test_two_unlike_steps_are_bracketed(direction: Direction, replace: bool) -> None:
    """delta of two steps is the mean, over the first one's outcome, of delta at what epsilon is left."""
    first, second = Step(0.7, 0.2, replace), Step(1.5, 0.4, replace)
    x = np.linspace(-6.0, 7.0, 26_001)
    p = (1 - 0.2) * norm.pdf(x, scale=0.7) + 0.2 * norm.pdf(x, 1.0, 0.7)
    q = norm.pdf(x, scale=0.7)
    if replace:
        q = (1 - 0.2) * q + 0.2 * norm.pdf(x, -1.0, 0.7)
    losses = loss(first, x)
    weights, left = (p, losses) if direction == "remove" else (q, -losses)
    knots = np.linspace(left.min() - 1, left.max() + 1, 4001)

    def both(epsilon: float) -> float:
        deltas = np.array([exact_delta(second, direction, epsilon - knot) for knot in knots[::10]])
        return float(np.trapezoid(weights * np.interp(left, knots[::10], deltas), x))

    found = _one_direction((first, second), direction, 1e-3)
    assert both(found.low - 2e-3) > 1e-3 > both(found.high + 2e-3)
    assert found.high - found.low < 0.01


def _one_direction(steps: tuple[Step, ...], direction: Direction, delta: float) -> Bracket:
    from accounting.independent import _Composition, _Saddle

    saddle = _Saddle.of(tuple((step, 1) for step in sorted(steps)), direction, delta)
    side = _Composition.of(saddle, 1e-3)
    return Bracket(side.lower_epsilon(), side.upper_epsilon())


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([0.01, 0.2, 0.7]),
    st.sampled_from(["remove", "add"]),
    st.booleans(),
    st.sampled_from([0.3, 0.05, 0.01]),
)
def test_the_grid_tells_more_or_less_than_the_step_at_every_threshold(
    z: float, q: float, direction: Direction, replace: bool, interval: float
) -> None:
    step = Step(z, q, replace)
    for atoms, sign in (
        (finer(step, direction, interval, 7.0), 1),
        (coarser(step, direction, interval, 7.0), -1),
    ):
        losses = atoms.offset + interval * (atoms.first + np.arange(len(atoms.mass)))
        assert 1 - 1e-9 < atoms.mass.sum() + atoms.infinite < 1 + 1e-9
        for epsilon in np.linspace(-1.5, 3.0, 19):
            told = float((atoms.mass * np.maximum(-np.expm1(epsilon - losses), 0)).sum()) + atoms.infinite
            assert sign * (told - exact_delta(step, direction, float(epsilon))) > -1e-10


@given(st.sampled_from([0.3, 1.0, 4.0]), st.sampled_from([1e-4, 0.3, 0.99]), st.booleans())
def test_losses_and_outcomes_are_inverse(z: float, q: float, replace: bool) -> None:
    step = Step(z, q, replace)
    outcomes = np.linspace(-3 * z, 1 + 5 * z, 50)
    np.testing.assert_allclose(outcome_at(step, loss(step, outcomes)), outcomes, atol=1e-6)


def test_cells_hold_all_the_mass() -> None:
    for direction in ("remove", "add"):
        p, q, below, above = cells(Step(1.0, 0.3), direction, np.linspace(-0.3, 0.3, 50))
        assert p.sum() + below + above == pytest.approx(1.0, abs=1e-14)
        assert 0 < q.sum() < 1


# --- against the first accountant ---


@settings(deadline=None, max_examples=8)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.9, 2.0, 6.0]), st.sampled_from([0.02, 0.3, 1.0]), st.integers(1, 200)),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["add-remove", "replace-one"]),
)
def test_mixed_ledgers_are_priced_alike(parts: list[tuple[float, float, int]], adjacency: str) -> None:
    events = [PoissonGaussian(z, q, steps, 1.0, adjacency) for z, q, steps in parts]
    found = bracket(events, DELTA)
    certified = pricing.epsilon(events, DELTA)
    assert found.low <= certified <= 1.005 * found.high + 0.01


def test_order_and_grouping_do_not_matter() -> None:
    events = [PoissonGaussian(2.0, 0.1, 5, 1.0), PoissonGaussian(1.0, 0.02, 7, 1.0), Gaussian(9.0, 3, 1.0)]
    whole = bracket(events, DELTA)
    assert all(bracket(order, DELTA) == whole for order in itertools.permutations(events))
    split = [PoissonGaussian(2.0, 0.1, 2, 1.0), *events[1:], PoissonGaussian(2.0, 0.1, 3, 1.0)]
    assert bracket(split, DELTA) == whole


def test_what_else_is_gaussian_in_disguise() -> None:
    plain = PoissonGaussian(2.0, 0.1, 12, 1.0)
    assert bracket([RepeatedTrials(PoissonGaussian(2.0, 0.1, 4, 1.0), 3)], DELTA) == bracket([plain], DELTA)
    assert bracket([ShuffledGaussian(4.0, 3, 1.0)], DELTA) == bracket([Gaussian(2.0, 3, 1.0)], DELTA)
    # PRIVACY.md: z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2) spends, with the count, what z does alone.
    with_count = (2.0**-2 - (2 * 5.0) ** -2) ** -0.5
    adaptive = bracket([AdaptiveClipPoissonGaussian(with_count, 5.0, 0.1, 12, 1.0)], DELTA)
    assert adaptive.high == pytest.approx(bracket([plain], DELTA).high, rel=1e-9)


# --- refusals ---


def skellam() -> DistributedSkellam:
    return DistributedSkellam(10.0, 64.0, 1.0, 1024, 10, 1, 20, 0.0, "example", 1.0, 5, "add-remove")


@pytest.mark.parametrize(
    "event", [NonPrivate("loss", "why"), FixedSizeGaussian(1.0, 10, 100, 1, 1.0), skellam()]
)
def test_what_has_no_second_price_is_refused(event: object) -> None:
    assert not can_price(event)
    with pytest.raises(PricingError, match="no price here"):
        bracket([event], DELTA)


def test_mixed_adjacencies_are_refused() -> None:
    with pytest.raises(PricingError, match="adjacencies"):
        bracket([Gaussian(1.0, 1, 1.0), Gaussian(1.0, 1, 1.0, "replace-one")], DELTA)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, float("nan")])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    with pytest.raises(PricingError, match="delta"):
        bracket([Gaussian(1.0, 1, 1.0)], delta)


def test_nothing_costs_nothing() -> None:
    assert bracket([], DELTA) == bracket([Gaussian(1.0, 0, 1.0)], DELTA) == Bracket(0.0, 0.0)
    assert bracket([PoissonGaussian(1e4, 0.01, 1, 1.0)], 0.5) == Bracket(0.0, 0.0)


@pytest.mark.parametrize(
    "event",
    [
        PoissonGaussian(0.01, 0.3, 10**7, 1.0),
        PoissonGaussian(1e6, 0.999, 10**6, 1.0),
        PoissonGaussian(0.01, 1e-12, 1, 1.0, "replace-one"),
        PoissonGaussian(1.0, 1e-6, 10**6, 1.0),
    ],
)
def test_beyond_its_reach_the_bounds_are_wide_and_still_ordered(event: PoissonGaussian) -> None:
    """Whatever an edited ledger says, this ends, in seconds, and without a warning."""
    found = bracket([event], 1e-9, tolerance=0.1)
    assert 0 <= found.low <= found.high


# --- independence ---


def test_it_loads_nothing_of_the_first_accountant() -> None:
    script = "import json, sys, accounting.independent\nfrom accounting.events import *\n" + (
        "accounting.independent.bracket([PoissonGaussian(2.0, 0.1, 5, 1.0)], 1e-5)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    ours = {name for name in loaded if name.startswith("accounting.")}
    assert loaded.isdisjoint({"dp_accounting", "accounting.pricing", "accounting.rdp", "accounting.planning"})
    assert {name for name in ours if not name.endswith("events") and "event_" not in name} == {
        "accounting.errors",
        "accounting.independent",
        "accounting.loss_grid",
        "accounting.loss_sum",
    }
