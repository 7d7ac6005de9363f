"""What sampling and selection do to a curve of Rényi differential privacy.

Every function here works at whole orders: that is where the theorems are, and their sums are finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LARGEST_ORDER = 256


def poisson(base: Callable[[Floats], Floats], sample_rate: float, order: int) -> float:
    """RDP at `order` of a mechanism on a Poisson sample; `base` is its RDP at whole orders, without sampling.

    Guarantee: add/remove, for any mechanism.
    Source: Zhu, Wang 2019, "Poisson subsampled Rényi differential privacy", the bound for general mechanisms;
    never above `base`, since a mixture diverges no further than its parts.
    """
    curve = base(np.arange(2, order + 1, dtype=np.float64))
    if sample_rate == 1:
        return float(curve[-1])
    k = np.arange(3, order + 1, dtype=np.float64)
    log_keep, log_take = math.log1p(-sample_rate), math.log(sample_rate)
    terms = [
        (order - 1) * log_keep + math.log1p((order - 1) * sample_rate),
        math.log(math.comb(order, 2)) + 2 * log_take + (order - 2) * log_keep + float(curve[0]),
    ]
    higher = math.log(3) + _log_binomial(order, k) + (order - k) * log_keep + k * log_take
    log_moment = log_sum([*terms, *(higher + (k - 1) * curve[1:])])
    return min(float(curve[-1]), max(0.0, log_moment / (order - 1)))


def fixed_size_gaussian(noise_multiplier: float, sample_rate: float, order: int) -> float:
    """RDP at `order` of a Gaussian on a sample of fixed size drawn without replacement, under replace-one.

    `noise_multiplier` is the noise over the distance between the two sums, which is twice the clip norm.

    Source: Wang, Balle, Kasiviswanathan 2019, "Subsampled Rényi differential privacy and analytical moments
    accountant", Theorem 27.
    """
    if sample_rate == 1:
        return order / (2 * noise_multiplier**2)
    k = np.arange(2, order + 1, dtype=np.float64)
    log_moment = k * (k - 1) / (2 * noise_multiplier**2)  # of the Gaussian itself
    log_weight = math.log(2) + log_moment
    central = [_log_central_moment(noise_multiplier, even) for even in range(2, order + 2, 2)]
    for index, j in enumerate(range(2, order + 1)):
        pair = (central[j // 2 - 1] + central[(j + 1) // 2 - 1]) / 2
        log_weight[index] = min(log_weight[index], math.log(4) + pair)
    terms = _log_binomial(order, k) + k * math.log(sample_rate) + log_weight
    return log_sum([0.0, *terms]) / (order - 1)


def _log_central_moment(noise_multiplier: float, even: int) -> float:
    """ln E[(e^L - 1)^even] under the second data set, L the Gaussian's privacy loss, by the trapezoid rule.

    The integrand is a sum of Gaussian bumps at 0, 1, ..., `even`, each as wide as the noise; at twenty points
    to a width the rule is exact to double precision, and nothing cancels since the power is even.
    """
    step = noise_multiplier / 20
    x = np.arange(-40 * noise_multiplier, even + 40 * noise_multiplier, step)
    loss = (2 * x - 1) / (2 * noise_multiplier**2)
    # ln|e^L - 1|, without overflow; where L is 0 the integrand is 0
    size = np.maximum(loss, 0) + np.log(np.maximum(-np.expm1(-np.abs(loss)), 1e-300))
    log_normal = -((x / noise_multiplier) ** 2) / 2 - math.log(noise_multiplier * math.sqrt(2 * math.pi))
    return log_sum(even * size + log_normal) + math.log(step)


def best_of_random_many(curve: Floats, orders: Floats, shape: float, gamma: float, mean: float) -> Floats:
    """RDP, at every order, of the best of a random number of runs; `curve` is that of one run.

    Source: Papernot, Steinke 2022, "Hyperparameter tuning with Rényi differential privacy", Theorem 2. Its
    second order is chosen as the best of `orders`, and 1.
    """
    log_stop = math.log(1 / gamma)
    search = min(float(np.min((1 - 1 / orders) * curve + log_stop / orders)), log_stop)
    return curve + (1 + shape) * search + math.log(mean) / (orders - 1)


def _log_binomial(n: int, k: Floats) -> Floats:
    """ln of n over k, for whole k."""
    log_factorial = np.array([math.lgamma(i + 1) for i in range(n + 1)])
    chosen = k.astype(np.intp)
    return np.asarray(log_factorial[n] - log_factorial[chosen] - log_factorial[n - chosen])


def log_sum(values: Floats | Sequence[float]) -> float:
    """ln of a sum of exponentials, without overflow."""
    return float(np.logaddexp.reduce(np.asarray(values, dtype=np.float64)))
