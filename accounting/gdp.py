"""The whole trade-off behind one (epsilon, delta): mu-GDP, and what an attacker's error rates can be.

Both come from the certified curve delta(epsilon), rounded to the safe side; never from a central limit theorem,
which under-reports.

Source: Dong, Roth, Su 2022, "Gaussian differential privacy", Proposition 2.12 and Corollary 2.13.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import rdp
from .errors import PricingError
from .events import Event
from .losses import gaussian_delta
from .mechanisms import Parts, compose
from .pricing import SMALLEST_PLD_DELTA, accountant_for, check_delta, distribution, round_off

Floats = NDArray[np.float64]
_POINTS = 20_000
_LARGEST_MU = 1e4


def gaussian_mu(events: Iterable[Event], smallest_delta: float = SMALLEST_PLD_DELTA) -> float:
    """The smallest mu such that all the events together are at least as private as a Gaussian of that mu.

    That is, one release with noise multiplier 1/mu. 0.0 for no events.

    Guarantee: at every epsilon, delta is at most the Gaussian's, or at most `smallest_delta`: further out the
    discretisation has no meaning, and a sampled mechanism's mu would tend to that without sampling. Rounded
    up, by less than one in a thousand of what the certified curve itself allows.

    Raises:
        PricingError: PLD cannot price the events (a curve from RDP is too loose near epsilon 0), or
            `smallest_delta` is too small for it.

    >>> from accounting.events import Gaussian
    >>> round(gaussian_mu([Gaussian(noise_multiplier=10.0, steps=100, clip_norm=1.0)]), 2)
    1.0
    """
    events = tuple(events)
    check_delta(smallest_delta)
    if accountant_for(events) != "pld":
        raise PricingError("mu-GDP is read off PLD's curve, and PLD cannot price these events")
    parts = compose(events)
    if not parts:
        return 0.0
    at, deltas = _pld_curve(parts, smallest_delta)
    # Against the Gaussian's delta one point further on, so that nothing is missed between two points.
    bounded = deltas[:-1] > smallest_delta
    if not bounded.any():
        return 0.0

    def dominates(mu: float) -> bool:
        return bool(np.all(deltas[:-1][bounded] <= gaussian_delta(at[1:][bounded], 1 / mu)))

    low, high = 0.0, 1e-3
    while not dominates(high):
        low, high = high, 2 * high
        if high > _LARGEST_MU:
            raise PricingError("no Gaussian is less private than these events by any useful measure")
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if dominates(middle) else (middle, high)
    return high


def tpr_at_fpr(events: Iterable[Event], fpr: float) -> float:
    """The largest true positive rate that any membership attack can have at this false positive rate.

    Whatever the attacker knows beside the releases, in the views that the events state; priced by PLD, or by
    RDP where PLD cannot.

    Raises:
        PricingError: fpr is no probability, or the events have no price.

    >>> tpr_at_fpr([], 0.01)
    0.01
    """
    if not 0 <= fpr <= 1:
        raise PricingError(f"a false positive rate lies in [0, 1], got {fpr!r}")
    events = tuple(events)
    parts = compose(events)
    if not parts:
        return float(fpr)
    if accountant_for(events) == "pld":
        at, deltas = _pld_curve(parts, SMALLEST_PLD_DELTA)
    else:
        at = np.linspace(0.0, rdp.epsilon(parts, SMALLEST_PLD_DELTA), _POINTS // 20)
        deltas = np.array([rdp.delta(parts, float(epsilon)) for epsilon in at])
    # (epsilon, delta) bounds the errors twice over, each way round; every point of the curve does.
    likely = np.exp(at) * fpr + deltas
    unlikely = 1 - np.exp(-at) * (1 - deltas - fpr)
    return min(1.0, float(np.minimum(likely, unlikely).min()))


@lru_cache(maxsize=8)
def _pld_curve(parts: Parts, smallest_delta: float) -> tuple[Floats, Floats]:
    """Epsilons from 0 to where delta is `smallest_delta`, and the certified delta at each."""
    certified = distribution(parts)
    at = np.linspace(0.0, float(certified.get_epsilon_for_delta(smallest_delta)), _POINTS)
    deltas = np.asarray(certified.get_delta_for_epsilon(at), dtype=np.float64)
    return at, np.minimum(deltas + round_off(parts), 1.0)
