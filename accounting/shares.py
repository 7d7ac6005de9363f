"""Rényi differential privacy of sums to which every client adds its share of integer noise.

All of it in integers: a sensitivity is that of the rotated, scaled and rounded vector. Modular reduction is
post-processing and costs utility only.

Source: Kairouz, Liu, Steinke 2021, Theorem 1, Propositions 14 and 22 (rounding, discrete Gaussian);
Agarwal, Kairouz, Liu 2021, Theorem 3.5 and Corollary 3.6 (Skellam).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .events import DistributedDiscreteGaussian, DistributedSkellam

Floats = NDArray[np.float64]
# From here on the terms of tau are all but equal: the rest is bounded by its largest.
_TAU_TERMS = 100_000


class Sensitivity(NamedTuple):
    """How far one unit moves a sum of integer vectors."""

    l1: float
    l2: float


def rounded_norm(clip_norm: float, scale: float, dimension: int, beta: float) -> float:
    """The L2 norm (in real units) that a clipped vector has at most after unbiased random rounding.

    With `beta` 0 always; else with probability 1 - beta or more, whichever bound is smaller.

    >>> round(rounded_norm(1.0, 4096, 2**16, 0.0), 6)
    1.0625
    """
    grid, root = 1 / scale, math.sqrt(dimension)
    always = clip_norm + grid * root
    if beta == 0:
        return always
    mostly = (
        clip_norm**2
        + grid**2 * dimension / 4
        + math.sqrt(2 * math.log(1 / beta)) * grid * (clip_norm + grid * root / 2)
    )
    return min(math.sqrt(mostly), always)


def sensitivity(event: DistributedDiscreteGaussian | DistributedSkellam) -> Sensitivity:
    """How far one unit moves the sum, in integers.

    What an example adds to a rounded sum is distributed as its own vector, rounded: rounding both sums with
    the same random offsets differs by just that. Whoever is replaced takes one vector out and puts another in.
    """
    l2 = event.scale * rounded_norm(event.clip_norm, event.scale, event.dimension, event.rounding_beta)
    # For integers |v| <= v², so the L1 norm is at most the squared L2 norm.
    l1 = l2 * min(math.sqrt(event.dimension), l2)
    twice = 2 if event.adjacency == "replace-one" else 1
    return Sensitivity(twice * l1, twice * l2)


def sum_rdp(event: DistributedDiscreteGaussian | DistributedSkellam, orders: Floats) -> Floats:
    """RDP of one sum at whole orders above 1, without any sampling, float64 (len(orders),)."""
    if isinstance(event, DistributedSkellam):
        return skellam_rdp(orders, event.honest * event.local_stddev**2, sensitivity(event))
    return discrete_gaussian_rdp(
        orders, event.local_stddev, event.honest, event.dimension, sensitivity(event)
    )


def discrete_gaussian_rdp(
    orders: Floats, local_stddev: float, shares: int, dimension: int, moved: Sensitivity
) -> Floats:
    """RDP of a sum with `shares` discrete Gaussian shares of parameter `local_stddev` >= 1."""
    noise = math.sqrt(shares) * local_stddev
    l1, l2 = moved.l1 / noise, moved.l2 / noise
    tau = convolution_gap(local_stddev, shares)
    by_coordinate = orders / 2 * l2**2 + tau * dimension
    by_l1 = orders / 2 * (l2**2 + 2 * l1 * tau + tau**2 * dimension)
    by_l2 = orders / 2 * (l2 + math.sqrt(dimension) * tau) ** 2
    return np.minimum(np.minimum(by_coordinate, by_l1), by_l2)


def convolution_gap(local_stddev: float, shares: int) -> float:
    """tau: how far a sum of discrete Gaussians may be, in max divergence, from a discrete Gaussian."""
    k = np.arange(1, min(shares, _TAU_TERMS), dtype=np.float64)
    terms = np.exp(-2 * (math.pi * local_stddev) ** 2 * k / (k + 1))
    rest = (shares - 1 - len(k)) * (float(terms[-1]) if len(terms) else 0.0)
    return 10 * (float(terms.sum()) + rest)


def skellam_rdp(orders: Floats, variance: float, moved: Sensitivity) -> Floats:
    """RDP of a sum with Skellam noise of this variance; sums of Skellam shares are Skellam exactly."""
    gaussian = orders * moved.l2**2 / (2 * variance)
    excess = ((2 * orders - 1) * moved.l2**2 + 6 * moved.l1) / (4 * variance**2)
    return gaussian + np.minimum(excess, 3 * moved.l1 / (2 * variance))
