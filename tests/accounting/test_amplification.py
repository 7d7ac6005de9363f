"""Sampling and selection: published numbers, another library, and brute force."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from accounting import amplification, mechanisms, pricing, rdp, shares
from accounting.events import (
    AdaptiveClipPoissonGaussian,
    FixedSizeGaussian,
    Gaussian,
    PoissonGaussian,
    PrivateEvent,
    RepeatedTrials,
    ShuffledGaussian,
    Tuning,
)

DELTA = 1e-5
WHOLE = tuple(float(order) for order in range(2, 65))


def test_golden_poisson_of_any_curve() -> None:
    moved = shares.rounded_norm(1.0, 4096, 2**16, math.exp(-0.5))
    orders = [*range(2, 129), 256]
    curve = [
        1000 * amplification.poisson(lambda alpha: alpha * moved**2 / 2, 0.01, order) for order in orders
    ]
    price = rdp._epsilon(np.array(curve), DELTA, orders)
    assert price == pytest.approx(2.453794, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.5, 20.0), st.floats(1e-4, 1.0), st.integers(2, 40))
def test_the_general_poisson_bound_lies_between_the_exact_gaussian_and_no_amplification(
    noise: float, rate: float, order: int
) -> None:
    bound = amplification.poisson(lambda alpha: alpha / (2 * noise**2), rate, order)
    assert rdp.step_rdp(order, noise, rate) * (1 - 1e-6) - 1e-14 <= bound <= order / (2 * noise**2)


@pytest.mark.parametrize("noise", [0.8, 2.0, 6.0])
@pytest.mark.parametrize("batch", [10, 500])
def test_fixed_size_equals_dp_accounting_at_half_the_noise(noise: float, batch: int) -> None:
    """Half, because its noise multiplier is over the distance between the two sums, which is 2 clip norms."""
    dp = pytest.importorskip("dp_accounting", reason="an oracle; installed with the package")
    from dp_accounting.rdp import rdp_privacy_accountant

    accountant = rdp_privacy_accountant.RdpAccountant(WHOLE, dp.NeighboringRelation.REPLACE_ONE)
    event = dp.SampledWithoutReplacementDpEvent(1000, batch, dp.GaussianDpEvent(noise / 2))
    theirs = accountant.compose(event, 20)._rdp
    ours = 20 * rdp.rdp_curve(FixedSizeGaussian(noise, batch, 1000, 1, 1.0), WHOLE)
    assert ours == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("noise", [1.0, 3.0])
@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
def test_fixed_size_lies_above_the_exact_divergence(noise: float, rate: float) -> None:
    """Brute force: in the batch, one's vector is 1 or -1; not in it, another's is (0)."""
    x = np.arange(-60 * noise, 60 * noise, noise / 50)

    def log_density(own: float) -> np.ndarray:
        out = math.log1p(-rate) if rate < 1 else -math.inf
        mixture = np.logaddexp(out - x**2 / (2 * noise**2), math.log(rate) - (x - own) ** 2 / (2 * noise**2))
        return mixture - math.log(noise * math.sqrt(2 * math.pi))

    for order in (2, 3, 8):
        integrand = order * log_density(1.0) + (1 - order) * log_density(-1.0)
        exact = (np.logaddexp.reduce(integrand) + math.log(noise / 50)) / (order - 1)
        event = FixedSizeGaussian(noise, round(1000 * rate), 1000, 1, 1.0)
        assert exact <= rdp.rdp_curve(event, (float(order),))[0] * (1 + 1e-9)


def test_a_batch_of_all_is_the_plain_gaussian_under_replace_one() -> None:
    whole = FixedSizeGaussian(10.0, 50, 50, 100, 1.0)
    plain = Gaussian(10.0, 100, 1.0, "replace-one")
    assert rdp.rdp_curve(mechanisms.mechanism_of(whole), WHOLE) == pytest.approx(
        rdp.rdp_curve(mechanisms.mechanism_of(plain), WHOLE)
    )
    assert pricing.epsilon([whole], DELTA) > 9.997256  # the exact price; add/remove would be 4.38


def test_a_shuffled_pass_costs_one_release_and_is_not_amplified() -> None:
    passes = ShuffledGaussian(10.0, 100, 1.0)
    assert pricing.epsilon([passes], DELTA) == pytest.approx(9.997256, abs=1e-4)
    as_if_poisson = PoissonGaussian(10.0, 0.01, 100 * 100, 1.0, "replace-one")
    assert pricing.epsilon([passes], DELTA) > 2 * pricing.epsilon([as_if_poisson], DELTA)


def test_adaptive_clipping_is_one_gaussian_on_both_releases() -> None:
    """Andrew et al., Theorem 1: z_delta = (z^-2 - (2 sigma_b)^-2)^-1/2 gives z back."""
    noise, count_stddev = 1.2, 5.0
    split = (noise**-2 - (2 * count_stddev) ** -2) ** -0.5
    event = AdaptiveClipPoissonGaussian(split, count_stddev, 0.05, 30, 1.0)
    assert mechanisms.mechanism_of(event).noise_multiplier == pytest.approx(noise)
    plain = PoissonGaussian(noise, 0.05, 30, 1.0)
    assert pricing.epsilon([event], DELTA) == pytest.approx(pricing.epsilon([plain], DELTA), abs=1e-6)
    ignored = PoissonGaussian(split, 0.05, 30, 1.0)
    assert pricing.epsilon([event], DELTA) > pricing.epsilon([ignored], DELTA)


def test_the_count_moves_by_a_half_and_the_sum_by_one() -> None:
    """Brute force: the Renyi divergence of the pair of releases, at full sampling."""
    gradient, count = 1.5, 0.8
    event = AdaptiveClipPoissonGaussian(gradient, count, 1.0, 1, 1.0)
    exact = 3.0 / 2 * (1 / gradient**2 + 0.5**2 / count**2)
    assert rdp.rdp_curve(mechanisms.mechanism_of(event), (3.0,))[0] == pytest.approx(exact)


# --- tuning ---------------------------------------------------------------------------------------------------

CANDIDATE = PoissonGaussian(1.0, 0.01, 1000, 1.0)


def test_a_fixed_number_of_trials_is_the_composition_of_all() -> None:
    ten = RepeatedTrials(CANDIDATE, 10)
    assert pricing.epsilon([ten], DELTA) == pricing.epsilon([CANDIDATE] * 10, DELTA)
    assert pricing.accountant_for([ten]) == "pld"


@pytest.mark.parametrize("shape", [-0.5, 0.0, 1.0, 3.0])
def test_a_random_number_of_trials_costs_more_than_one_and_less_than_all(shape: float) -> None:
    tuned = Tuning(CANDIDATE, shape, 0.01)
    price = pricing.epsilon([tuned], DELTA)
    assert pricing.epsilon([CANDIDATE], DELTA, "rdp") < price
    assert price < pricing.epsilon([RepeatedTrials(CANDIDATE, math.ceil(tuned.mean_trials))], DELTA)
    assert pricing.accountant_for([tuned]) == "rdp"


def test_more_trials_and_more_searches_cost_more() -> None:
    prices = [pricing.epsilon([Tuning(CANDIDATE, 1.0, gamma)], DELTA) for gamma in (0.5, 0.1, 0.01)]
    assert prices == sorted(prices)
    assert pricing.epsilon([Tuning(CANDIDATE, 1.0, 0.1, steps=2)], DELTA) > prices[1]


@pytest.mark.parametrize("shape", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("gamma", [0.05, 0.5])
def test_the_tuning_bound_lies_above_the_exact_divergence(shape: float, gamma: float) -> None:
    """Brute force: the largest of K Gaussian results, whose mean is 0 or 1, is what a greedy search releases."""
    noise = 3.0
    tuned = Tuning(Gaussian(noise, 1, 1.0), shape, gamma)
    x = np.arange(-40, 41, 0.005)

    def log_density(mean: float) -> np.ndarray:
        """ln of d/dx E[Phi(x)^K]: density times the generating function's derivative."""
        at = (x - mean) / noise
        miss = 1 - (1 - gamma) * ndtr(at)  # f'(y) is (1-gamma) (1 - (1-gamma) y)^(-shape-1), up to a constant
        log_total = -(at**2) / 2 - (shape + 1) * np.log(miss)
        return log_total - np.logaddexp.reduce(log_total) - math.log(0.005)

    for order in (2.0, 4.0, 16.0):
        bound = rdp.rdp_curve(tuned, rdp.ORDERS)[rdp.ORDERS.index(order)]
        for p, q in ((0.0, 1.0), (1.0, 0.0)):
            integrand = order * log_density(p) + (1 - order) * log_density(q)
            exact = (np.logaddexp.reduce(integrand) + math.log(0.005)) / (order - 1)
            assert exact <= bound
            assert exact > order / (2 * noise**2) * 0.05  # a bound of nothing would pass otherwise


@pytest.mark.parametrize(
    "event",
    [
        FixedSizeGaussian(3.0, 10, 1000, 7, 1.0),
        ShuffledGaussian(8.0, 7, 1.0),
        AdaptiveClipPoissonGaussian(3.0, 4.0, 0.05, 7, 1.0),
        RepeatedTrials(PoissonGaussian(4.0, 0.05, 5, 1.0), 3, steps=7),
        Tuning(PoissonGaussian(4.0, 0.05, 5, 1.0), 1.0, 0.1, steps=7),
    ],
)
def test_grouping_does_not_matter(event: PrivateEvent) -> None:
    split = [replace(event, steps=steps) for steps in (2, 4, 1)]
    assert pricing.epsilon(split, DELTA) == pricing.epsilon([event], DELTA)
    assert pricing.epsilon([replace(event, steps=0)], DELTA) == 0.0


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(["fixed-size", "adaptive", "tuning", "shuffled"]),
    st.lists(st.floats(1.0, 10.0), min_size=2, max_size=2),
    st.lists(st.integers(1, 200), min_size=2, max_size=2),
    st.lists(st.integers(1, 100), min_size=2, max_size=2),
)
def test_more_noise_fewer_steps_and_smaller_batches_never_cost_more(
    kind: str, noises: list[float], steps: list[int], batches: list[int]
) -> None:
    def price(noise: float, count: int, batch: int) -> float:
        rate = batch / 1000
        events: dict[str, PrivateEvent] = {
            "fixed-size": FixedSizeGaussian(noise, batch, 1000, count, 1.0),
            "adaptive": AdaptiveClipPoissonGaussian(noise, 5.0, rate, count, 1.0),
            "tuning": Tuning(PoissonGaussian(noise, rate, count, 1.0), 1.0, 0.1),
            "shuffled": ShuffledGaussian(noise, count, 1.0),
        }
        return pricing.epsilon([events[kind]], DELTA, "rdp")

    most_private = price(max(noises), min(steps), min(batches))
    for dearer in (
        price(min(noises), min(steps), min(batches)),
        price(max(noises), max(steps), min(batches)),
        price(max(noises), min(steps), max(batches)),
    ):
        assert most_private <= dearer * (1 + 1e-9)
