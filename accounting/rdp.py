"""Rényi differential privacy of every mechanism, from the formulas alone.

An upper bound, looser than PLD where both have a price, that costs microseconds once a mechanism's curve is known.
It is the only way to a price for shares of integer noise (`shares.py`), for batches of fixed size and for
tuning (`amplification.py`); those have theorems at whole orders only, so their curves are infinite elsewhere.

Source: Mironov, Talwar, Zhang 2019, "Rényi differential privacy of the sampled Gaussian mechanism"
(Theorem 5, and section 3.3 for whole orders); Canonne, Kamath, Steinke 2020, Proposition 12, for the
conversion to (epsilon, delta).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from . import amplification, shares
from .errors import PricingError
from .events import DistributedDiscreteGaussian, DistributedSkellam, FixedSizeGaussian, Tuning
from .mechanisms import AnyMechanism, Mechanism, Parts, charged_delta, counted

Floats = NDArray[np.float64]

# Low orders win at large epsilon, high ones at small epsilon; every order gives a valid bound.
ORDERS: tuple[float, ...] = (
    *(1 + k / 100 for k in range(1, 10)),
    *(1 + k / 20 for k in range(2, 80)),
    *(5 + k / 4 for k in range(24)),
    *(float(order) for order in (*range(11, 65), *range(66, 128, 2), 128, 192, 256, 512, 1024)),
)


def epsilon(parts: Parts, delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Epsilon at `delta` of all the steps together, by RDP.

    Guarantee: an upper bound under the mechanisms' adjacency, at every order, hence at the best one.

    Raises:
        PricingError: unchecked rounding bounds (`rounding_beta`) alone use up delta.
    """
    if not parts:
        return 0.0
    return _epsilon(total_curve(parts, orders), _left(parts, delta), orders)


def delta(parts: Parts, epsilon: float, orders: Sequence[float] = ORDERS) -> float:
    """Delta at `epsilon` of all the steps together, by RDP: at most 1."""
    if not parts:
        return 0.0
    alpha = np.asarray(orders, dtype=np.float64)
    excess = total_curve(parts, orders) - epsilon + np.log1p(-1 / alpha)
    log_delta = float(((alpha - 1) * excess - np.log(alpha)).min())
    return min(1.0, math.exp(min(log_delta, 0.0)) + charged_delta(parts))


def total_curve(parts: Parts, orders: Sequence[float] = ORDERS) -> Floats:
    """RDP of all the steps together at every order, float64 (len(orders),)."""
    total = np.zeros(len(orders))
    for mechanism, steps in parts:
        total += steps * rdp_curve(mechanism, tuple(orders))
    return total


def _epsilon(curve: Floats, delta: float, orders: Sequence[float]) -> float:
    """The best order's epsilon."""
    alpha = np.asarray(orders, dtype=np.float64)
    bound = curve - (math.log(delta) + np.log(alpha)) / (alpha - 1) + np.log1p(-1 / alpha)
    return max(0.0, float(bound.min()))


def _left(parts: Parts, delta: float) -> float:
    """What unchecked rounding bounds leave of delta."""
    charged = charged_delta(parts)
    if charged >= delta:
        raise PricingError(
            f"rounding bounds that may fail (rounding_beta) take {charged:.3g} of delta {delta:g}, and so all of "
            "it: take rounding_beta = 0, fewer steps or a larger delta"
        )
    return delta - charged


@lru_cache(maxsize=4096)
def rdp_curve(mechanism: AnyMechanism, orders: tuple[float, ...] = ORDERS) -> Floats:
    """RDP of one step at every order, float64 (len(orders),); infinite where no theorem bounds it."""
    match mechanism:
        case Mechanism():
            curve = _gaussian_curve(mechanism, orders)
        case FixedSizeGaussian():
            # twice the clip norm lies between the two sums
            at = partial(
                amplification.fixed_size_gaussian, mechanism.noise_multiplier / 2, mechanism.sample_rate
            )
            curve = _at_whole_orders(at, orders)
        case DistributedDiscreteGaussian() | DistributedSkellam():
            # The amplification of Poisson samples is known for add/remove only: none under replace-one.
            rate = mechanism.sample_rate if mechanism.adjacency == "add-remove" else 1.0
            base = partial(shares.sum_rdp, mechanism)
            curve = _at_whole_orders(partial(amplification.poisson, base, rate), orders)
        case Tuning():
            one_run = total_curve((counted(mechanism.candidate),), orders)
            curve = amplification.best_of_random_many(
                one_run, np.asarray(orders), mechanism.shape, mechanism.gamma, mechanism.mean_trials
            )
    curve.flags.writeable = False
    return curve


def _at_whole_orders(bound: Callable[[int], float], orders: tuple[float, ...]) -> Floats:
    """A bound that holds at whole orders from 2 on; infinity at the others, and at those too large to sum."""
    return np.array(
        [
            bound(int(order))
            if order >= 2 and order == int(order) <= amplification.LARGEST_ORDER
            else math.inf
            for order in orders
        ]
    )


def _gaussian_curve(mechanism: Mechanism, orders: tuple[float, ...]) -> Floats:
    """RDP of a Gaussian step.

    Under replace-one the two data sets differ by a clipped vector and its opposite, 2 clip norms apart. That
    is priced as add/remove at half the noise multiplier: exact at sample rate 1, an upper bound below it.
    """
    noise_multiplier, sample_rate, adjacency = mechanism
    if adjacency == "replace-one":
        noise_multiplier /= 2
    return np.array([step_rdp(order, noise_multiplier, sample_rate) for order in orders])


def step_rdp(order: float, noise_multiplier: float, sample_rate: float) -> float:
    """RDP of one add/remove step: ln E[((1-q) + q e^((2x-1)/2z²))^order] / (order-1), x ~ N(0, z²)."""
    if sample_rate == 1.0:
        return order / (2 * noise_multiplier**2)
    moment = _log_moment_whole if float(order).is_integer() else _log_moment_fractional
    return max(0.0, moment(order, noise_multiplier, sample_rate)) / (order - 1)


def _log_moment_whole(order: float, noise_multiplier: float, sample_rate: float) -> float:
    """The log moment at a whole order, by the binomial theorem."""
    k = np.arange(int(order) + 1)
    log_factorial = np.array([math.lgamma(i + 1) for i in k])
    log_binomial = log_factorial[-1] - log_factorial - log_factorial[::-1]
    log_weight = log_binomial + k * math.log(sample_rate) + k[::-1] * math.log1p(-sample_rate)
    return amplification.log_sum(log_weight + (k * k - k) / (2 * noise_multiplier**2))


def _log_moment_fractional(order: float, noise_multiplier: float, sample_rate: float) -> float:
    """The log moment at any order, by the trapezoid rule.

    The integrand is analytic in a strip of half-width pi z² about the real line, so the rule's error falls as
    exp(-2 pi * pi z² / step): far below double precision at the step taken here.
    """
    step = min(noise_multiplier / 20, noise_multiplier**2 / 2)
    tail = 40 * noise_multiplier  # e^-800 of the mass of either bump, at 0 and at `order`, lies beyond
    x = np.arange(-tail, order + tail, step)
    log_ratio = np.logaddexp(
        math.log1p(-sample_rate), math.log(sample_rate) + (2 * x - 1) / (2 * noise_multiplier**2)
    )
    log_normal = -((x / noise_multiplier) ** 2) / 2 - math.log(noise_multiplier * math.sqrt(2 * math.pi))
    return amplification.log_sum(order * log_ratio + log_normal) + math.log(step)
