"""Adaptive clipping, charged: the split of the noise, the rule of the clip norm, plans and prices."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from accounting import mechanisms, pricing
from accounting.errors import PlanningError
from accounting.events import AdaptiveClipPoissonGaussian, PoissonGaussian
from accounting.planning import Plan, plan
from accounting.what_if import what_if

from .adaptive import RULE, rule
from .conftest import PLAN

DELTA = 1e-5


# --- the split ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("together", "count_noise", "gradients"),
    [
        # By hand: (1 - 1/16)^(-1/2) = 4/sqrt(15); (1 - 1/100)^(-1/2) = 10/sqrt(99);
        # (1/4 - 1/16)^(-1/2) = 4/sqrt(3); (25/36 - 1/9)^(-1/2) = 6/sqrt(21).
        (1.0, 2.0, 1.0327956),
        (1.0, 5.0, 1.0050378),
        (2.0, 2.0, 2.3094011),
        (1.2, 1.5, 1.3093073),
    ],
)
def test_golden_splits(together: float, count_noise: float, gradients: float) -> None:
    found = rule(count_noise_stddev=count_noise).gradient_noise(together)
    assert gradients <= found <= gradients + 1.1e-6  # rounded up


@given(st.floats(0.3, 20), st.floats(0.51, 50))
def test_a_split_never_has_less_noise_than_was_planned(together: float, ratio: float) -> None:
    count = ratio * together
    gradients = rule(count_noise_stddev=count).gradient_noise(together)
    event = AdaptiveClipPoissonGaussian(gradients, count, 0.1, 1, 1.0)
    assert together <= mechanisms.adaptive_clip_noise(event) <= together + 2e-6


@pytest.mark.parametrize("count_noise", [0.5, 0.4, 0.502, 1e-200, 5e-324])
def test_a_count_that_leaves_nothing_for_gradients_is_refused(count_noise: float) -> None:
    with pytest.raises(PlanningError, match=r"take count noise well above 0\.5"):
        rule(count_noise_stddev=count_noise).gradient_noise(1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_quantile": 1.0},
        {"target_quantile": 0.0},
        {"learning_rate": -0.2},
        {"count_noise_stddev": math.inf},
        {"count_noise_stddev": True},
        {"smallest_clip_norm": 200.0},
    ],
)
def test_constants_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(PlanningError):
        rule(**changes)


# --- the rule -----------------------------------------------------------------------------------------------


def test_golden_clip_norms() -> None:
    # 20 drawn of 20 planned, 15 within: b = 7.5 - 2.5 = 5, share .75, C·e^(-.2·.25) = C·.9512294
    assert RULE.next_clip_norm(2.0, 5.0, 20.0) == pytest.approx(2 * 0.9512294, rel=1e-7)
    # an empty batch without noise says nothing: the share is a half, whatever the batch
    assert RULE.next_clip_norm(2.0, 0.0, 20.0) == pytest.approx(2.0, rel=1e-12)
    assert rule(target_quantile=0.9).next_clip_norm(1.0, 0.0, 20.0) == pytest.approx(math.exp(0.08))


@given(st.floats(0.01, 100), st.floats(-1e6, 1e6), st.floats(1, 1e4))
def test_a_clip_norm_never_leaves_its_range(clip_norm: float, noised: float, batch: float) -> None:
    assert 0.01 <= RULE.next_clip_norm(clip_norm, noised, batch) <= 100.0


# --- plans and prices ---------------------------------------------------------------------------------------


def adaptive_plan(**changes: Any) -> Plan:
    return plan(**{"client_id": "client-1", "adaptive_clip": RULE, **PLAN, **changes})


def test_a_plan_costs_its_target_with_its_counts() -> None:
    made = adaptive_plan(adaptive_clip=rule(count_noise_stddev=2.0))
    plain = adaptive_plan(adaptive_clip=None)
    whole = replace(made.round_event(), steps=made.planned_steps)
    assert isinstance(whole, AdaptiveClipPoissonGaussian)
    cost = pricing.epsilon([whole], DELTA)
    assert 0.5 - 0.005 <= cost <= 0.5
    same = PoissonGaussian(plain.noise_multiplier, plain.sample_rate, plain.planned_steps, 1.0)
    assert cost == pytest.approx(pricing.epsilon([same], DELTA), abs=1e-5)
    # Without the count's share it would be cheaper, and with an unshifted count dearer, visibly.
    gradients_alone = replace(same, noise_multiplier=made.noise_multiplier)
    unshifted = replace(whole, count_noise_stddev=1.0)
    assert pricing.epsilon([gradients_alone], DELTA) < cost - 1e-4
    assert pricing.epsilon([unshifted], DELTA) > cost + 1e-3


def test_a_plan_is_refused_where_its_clip_norm_begins_outside_the_range() -> None:
    with pytest.raises(PlanningError, match=r"the clip norm begins at 1000"):
        adaptive_plan(clip_norm=1000.0)


def test_a_plan_survives_its_report() -> None:
    for made in (adaptive_plan(), adaptive_plan(adaptive_clip=None)):
        assert Plan.from_json(made.to_json()) == made
        assert Plan.from_json(made.to_json()).digest() == made.digest()
    with pytest.raises(PlanningError, match="not the fields of a plan"):
        Plan.from_json({**adaptive_plan().to_json(), "surprise": 1})


def test_what_if_shows_the_noise_of_the_gradients() -> None:
    made = adaptive_plan()
    (row,) = what_if(made)
    assert row.noise_multiplier == pytest.approx(made.noise_multiplier, rel=1e-3)
    (refused,) = what_if(adaptive_plan(adaptive_clip=rule(count_noise_stddev=15.0)), target_epsilons=[0.005])
    assert refused.noise_multiplier is None
    assert "leaves the gradients nothing" in str(refused.problem)


def test_rdp_of_both_releases_is_dp_accountings() -> None:
    """dp-accounting composes the two Gaussians of one Poisson sample itself."""
    event = AdaptiveClipPoissonGaussian(1.5, 2.5, 0.05, 40, 1.0)
    both = dp_accounting.ComposedDpEvent(
        [dp_accounting.GaussianDpEvent(1.5), dp_accounting.GaussianDpEvent(2 * 2.5)]
    )
    oracle = RdpAccountant(orders=[2.0, 3.0, 5.0, 9.0, 17.0, 33.0])
    oracle.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(0.05, both), 40))
    ours = pricing.rdp.epsilon(mechanisms.compose([event]), DELTA, (2.0, 3.0, 5.0, 9.0, 17.0, 33.0))
    assert ours == pytest.approx(oracle.get_epsilon(DELTA), rel=1e-9)


def test_one_step_is_the_two_dimensional_mixture() -> None:
    """Brute force: the hockey-stick divergence of the pair (sum, count) on a plane, either way round.

    An example that is drawn moves the sum by the clip norm and the count by a half; mass is counted on a grid of
    cells, so the sum of differences is the divergence up to the rule of midpoints.
    """
    gradients, counts, rate = 1.4, 0.9, 0.3
    event = AdaptiveClipPoissonGaussian(gradients, counts, rate, 1, 1.0)
    width = 0.01
    x = np.arange(-9, 10, width)[:, None]
    y = np.arange(-6, 6.5, width)[None, :]
    out = norm.pdf(x, 0, gradients) * norm.pdf(y, 0, counts)
    present = (1 - rate) * out + rate * norm.pdf(x, 1, gradients) * norm.pdf(y, 0.5, counts)
    for epsilon in (0.1, 0.3, 0.6):
        sides = (
            np.maximum(present - math.exp(epsilon) * out, 0),
            np.maximum(out - math.exp(epsilon) * present, 0),
        )
        exact = max(float(side.sum()) for side in sides) * width**2
        assert pricing.delta_of([event], epsilon) == pytest.approx(exact, abs=2e-5)
    # An unshifted count, whose mean moves by 1, is not what is priced.
    unshifted = (1 - rate) * out + rate * norm.pdf(x, 1, gradients) * norm.pdf(y, 1.0, counts)
    dearer = float(np.maximum(unshifted - math.exp(0.3) * out, 0).sum()) * width**2
    assert dearer > pricing.delta_of([event], 0.3) + 5e-3


@settings(deadline=None, max_examples=10)
@given(st.floats(1.0, 4.0), st.floats(1.0, 10.0), st.integers(1, 40))
def test_composing_rounds_is_composing_steps_whatever_their_clip_norms(
    gradients: float, counts: float, steps: int
) -> None:
    rounds = [AdaptiveClipPoissonGaussian(gradients, counts, 0.1, steps, clip) for clip in (0.5, 1.0, 7.0)]
    whole = AdaptiveClipPoissonGaussian(gradients, counts, 0.1, 3 * steps, 1.0)
    assert mechanisms.compose(rounds) == mechanisms.compose([whole])
