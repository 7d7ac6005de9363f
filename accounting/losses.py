"""Privacy loss distributions of Gaussians, fast enough to search with.

The same discretisation as the certifying accountant's, so at the same grid the same figure up to round-off, but
vectorised and without its checks: tens of milliseconds where dp-accounting takes a second. What is found here is
certified there before anybody relies on it.

Source: Doroshenko, Ghazi, Kamath, Kumar, Manurangsi 2022, "Connect the Dots: tighter discrete approximations
of privacy loss distributions", Algorithm 1; Koskela, Jälkö, Honkela 2020 for the powers in Fourier space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .mechanisms import Mechanism

Floats = NDArray[np.float64]
GaussianParts = Sequence[tuple[Mechanism, int]]

# So many standard deviations of noise; e^-50 of it lies beyond.
REACH = -NormalDist().inv_cdf(0.5 * math.exp(-50))
_TAIL = 1e-15  # what composition may move to infinity
_CHERNOFF = 20


class Losses(NamedTuple):
    """Probabilities of losses (low, low+1, ...) * grid, and of an infinite loss."""

    low: int
    probabilities: Floats
    infinite: float


def fast_epsilon(parts: GaussianParts, delta: float, grid: float) -> float:
    """Epsilon at delta of all the steps together, as the certifying accountant has it on this grid."""
    return max(epsilon_of(losses, delta, grid) for losses in composed_losses(parts, grid))


def composed_losses(parts: GaussianParts, grid: float) -> list[Losses]:
    """The composed losses in each direction: one's data removed, and added (one direction if they agree)."""
    steps = [(step_losses(mechanism, grid), count) for mechanism, count in parts]
    directions = max(len(each) for each, _ in steps)
    return [_power([(each[side % len(each)], count) for each, count in steps]) for side in range(directions)]


def step_losses(mechanism: Mechanism, grid: float) -> list[Losses]:
    """The losses of one step on a grid, such that every delta(epsilon) is at least the true one."""
    noise, rate, adjacency = mechanism
    top = _mixture_loss(noise, rate, 1 + REACH * noise)
    if adjacency == "replace-one":
        top -= _mixture_loss(noise, rate, -1 - REACH * noise)
        return [_connect_the_dots(lambda at: _replaced(at, noise, rate), -top, top, grid)]
    low = _mixture_loss(noise, rate, -REACH * noise)
    removed = _connect_the_dots(lambda at: _removed(at, noise, rate), low, top, grid)
    if rate == 1:
        return [removed]
    return [removed, _connect_the_dots(lambda at: _added(at, noise, rate), -top, -low, grid)]


def largest_loss(mechanism: Mechanism) -> float:
    """The largest loss of one step that a discretisation keeps."""
    noise, rate, adjacency = mechanism
    noise = noise / 2 if adjacency == "replace-one" else noise
    return _mixture_loss(noise, rate, 1 + REACH * noise)


def epsilon_of(losses: Losses, delta: float, grid: float) -> float:
    """The least epsilon, 0 or more, at which the hockey-stick divergence is at most delta."""
    at, deltas, lower = _divergences(losses, grid)
    under = np.flatnonzero(deltas <= delta)
    if losses.infinite > delta or not len(under):
        return math.inf
    # Between two losses delta falls linearly in e^epsilon.
    index = int(under[0])
    upper = deltas[index] + math.exp(at[index]) * lower[index]
    if index == 0:
        return max(0.0, float(at[0]))
    upper += losses.probabilities[index]
    lower_before = lower[index] + losses.probabilities[index] * math.exp(-at[index])
    return max(0.0, math.log((upper - delta) / lower_before)) if upper > delta else 0.0


def _divergences(losses: Losses, grid: float) -> tuple[Floats, Floats, Floats]:
    """Losses, the divergence at each, and the second distribution's mass beyond each."""
    at = np.asarray((losses.low + np.arange(len(losses.probabilities))) * grid, dtype=np.float64)
    beyond = np.zeros(len(at) + 1)
    beyond[:-1] = np.cumsum(losses.probabilities[::-1])[::-1]
    lower = np.zeros(len(at) + 1)
    with np.errstate(over="ignore", invalid="ignore"):  # very negative losses never bound a delta below 1
        lower[:-1] = np.cumsum((losses.probabilities * np.exp(-at))[::-1])[::-1]
        deltas = losses.infinite + beyond[1:] - np.exp(at) * lower[1:]
    return at, np.asarray(np.nan_to_num(deltas, nan=1.0), dtype=np.float64), lower[1:]


def _connect_the_dots(delta: Callable[[Floats], Floats], low: float, top: float, grid: float) -> Losses:
    """Losses on a grid whose divergences agree with `delta` on every point of it, and lie above between."""
    first, last = math.floor(low / grid), max(math.ceil(top / grid), math.floor(low / grid) + 1)
    deltas = np.minimum.accumulate(delta(np.arange(first, last + 1, dtype=np.float64) * grid))
    falls = np.diff(deltas)
    probabilities = np.empty(len(deltas))
    probabilities[0] = 1 - deltas[0] + falls[0] / math.expm1(grid)
    probabilities[1:-1] = (falls[1:] - falls[:-1] * math.exp(grid)) / math.expm1(grid)
    probabilities[-1] = falls[-1] / math.expm1(-grid)
    return Losses(first, np.maximum(probabilities, 0.0), float(deltas[-1]))


def _power(steps: Sequence[tuple[Losses, int]]) -> Losses:
    """The losses of all the steps together, by one product in Fourier space."""
    # scipy takes a while to import: only those who calibrate pay for it.
    from scipy.fft import irfft, next_fast_len, rfft

    low, high = _support(steps)
    longest = max(len(losses.probabilities) for losses, _ in steps)
    size = next_fast_len(max(high - low + 1, longest), real=True)
    spectrum: NDArray[np.complex128] = np.ones(size // 2 + 1, np.complex128)
    kept = 0.0
    for losses, count in steps:
        spectrum *= rfft(losses.probabilities, size) ** count
        kept += count * math.log1p(-losses.infinite)
    start = sum(count * losses.low for losses, count in steps)
    wrapped = irfft(spectrum, size)
    # The transform counts losses modulo its size: what is wanted begins at `low`.
    return Losses(start + low, np.roll(wrapped, -low)[: high - low + 1], _TAIL - math.expm1(kept))


def _support(steps: Sequence[tuple[Losses, int]]) -> tuple[int, int]:
    """Indices between which all of the composed mass lies but `_TAIL`, by Chernoff's bound."""
    longest = max(len(losses.probabilities) for losses, _ in steps)
    low, high = 0, sum(count * (len(losses.probabilities) - 1) for losses, count in steps)
    tilts = np.concatenate([np.arange(1, _CHERNOFF + 1), np.geomspace(2 * _CHERNOFF, 64 * _CHERNOFF, 6)])
    for tilt in tilts / longest:
        for sign in (1, -1):
            log_moment = sum(count * _log_moment(losses, sign * tilt) for losses, count in steps)
            bound = sign * (log_moment + math.log(2 / _TAIL)) / tilt
            if sign > 0:
                high = min(high, math.ceil(bound))
            else:
                low = max(low, math.floor(bound))
    return low, high


def _log_moment(losses: Losses, tilt: float) -> float:
    """ln E[e^(tilt * index)] over the finite losses."""
    exponent = tilt * np.arange(len(losses.probabilities))
    top = max(0.0, float(exponent[-1]))
    return top + math.log(float(np.exp(exponent - top) @ losses.probabilities) or 1e-300)


# --- hockey-stick divergences of one step, at every epsilon ---------------------------------------------------


def _mixture_loss(noise: float, rate: float, x: float) -> float:
    """The loss at x of a mixture, whose mean is 1 with probability `rate` or else 0, against the Gaussian at 0."""
    plain = (2 * x - 1) / (2 * noise**2)
    return float(np.logaddexp(math.log1p(-rate), math.log(rate) + plain)) if rate < 1 else plain


def gaussian_delta(epsilon: Floats, noise: float) -> Floats:
    """Delta of a Gaussian with this noise multiplier."""
    half = 1 / (2 * noise)
    with np.errstate(over="ignore", invalid="ignore"):
        value = _normal_cdf(half - epsilon * noise) - np.exp(epsilon) * _normal_cdf(-half - epsilon * noise)
    return np.clip(np.nan_to_num(value, nan=0.0), 0.0, 1.0)


def _normal_cdf(x: Floats) -> Floats:
    """The standard normal distribution function."""
    from scipy.special import ndtr

    return np.asarray(ndtr(x), dtype=np.float64)


def _removed(epsilon: Floats, noise: float, rate: float) -> Floats:
    """Delta of the mixture against the Gaussian: rate times the Gaussian's, further out."""
    with np.errstate(invalid="ignore", divide="ignore"):
        inner = np.log((np.expm1(epsilon) + rate) / rate)
    reached = np.expm1(epsilon) + rate > 0
    return np.where(reached, rate * gaussian_delta(np.where(reached, inner, 0.0), noise), -np.expm1(epsilon))


def _added(epsilon: Floats, noise: float, rate: float) -> Floats:
    """Delta of the Gaussian against the mixture, zero from -ln(1 - rate) on."""
    share = 1 - (1 - rate) * np.exp(epsilon)
    reached = share > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        inner = -np.log((np.expm1(-epsilon) + rate) / rate)
    return np.where(reached, share * gaussian_delta(np.where(reached, inner, 0.0), noise), 0.0)


def _replaced(epsilon: Floats, noise: float, rate: float) -> Floats:
    """Delta of rate N(1) + (1-rate) N(0) against rate N(-1) + (1-rate) N(0)."""
    log_alpha = 1 / (2 * noise**2) + (math.log1p(-rate) if rate < 1 else -math.inf) - math.log(rate)
    half = np.abs(epsilon) / 2
    with np.errstate(divide="ignore"):
        log_sinh = half + np.log(-np.expm1(-2 * half) / 2) + log_alpha
    size = np.where(log_sinh > 300, log_sinh + math.log(2), np.arcsinh(np.exp(np.minimum(log_sinh, 300))))
    x = noise**2 * (np.sign(epsilon) * size + epsilon / 2)
    neither = (1 - rate) * _normal_cdf(-x / noise)
    one, other = (neither + rate * _normal_cdf((mean - x) / noise) for mean in (1, -1))
    with np.errstate(over="ignore", invalid="ignore"):
        value = one - np.exp(epsilon) * other
    return np.clip(np.nan_to_num(value, nan=0.0), 0.0, 1.0)
