"""What all empirical lower bounds on epsilon share: the largest epsilon that is refuted, and counts that are counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .errors import EmpiricalError

Scores = NDArray[np.float64]
"""One score each; larger means "more likely included"."""

_LARGEST_EPSILON = 100.0  # no number of trials that anybody can run gets near it
_BISECTIONS = 60
_MOST_TRIALS = 1_000_000  # an auditor reads records that others wrote: none may take minutes


def largest_refuted(refuted: Callable[[float], bool]) -> float:
    """The end of the epsilons that are refuted, by bisection; 0.0 if not even 0 is."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high) and high < _LARGEST_EPSILON:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def require_counts(**counts: object) -> None:
    """Counts are whole numbers, 0 or more, and few enough to compute with."""
    for name, value in counts.items():
        if type(value) is not int or not 0 <= value <= _MOST_TRIALS:
            raise EmpiricalError(f"{name} must be a whole number from 0 to {_MOST_TRIALS}, got {value!r}")


def require_probabilities(delta: float, confidence: float) -> None:
    """Delta may be 0; a confidence lies strictly between 0 and 1."""
    for name, value in (("delta", delta), ("confidence", confidence)):
        if isinstance(value, bool) or not isinstance(value, float | int) or not 0 <= value < 1:
            raise EmpiricalError(f"{name} must lie between 0 and 1, got {value!r}")
    if confidence == 0:
        raise EmpiricalError("a bound at confidence 0 says nothing")
