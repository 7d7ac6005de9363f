"""The price of several rows of one person: events as they look to whoever holds k rows.

The unit of a guarantee is a row. Who holds k rows (or k copies of one) is protected by the price of other events:
each row is sampled by its own draw, so at least one of them is in a step with probability 1 - (1-q)^k, and together
they move the sum by at most k clip norms.

Why that is an upper bound, for Poisson sampling: let j of the k rows be drawn, so that the sum moves by at most j
clip norms C. With z' = z/k and q' = 1 - (1-q)^k the priced step is N(0, z²) with probability 1 - q', else N(k, z²),
against N(0, z²), in units of C. Given that, draw j from its distribution given j >= 1, return x·j/k and noise of
variance z²(1 - j²/k²): N(0, z²) stays what it is and N(k, z²) becomes the mixture of N(j, z²), so the true step is a
post-processing of the priced one. Vectors of norm up to j are the same along their own direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from .errors import PricingError
from .events import (
    AdaptiveClipPoissonGaussian,
    Gaussian,
    PoissonGaussian,
    PrivateEvent,
    RepeatedTrials,
    ShuffledGaussian,
    Tuning,
)


def as_group(events: Iterable[PrivateEvent], rows: int) -> tuple[PrivateEvent, ...]:
    """The events whose price protects all `rows` rows of one person together.

    Guarantee: priced under their adjacency, for that many rows added, removed or replaced at once.

    Raises:
        PricingError: `rows` is no whole number of 1 or more, or an event has no group price here.
    """
    if type(rows) is not int or rows < 1:
        raise PricingError(f"a person holds a whole number of rows, 1 or more, got {rows!r}")
    events = tuple(events)
    return events if rows == 1 else tuple(_as_group(event, rows) for event in events)


def _as_group(event: PrivateEvent, rows: int) -> PrivateEvent:
    """One event as its `rows`-fold."""
    match event:
        case Gaussian() | ShuffledGaussian():  # in a shuffled pass the worst is all rows in one batch
            return replace(event, noise_multiplier=event.noise_multiplier / rows)
        case PoissonGaussian():
            return replace(
                event,
                noise_multiplier=event.noise_multiplier / rows,
                sample_rate=_some_row(event.sample_rate, rows),
            )
        case AdaptiveClipPoissonGaussian():
            return replace(
                event,
                noise_multiplier=event.noise_multiplier / rows,
                count_noise_stddev=event.count_noise_stddev / rows,
                sample_rate=_some_row(event.sample_rate, rows),
            )
        case Tuning() | RepeatedTrials():
            # A candidate is never one of these again, so neither is what comes back.
            return replace(event, candidate=_as_group(event.candidate, rows))  # type: ignore[arg-type]  # see above
    raise PricingError(
        f"{type(event).__name__} has no price here for {rows} rows of one person: only Gaussian events do"
    )


def _some_row(sample_rate: float, rows: int) -> float:
    """The probability that at least one of the rows is drawn."""
    return 1.0 if sample_rate == 1 else -math.expm1(rows * math.log1p(-sample_rate))
