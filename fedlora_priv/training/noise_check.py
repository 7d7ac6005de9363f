"""Was the noise that a few steps really added the noise that is charged? A statistical answer.

What is looked at is the difference between the parameters after and before a step, less a sum that is known: so
noise counts only if it arrived. Each statistic below has, under the right noise, an exact or an upper bound of its
probability; one is refused if its probability times the number of statistics is below `FALSE_ALARM`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from fedlora_priv.errors import EnvironmentProblem

FALSE_ALARM = 1e-9
"""Probability that `check_noise` refuses the right noise, over all its statistics together."""

COORDINATES_FOR_SCALE = 160
"""With this many samples of an array's noise, half or twice the deviation is seen with probability 1 - 1e-7."""

_LARGEST_SORT = 1 << 20  # more than that takes seconds and sees little more

_Rows = NDArray[np.float32]
_Finding = tuple[float, str]
"""(probability of something so strange under the right noise, what is strange)"""


@dataclass(frozen=True)
class NoiseReport:
    """What was seen of the noise.

    Attributes:
        deviation: its root mean square, over the standard deviation that it should have.
        coordinates, steps: how many values were looked at, from how many steps.
    """

    deviation: float
    coordinates: int
    steps: int

    def __str__(self) -> str:
        return f"{self.deviation:.4f} of the planned deviation, {self.coordinates:,} values in {self.steps} steps"


def check_noise(rows: _Rows, sizes: Mapping[str, int]) -> NoiseReport:
    """Return what was seen of noise that should be standard normal, independent everywhere.

    Catches noise that is missing or of another size in any array or step, clamped, of another shape, and used
    twice: in two steps, or in two arrays of one size.

    Args:
        rows: what steps added, over its planned standard deviation, float32 (steps, coordinates), at least two.
        sizes: number of coordinates of each array, in their order in a row.

    Raises:
        EnvironmentProblem: the noise is not what it should be; wrong with probability `FALSE_ALARM`.
    """
    findings = [*_scales(rows, sizes), *_shape(rows.ravel()), *_repetitions(rows, sizes)]
    for probability, what in findings:
        if not probability * len(findings) >= FALSE_ALARM:
            raise EnvironmentProblem(
                f"steps do not add the planned noise: {what}", "nothing would be private"
            )
    deviation = math.sqrt(float(np.square(rows, dtype=np.float64).mean()))
    return NoiseReport(deviation, rows.size, len(rows))


def steps_to_look_at(sizes: Mapping[str, int], largest: int) -> int:
    """Return in how many steps to look at the noise: enough for the smallest array, of `largest` values in all."""
    wanted = math.ceil(COORDINATES_FOR_SCALE / min(sizes.values()))
    return max(2, min(wanted, largest // sum(sizes.values())))


def _scales(rows: _Rows, sizes: Mapping[str, int]) -> Iterator[_Finding]:
    """Look at the sum of squares of each array and of each step: chi-squared."""
    start = 0
    for name, size in sizes.items():
        yield _scale(rows[:, start : start + size], f"the noise of {name}")
        start += size
    for number, row in enumerate(rows, start=1):
        yield _scale(row, f"the noise of step {number} of {len(rows)}")


def _scale(values: _Rows, whose: str) -> _Finding:
    """Look at the size of some of the noise."""
    squares = float(np.square(values, dtype=np.float64).sum())
    half, degrees = squares / 2, values.size / 2
    one_side = min(special.gammainc(degrees, half), special.gammaincc(degrees, half))
    return 2 * float(one_side), f"{whose} is {math.sqrt(squares / values.size):.2f} times what it should be"


def _shape(values: _Rows) -> Iterator[_Finding]:
    """Look at the largest value, which shows clamping, and at the distribution function."""
    largest = float(np.abs(values).max())
    beyond = 2 * float(special.ndtr(-largest))
    none_larger = math.exp(values.size * math.log1p(-beyond)) if beyond < 1 else 0.0
    yield (
        none_larger,
        f"none of {values.size} values is beyond {largest:.2f} deviations, as if it were clamped",
    )
    yield min(1.0, values.size * beyond), f"one value is {largest:.1f} deviations large"
    some = values[:: -(-values.size // _LARGEST_SORT)]
    ordered = special.ndtr(np.sort(some).astype(np.float64))
    steps = np.arange(some.size + 1) / some.size
    distance = max(float((steps[1:] - ordered).max()), float((ordered - steps[:-1]).max()))
    # Massart 1990, with its tight constant: P[distance > x] <= 2 exp(-2 n x^2).
    yield 2 * math.exp(-2 * some.size * distance**2), "it is not normally distributed"


def _repetitions(rows: _Rows, sizes: Mapping[str, int]) -> Iterator[_Finding]:
    """Look at the correlations of any two steps, and of any two arrays of one size."""
    yield _largest_correlation(rows), "two steps added the same noise"
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1], strict=True))
    for size in sorted(set(sizes.values())):
        alike = [
            rows[:, start : start + size].ravel() for name, start in starts.items() if sizes[name] == size
        ]
        if len(alike) > 1:
            yield _largest_correlation(np.stack(alike)), f"two arrays of {size} values got the same noise"


def _largest_correlation(rows: _Rows) -> float:
    """Return how probable a correlation as large as the largest of any two rows is.

    For normal x, whatever y: (x·y)²/(|x|²|y|²) is Beta(1/2, (n-1)/2). All pairs together by the union bound.
    """
    norms = np.linalg.norm(rows, axis=1)
    if not norms.all():
        return 1.0  # missing, which is for `_scales` to say
    cosines = (rows @ rows.T) / np.outer(norms, norms)
    pairs = np.abs(cosines[np.triu_indices(len(rows), 1)])
    left_over = max(0.0, 1.0 - float(pairs.max()) ** 2)
    return float(len(pairs) * special.betainc((rows.shape[1] - 1) / 2, 0.5, left_over))
