"""mu-GDP and attack rates: exact where the Gaussian is, dominating where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from accounting import pricing
from accounting.errors import PricingError
from accounting.events import FixedSizeGaussian, Gaussian, NonPrivate, PoissonGaussian
from accounting.gdp import gaussian_mu, tpr_at_fpr
from accounting.losses import gaussian_delta

DELTA = 1e-5


@pytest.mark.parametrize(
    ("noise", "steps", "mu"), [(10.0, 100, 1.0), (2.0, 1, 0.5), (4.0, 64, 2.0), (20.0, 1, 0.05)]
)
def test_mu_of_gaussians_is_exact_to_a_thousandth(noise: float, steps: int, mu: float) -> None:
    assert mu <= gaussian_mu([Gaussian(noise, steps, 1.0)]) <= 1.001 * mu


def test_replace_one_doubles_mu() -> None:
    assert gaussian_mu([Gaussian(10.0, 100, 1.0, "replace-one")]) == pytest.approx(2.0, rel=1e-3)


@settings(deadline=None, max_examples=4, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(2.0, 6.0), st.floats(0.01, 0.2), st.integers(1, 300))
def test_mu_dominates_the_whole_curve(noise: float, rate: float, steps: int) -> None:
    events = [PoissonGaussian(noise, rate, steps, 1.0)]
    mu = gaussian_mu(events)
    assert mu <= 1.002 * steps**0.5 / noise + 0.02  # sampling never makes it worse, but for the grid
    for delta in (0.01, 1e-5, 2e-9):
        epsilon = pricing.epsilon(events, delta)
        if epsilon > 0:
            assert delta <= gaussian_delta(np.array([epsilon]), 1 / mu)[0] * (1 + 1e-6)


def test_the_smallest_mu_is_much_above_the_central_limit() -> None:
    """Opacus' GDP accountant has mu = q sqrt(T (e^(1/z²) - 1)) = .0131 for one step at z=1, q=.01."""
    assert gaussian_mu([PoissonGaussian(1.0, 0.01, 1, 1.0)]) > 5 * 0.0131


@pytest.mark.parametrize("fpr", [0.0, 1e-4, 0.01, 0.3, 0.5, 0.9, 1.0])
def test_attack_rates_of_a_gaussian_are_exact(fpr: float) -> None:
    exact = norm.cdf(norm.ppf(fpr) + 1.0)
    bound = tpr_at_fpr([Gaussian(10.0, 100, 1.0)], fpr)
    assert exact <= bound <= exact + 1e-4


def test_the_best_attack_on_a_sampled_step_stays_below_the_bound() -> None:
    """Brute force: threshold the release; present with probability `rate`, its mean is 1 instead of 0."""
    noise, rate = 1.0, 0.2
    for threshold in (-1.0, 0.0, 1.0, 2.0, 4.0):
        fpr = float(norm.sf(threshold / noise))
        tpr = (1 - rate) * fpr + rate * norm.sf((threshold - 1) / noise)
        bound = tpr_at_fpr([PoissonGaussian(noise, rate, 1, 1.0)], fpr)
        assert tpr <= bound
        if threshold >= 1:  # above a rate of 1/2 an attack on the absent one is better
            assert bound <= tpr + 1e-3


def test_attack_rates_are_bounded_by_rdp_where_pld_has_no_price() -> None:
    events = [FixedSizeGaussian(8.0, 20, 1000, 10, 1.0)]
    assert 0.01 < tpr_at_fpr(events, 0.01) < 0.5
    with pytest.raises(PricingError, match="PLD"):
        gaussian_mu(events)


def test_nothing_released_gives_nothing_away() -> None:
    assert gaussian_mu([]) == 0.0
    assert gaussian_mu([Gaussian(1e10, 1, 1.0)]) == 0.0  # delta is below 1e-9 at every epsilon
    assert 1e-6 <= gaussian_mu([Gaussian(1e6, 1, 1.0)]) < 1e-4  # the grid of 1e-4 hides the rest
    assert tpr_at_fpr([], 0.25) == 0.25


@pytest.mark.parametrize("fpr", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(fpr: float) -> None:
    with pytest.raises(PricingError, match="false positive rate"):
        tpr_at_fpr([], fpr)


def test_what_has_no_price_has_no_mu() -> None:
    with pytest.raises(PricingError, match="outside the guarantee"):
        gaussian_mu([NonPrivate("loss", "debugging")])
    with pytest.raises(PricingError, match="round-off"):
        gaussian_mu([Gaussian(1.0, 1, 1.0)], smallest_delta=1e-12)
