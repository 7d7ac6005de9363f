"""P-values: how likely honest steps are to look at least as odd as those that were recorded.

Every function returns p-values by name. Each is valid on its own: for honest steps it lies at or below x with
probability at most x. Whoever looks at several divides its level by their number (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr
from scipy.stats import binom, chi2, kstest, norm

PValues = Mapping[str, float]
Floats = NDArray[np.float64]

_AGAIN = 1e-13  # equal noise comes out of a file as different as this, by the rounding of counts
_CENTRAL = (0.25, 0.5)  # shares of the distribution, around its median


def batch_size_p_values(sizes: Sequence[int], examples: int, sample_rate: float) -> PValues:
    """P-values of batch sizes that ought to be independent draws of Binomial(`examples`, `sample_rate`).

    All tests are exact. "total", "one step" and "empty batches" find a wrong rate and left-out empty batches; the
    "common sizes" are counted to find batches that are too regular (shuffled, of fixed size) or too irregular.
    """
    drawn, steps = np.asarray(sizes), len(sizes)
    found = {
        "total": two_sided(int(drawn.sum()), steps * examples, sample_rate),
        "one step": min(1.0, steps * min(two_sided(int(size), examples, sample_rate) for size in set(sizes))),
        "empty batches": two_sided(
            int((drawn == 0).sum()), steps, float(binom.pmf(0, examples, sample_rate))
        ),
    }
    for name, (low, high) in _common_sizes(examples, sample_rate).items():
        chance = float(binom.cdf(high, examples, sample_rate) - binom.cdf(low - 1, examples, sample_rate))
        found[name] = two_sided(int(((drawn >= low) & (drawn <= high)).sum()), steps, min(1.0, chance))
    return found


def fixed_size_p_value(steps: int, examples: int, sample_rate: float) -> float:
    """The p-value that batches of one fixed, most likely size would get: what so many steps can show at best."""
    size = _mode(examples, sample_rate)
    return min(batch_size_p_values([size] * steps, examples, sample_rate).values())


def noise_p_values(
    squares: Sequence[float] | Floats, largest: Sequence[float] | Floats, dimension: int
) -> PValues:
    """P-values of noise that ought to be `dimension` independent standard normals a step.

    Args:
        squares: each step's squared L2 norm, over the variance.
        largest: each step's largest absolute coordinate, over the standard deviation.

    The norms find noise of another size, or too regular; the largest coordinates find noise that was clamped.
    """
    steps, norms, tops = len(squares), np.asarray(squares), np.asarray(largest)
    ranks = chi2.cdf(norms, dimension)
    total, highest = float(norms.sum()), _largest_cdf(tops.max(keepdims=True), steps * dimension).item()
    each = [_tails(low, high) for low, high in zip(ranks, chi2.sf(norms, dimension), strict=True)]
    return {
        "size of the noise": _tails(chi2.cdf(total, steps * dimension), chi2.sf(total, steps * dimension)),
        "size of one step's noise": min(1.0, steps * min(each)),
        "spread of the noise's sizes": float(kstest(ranks, "uniform").pvalue),
        "largest coordinate": _tails(highest, 1 - highest),
        "spread of the largest coordinates": float(kstest(_largest_cdf(tops, dimension), "uniform").pvalue),
    }


def count_noise_p_values(noise: Sequence[float]) -> PValues:
    """P-values of noise on counts that ought to be independent standard normals, over its standard deviation.

    Besides what `noise_p_values` looks at, the signs, which a file says of counts alone: noise that never falls below
    zero bounds a count from one side. And values that come again, with either sign: a sum of the two counts, or a
    difference, is then without noise.
    """
    values = np.clip(np.asarray(noise), -1e100, 1e100)
    n, sizes = len(values), np.sort(np.abs(values))
    closest = float(np.diff(sizes).min()) + _AGAIN if n > 1 else np.inf
    return {
        **noise_p_values(squares=sizes**2, largest=sizes, dimension=1),
        "mean of the noise": _tails(*(float(norm.cdf(side * values.sum() / np.sqrt(n))) for side in (1, -1))),
        "distribution of the noise": float(kstest(values, "norm").pvalue),
        # Two absolute values differ with a density of at most 1/sqrt(pi); all pairs by the union bound.
        "noise that comes again": min(1.0, n * (n - 1) * closest / np.sqrt(np.pi)),
    }


def smallest_visible_change(coordinates: int, level: float) -> float:
    """By what share another standard deviation of the noise would show, with so many coordinates in all.

    In the normal approximation to chi-square; half of such changes come out with a p-value below `level`.
    """
    return float(norm.isf(level / 2) * np.sqrt(2 / coordinates) / 2)


def largest_invisible_shrinkage(coordinates: int, level: float) -> float:
    """The largest factor by which so many coordinates' standard deviation could be too small and still show.

    Exact: half of the honest-looking draws at that factor come out with a p-value below `level`; 0 for none.
    """
    lowest, middle = chi2.ppf(level / 2, coordinates), chi2.median(coordinates)
    return float(np.sqrt(lowest / middle)) if coordinates else 0.0


def two_sided(observed: int, trials: int, chance: float) -> float:
    """The exact two-sided p-value of a binomial count: twice the smaller tail."""
    return _tails(float(binom.cdf(observed, trials, chance)), float(binom.sf(observed - 1, trials, chance)))


def _tails(lower: float, upper: float) -> float:
    """Twice the smaller of two tails, at most 1."""
    return float(min(1.0, 2 * min(lower, upper)))


def _mode(examples: int, sample_rate: float) -> int:
    """The most likely batch size."""
    return min(examples, int((examples + 1) * sample_rate))


def _common_sizes(examples: int, sample_rate: float) -> dict[str, tuple[int, int]]:
    """Sets of sizes that are likely together: the most likely one, and ranges around the median."""
    mode = _mode(examples, sample_rate)
    sets = {"most common size": (mode, mode)}
    for share in _CENTRAL:
        low, high = (binom.ppf(0.5 + side * share / 2, examples, sample_rate) for side in (-1, 1))
        sets[f"sizes in the middle {share:.0%}"] = (int(low), int(high))
    return sets


def _largest_cdf(largest: Floats, dimension: int) -> Floats:
    """P[the largest of `dimension` absolute standard normals is at most this]."""
    # 1 - 2 Q(m), with Q from its logarithm, which keeps the digits where Q is tiny.
    beyond = 2 * np.exp(log_ndtr(-largest))
    with np.errstate(divide="ignore"):  # log(0) for a step without noise: probability 0
        logarithm: Floats = dimension * np.log1p(-np.minimum(beyond, 1.0))
    return np.asarray(np.exp(logarithm))
