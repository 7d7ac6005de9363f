"""Shares of integer noise: published numbers, and every bound against brute force in one dimension."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import skellam

from accounting import independent_rdp, pricing, rdp, shares
from accounting.errors import PricingError
from accounting.events import (
    DistributedDiscreteGaussian,
    DistributedNoise,
    DistributedSkellam,
    PoissonGaussian,
)
from accounting.shares import Sensitivity

ORDERS = np.array([2.0, 3.0, 5.0, 8.0])  # beyond, brute force would leave the range of floats
BETA = math.exp(-0.5)
KINDS = (DistributedDiscreteGaussian, DistributedSkellam)


def golden(kind: type[Any], scale: float, **changes: Any) -> DistributedNoise:
    """100 clients, noise of 10 clip norms together, 2^16 coordinates, 50 rounds."""
    fields = {
        "local_stddev": 10 * scale / math.sqrt(100),
        "scale": scale,
        "clip_norm": 1.0,
        "dimension": 2**16,
        "survivors": 100,
        "max_colluders": 0,
        "modulus_bits": 32,
        "rounding_beta": BETA,
        "unit": "client",
        "sample_rate": 1.0,
        "steps": 50,
        "adjacency": "zero-out",
    }
    event: DistributedNoise = kind(**{**fields, **changes})
    return event


@pytest.mark.parametrize(("beta", "norm"), [(BETA, 1.000614), (1e-15, 1.001533), (0.0, 1.0625)])
def test_golden_rounded_norms(beta: float, norm: float) -> None:
    assert shares.rounded_norm(1.0, 4096, 2**16, beta) == pytest.approx(norm, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "scale", "survivors", "epsilon"),
    [
        (DistributedDiscreteGaussian, 4096.0, 100, 3.545507),
        (DistributedSkellam, 4096.0, 100, 3.545507),
        (DistributedDiscreteGaussian, 4096.0, 70, 4.327187),
        (DistributedSkellam, 4096.0, 70, 4.327187),
        (DistributedDiscreteGaussian, 64.0, 100, 8.902265),
        (DistributedSkellam, 64.0, 100, 8.902285),
    ],
)
def test_golden_epsilons(kind: type[Any], scale: float, survivors: int, epsilon: float) -> None:
    event = golden(kind, scale, survivors=survivors)
    assert pricing.epsilon([event], 1e-6) == pytest.approx(epsilon, abs=1e-6)
    assert pricing.accountant_for([event]) == "rdp"


def test_the_discrete_gaussian_stays_above_the_continuous_one() -> None:
    gaussian = pricing.epsilon([replace_kind(golden(KINDS[0], 4096.0))], 1e-6, "rdp")
    assert gaussian == pytest.approx(3.543050, abs=1e-3)
    assert pricing.epsilon([golden(KINDS[0], 4096.0)], 1e-6) > gaussian


def replace_kind(event: DistributedNoise) -> PoissonGaussian:
    return PoissonGaussian(event.central_noise_multiplier, 1.0, event.steps, event.clip_norm)


@pytest.mark.parametrize("kind", KINDS)
def test_colluders_count_as_lost(kind: type[Any]) -> None:
    lost = pricing.epsilon([golden(kind, 4096.0, survivors=70)], 1e-6)
    assert pricing.epsilon([golden(kind, 4096.0, max_colluders=30)], 1e-6) == lost


# --- brute force ----------------------------------------------------------------------------------------------


def convolved(share: np.ndarray, count: int) -> np.ndarray:
    """The exact probabilities of a sum of shares; all terms positive, so tails keep their relative precision."""
    total = share
    for _ in range(count - 1):
        total = np.convolve(total, share)
    return total


def discrete_gaussian(stddev: float) -> np.ndarray:
    x = np.arange(-math.ceil(36 * stddev), math.ceil(36 * stddev) + 1)
    weights = np.exp(-(x**2) / (2 * stddev**2))
    return weights / weights.sum()


def skellam_share(stddev: float) -> np.ndarray:
    reach = math.ceil(30 * max(stddev, 1) + 30)
    return skellam.pmf(np.arange(-reach, reach + 1), stddev**2 / 2, stddev**2 / 2)


SHARE = {DistributedDiscreteGaussian: discrete_gaussian, DistributedSkellam: skellam_share}


def renyi(p: np.ndarray, q: np.ndarray, order: float) -> float:
    """The divergence of p from q, over the points where neither underflows."""
    both = (p > 1e-250) & (q > 1e-250)
    log_p, log_q = np.log(p[both]), np.log(q[both])
    return float(np.logaddexp.reduce(order * log_p + (1 - order) * log_q)) / (order - 1)


def moved(pmf: np.ndarray, by: int, padding: int) -> np.ndarray:
    return np.concatenate([np.zeros(padding + by), pmf, np.zeros(padding - by)])


@pytest.mark.parametrize("stddev", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("by", [1, 3])
def test_the_discrete_gaussian_bound_lies_above_the_exact_divergence(
    stddev: float, count: int, by: int
) -> None:
    pmf = convolved(discrete_gaussian(stddev), count)
    bound = shares.discrete_gaussian_rdp(ORDERS, stddev, count, 1, Sensitivity(by, by))
    exact = np.array([renyi(moved(pmf, by, by), moved(pmf, 0, by), order) for order in ORDERS])
    assert np.all(exact <= bound * (1 + 1e-9))
    assert np.all(bound <= exact * 1.001 + 1e-3)  # and not far above: at stddev 1, tau is 6e-4


def test_below_one_the_sum_is_worse_than_a_gaussian_and_tau_knows() -> None:
    """The reason for refusing local_stddev < 1, and for never dropping tau."""
    pmf = convolved(discrete_gaussian(0.4), 4)
    exact = renyi(moved(pmf, 1, 1), moved(pmf, 0, 1), 2.0)
    assert exact > 2 / 2 / (4 * 0.4**2)
    assert exact <= shares.discrete_gaussian_rdp(np.array([2.0]), 0.4, 4, 1, Sensitivity(1, 1))[0]


@pytest.mark.parametrize("stddev", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("by", [1, 3])
def test_the_skellam_bound_lies_above_the_exact_divergence(stddev: float, count: int, by: int) -> None:
    pmf = convolved(skellam_share(stddev), count)
    bound = shares.skellam_rdp(ORDERS, count * stddev**2, Sensitivity(by, by))
    exact = np.array([renyi(moved(pmf, by, by), moved(pmf, 0, by), order) for order in ORDERS])
    assert np.all(exact <= bound * (1 + 1e-9))
    if count * stddev**2 >= 16:
        assert np.all(bound <= exact * 1.5)


def one_dimensional(kind: type[Any], **changes: Any) -> DistributedNoise:
    fields = {
        "local_stddev": 2.0,
        "dimension": 1,
        "survivors": 3,
        "max_colluders": 1,
        "unit": "example",
        "adjacency": "add-remove",
        "rounding_beta": 0.0,
        "steps": 1,
    }
    return golden(kind, 3.0, **{**fields, **changes})


def rounded(value: float, noise: np.ndarray, padding: int) -> np.ndarray:
    """The noise, moved by a real value that was rounded at random without bias."""
    floor = math.floor(value)
    share = value - floor
    return (1 - share) * moved(noise, floor, padding) + share * moved(noise, floor + 1, padding)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(KINDS),
    st.floats(0, 3),
    st.floats(-1, 1),
    st.sampled_from([0.05, 0.5, 1.0]),
)
def test_the_whole_price_of_a_step_lies_above_the_exact_divergence(
    kind: type[Any], others: float, own: float, rate: float
) -> None:
    """An example's vector joins a sum that others fill: rounded together, noised in shares, sampled."""
    event = one_dimensional(kind, sample_rate=rate)
    noise = convolved(SHARE[kind](event.local_stddev), event.honest)
    without = rounded(others * event.scale, noise, 20)
    present = rounded((others + own) * event.scale, noise, 20)
    mixed = (1 - rate) * without + rate * present
    bound = rdp.rdp_curve(event, tuple(ORDERS))
    for order, limit in zip(ORDERS, bound, strict=True):
        assert max(renyi(mixed, without, order), renyi(without, mixed, order)) <= limit * (1 + 1e-9)
    for epsilon in (0.5, 1.0, 2.0):
        delta = float(np.maximum(mixed - math.exp(epsilon) * without, 0).sum())
        assert delta <= pricing.delta_of([event], epsilon) * (1 + 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_replace_one_covers_a_vector_and_its_opposite(kind: type[Any]) -> None:
    event = one_dimensional(kind, adjacency="replace-one", sample_rate=0.5)
    noise = convolved(SHARE[kind](event.local_stddev), event.honest)
    with_one, with_other = rounded(event.scale, noise, 9), rounded(-event.scale, noise, 9)
    neither = rounded(0.0, noise, 9)
    p, q = 0.5 * neither + 0.5 * with_one, 0.5 * neither + 0.5 * with_other
    for order, limit in zip(ORDERS, rdp.rdp_curve(event, tuple(ORDERS)), strict=True):
        assert renyi(with_one, with_other, order) <= limit
        assert renyi(p, q, order) <= limit


# --- what changes the price -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dearer",
    [
        {"survivors": 60},
        {"max_colluders": 40},
        {"scale": 64.0, "local_stddev": 64.0},
        {"dimension": 2**18},
        {"rounding_beta": 0.0},
        {"clip_norm": 1.5},
        {"steps": 60},
        {"adjacency": "replace-one"},
    ],
)
def test_whatever_weakens_the_noise_costs_more(kind: type[Any], dearer: dict[str, Any]) -> None:
    event = golden(kind, 4096.0)
    assert pricing.epsilon([replace(event, **dearer)], 1e-6) > pricing.epsilon([event], 1e-6)


def test_unchecked_rounding_is_paid_from_delta() -> None:
    unchecked = golden(KINDS[0], 4096.0, unit="example", adjacency="add-remove", rounding_beta=1e-15)
    checked = golden(KINDS[0], 4096.0, rounding_beta=1e-15)
    assert pricing.epsilon([unchecked], 1e-6) > pricing.epsilon([checked], 1e-6)
    assert pricing.epsilon([unchecked], 1e-6) == pytest.approx(pricing.epsilon([checked], 1e-6 - 50e-15))
    with pytest.raises(PricingError, match="all of it"):
        pricing.epsilon([replace(unchecked, steps=10**9)], 1e-6)


def test_under_replace_one_two_vectors_are_rounded() -> None:
    """The bound on either's norm may fail: 6e8 steps at 1e-15 take 1.2e-6 of delta, not 6e-7."""
    event = golden(
        KINDS[1], 4096.0, unit="example", adjacency="replace-one", rounding_beta=1e-15, steps=6 * 10**8
    )
    for price in (pricing.epsilon, independent_rdp.epsilon):
        with pytest.raises(PricingError, match="all of"):
            price([event], 1e-6)
        assert price([replace(event, adjacency="add-remove")], 1e-6) > 0


def test_noise_shares_compose_with_gaussians_by_rdp() -> None:
    event = golden(KINDS[1], 4096.0, unit="example", adjacency="add-remove", rounding_beta=0.0)
    local = PoissonGaussian(2.0, 0.1, 20, 1.0)
    both = pricing.epsilon([event, local], 1e-6)
    assert both == pricing.epsilon([local, event], 1e-6)
    assert both > max(pricing.epsilon([event], 1e-6), pricing.epsilon([local], 1e-6, "rdp"))
    assert pricing.accountant_for([event, local]) == "rdp"
    with pytest.raises(PricingError, match="PLD prices"):
        pricing.epsilon([event, local], 1e-6, "pld")
    with pytest.raises(PricingError, match="different adjacencies"):
        pricing.epsilon([golden(KINDS[1], 4096.0), local], 1e-6)
    client = golden(KINDS[1], 64.0, adjacency="replace-one")
    with pytest.raises(PricingError, match="different units"):
        pricing.epsilon([client, replace(local, adjacency="replace-one")], 1e-6)
