"""Events -> how many steps of which mechanisms: what all accountants start from.

A mechanism is what one step does. Every Gaussian on the whole data or on a Poisson sample has one normal form,
`Mechanism`, whatever event recorded it; any other mechanism is its own event, of one step.

Composition is order-free and additive in steps, so any list of events reduces to `Parts`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from .errors import PricingError
from .events import (
    AdaptiveClipPoissonGaussian,
    Adjacency,
    DistributedDiscreteGaussian,
    DistributedSkellam,
    Event,
    FixedSizeGaussian,
    Gaussian,
    NonPrivate,
    PoissonGaussian,
    RepeatedTrials,
    ShuffledGaussian,
    Tuning,
    Unit,
)

LEAST_NOISE = 0.01
"""The least noise multiplier that has a price, as in a report's schema: accountants take 1/z² points of less."""


class Mechanism(NamedTuple):
    """One step of a Poisson-sampled Gaussian (sample_rate 1: the plain Gaussian)."""

    noise_multiplier: float
    sample_rate: float
    adjacency: Adjacency = "add-remove"

    @property
    def unit(self) -> Unit:
        """Whose presence it hides."""
        return "example"


AnyMechanism = Mechanism | FixedSizeGaussian | DistributedDiscreteGaussian | DistributedSkellam | Tuning
Parts = tuple[tuple[AnyMechanism, int], ...]  # distinct mechanisms, in canonical order, and their steps


def compose(events: Iterable[Event]) -> Parts:
    """How many steps of which mechanisms a list of events amounts to, in canonical order.

    Raises:
        PricingError: a `NonPrivate` event (it has no price), an unknown kind, mixed adjacencies or units, hardly any
            noise.
    """
    steps: Counter[AnyMechanism] = Counter()
    for event in events:
        mechanism, count = counted(event)
        steps[mechanism] += count
    return together(steps)


def together(steps: Mapping[AnyMechanism, int]) -> Parts:
    """The mechanisms that took any steps, in canonical order, Gaussians first.

    Raises:
        PricingError: their adjacencies or units differ, or one has so little noise that accountants would not end.
    """
    for mechanism in steps:
        if isinstance(mechanism, Mechanism) and mechanism.noise_multiplier < LEAST_NOISE:
            raise PricingError(
                f"a noise multiplier of {mechanism.noise_multiplier:g} has no price: {LEAST_NOISE:g} is the least"
            )
    for what, found in (
        ("adjacencies", {mechanism.adjacency for mechanism in steps}),
        ("units", {mechanism.unit for mechanism in steps}),
    ):
        if len(found) > 1:
            raise PricingError(f"events under different {what} do not compose: price each by itself")
    return tuple(sorted(((mechanism, count) for mechanism, count in steps.items() if count), key=_rank))


def counted(event: Event) -> tuple[AnyMechanism, int]:
    """An event's mechanism, and how many steps of it the event amounts to."""
    mechanism = mechanism_of(event)
    assert not isinstance(event, NonPrivate)  # noqa: S101 - mechanism_of has refused it
    if isinstance(event, RepeatedTrials):
        return mechanism, event.steps * event.trials * event.candidate.steps
    return mechanism, event.steps


def mechanism_of(event: Event) -> AnyMechanism:
    """The mechanism whose steps an event counts. Raises PricingError where there is none."""
    match event:
        case PoissonGaussian():
            return Mechanism(event.noise_multiplier, event.sample_rate, event.adjacency)
        case Gaussian() | ShuffledGaussian():  # in a pass over shuffled batches an example is in one batch
            return Mechanism(event.noise_multiplier, 1.0, event.adjacency)
        case AdaptiveClipPoissonGaussian():
            return Mechanism(adaptive_clip_noise(event), event.sample_rate, event.adjacency)
        case FixedSizeGaussian() | DistributedDiscreteGaussian() | DistributedSkellam() | Tuning():
            return replace(event, steps=1)
        case RepeatedTrials():
            return mechanism_of(event.candidate)
        case NonPrivate():
            raise PricingError(f"{event.what!r} was released outside the guarantee: list it, it has no price")
    raise PricingError(f"no price is known for {type(event).__name__}")


def adaptive_clip_noise(event: AdaptiveClipPoissonGaussian) -> float:
    """The noise multiplier of the one Gaussian that the noised sum and count amount to together.

    An example moves the sum by 1 in units of `noise_multiplier`'s noise, and the count by 1/2.

    >>> round(adaptive_clip_noise(AdaptiveClipPoissonGaussian(1.0, 2.0, 0.1, 1, 1.0)), 6)
    0.970143
    """
    # By hypot, not by squares: a forged row may hold any two numbers, and squares of the smallest overflow.
    return 1 / math.hypot(1 / event.noise_multiplier, 1 / (2 * event.count_noise_stddev))


def charged_delta(parts: Parts) -> float:
    """What the parts take from delta: rounding bounds that nobody could check may fail, at every step.

    Under replace-one two vectors are rounded, the one taken out and the one put in, and either bound may fail.
    """
    return sum(
        steps * mechanism.rounding_beta * (2 if mechanism.adjacency == "replace-one" else 1)
        for mechanism, steps in parts
        if isinstance(mechanism, DistributedDiscreteGaussian | DistributedSkellam)
        and mechanism.unit == "example"
    )


def _rank(part: tuple[AnyMechanism, int]) -> tuple[int, tuple[float | str, ...]]:
    """A key that any two mechanisms can be compared by."""
    mechanism, _ = part
    return (0, mechanism) if isinstance(mechanism, Mechanism) else (1, (repr(mechanism),))
