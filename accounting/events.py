"""What was released, never what it cost.

An event's meaning never changes: a change of meaning is a new version, and a reader refuses the kinds and
versions it does not know. To add a kind: write its dataclass, add it to `Event` and `_KINDS`, and teach
`pricing.compose` about it if it carries a guarantee.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from .errors import EventError

Adjacency = Literal["add-remove", "replace-one"]
ADJACENCIES: tuple[Adjacency, ...] = ("add-remove", "replace-one")


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """DP-SGD: `steps` Gaussian releases, each on an independent Poisson sample.

    Every example enters each step's batch by an independent secret draw with probability `sample_rate`; the
    sum of the batch's vectors, each clipped to L2 norm `clip_norm`, gets Gaussian noise of standard deviation
    `noise_multiplier * clip_norm` on every coordinate. Steps with an empty batch count, and are noised too.
    Later steps may depend on earlier results. `steps` may be 0 only to commit that nothing ran.

    Guarantee: per example, under the stated adjacency, against whoever sees every noised sum.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    clip_norm: float
    adjacency: Adjacency = "add-remove"
    kind: ClassVar[str] = "PoissonGaussian"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _positive(self, "noise_multiplier", "clip_norm")
        _positive(self, "sample_rate", at_most=1.0)
        _check_steps(self.steps)
        _check_adjacency(self.adjacency)

    @property
    def sampler(self) -> str:
        """The name of the sampling scheme that this kind stands for."""
        return "poisson"


@dataclass(frozen=True, slots=True)
class Gaussian:
    """`steps` Gaussian releases on the whole data set, each with L2 sensitivity `clip_norm`.

    `noise_multiplier` is the noise's standard deviation over `clip_norm`. Under replace-one adjacency
    `clip_norm` still bounds one example's contribution; pricing doubles it.

    Guarantee: as `PoissonGaussian`, without amplification by sampling.
    """

    noise_multiplier: float
    steps: int
    clip_norm: float
    adjacency: Adjacency = "add-remove"
    kind: ClassVar[str] = "Gaussian"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _positive(self, "noise_multiplier", "clip_norm")
        _check_steps(self.steps)
        _check_adjacency(self.adjacency)

    @property
    def sampler(self) -> str:
        """The name of the sampling scheme that this kind stands for."""
        return "none"


@dataclass(frozen=True, slots=True)
class NonPrivate:
    """Something that left outside every guarantee: what, and why it was let out. It is never priced."""

    what: str
    reason: str
    kind: ClassVar[str] = "NonPrivate"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("what", "reason"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise EventError(f"NonPrivate.{name} must say something, got {value!r}")


PrivateEvent = PoissonGaussian | Gaussian
Event = PrivateEvent | NonPrivate
_KINDS: dict[str, type[PoissonGaussian] | type[Gaussian] | type[NonPrivate]] = {
    event.kind: event for event in (PoissonGaussian, Gaussian, NonPrivate)
}


def to_json(event: Event) -> dict[str, Any]:
    """The event as a JSON object: its fields, and the kind and version that fix their meaning.

    >>> to_json(NonPrivate("n_k", "public weights"))
    {'kind': 'NonPrivate', 'version': 1, 'what': 'n_k', 'reason': 'public weights'}
    """
    return {"kind": event.kind, "version": event.version, **asdict(event)}


def from_json(value: Mapping[str, Any]) -> Event:
    """The event that a JSON object states.

    Raises:
        EventError: unknown kind or version, a field too many or too few, or a value out of range.
    """
    if not isinstance(value, Mapping):
        raise EventError(f"an event must be a JSON object, got {value!r}")
    kind, version = value.get("kind"), value.get("version")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None or type(version) is not int or version != cls.version:
        raise EventError(f"event kind {kind!r} version {version!r} is unknown here; upgrade, never guess")
    names = {field.name for field in fields(cls)}
    if set(value) != names | {"kind", "version"}:
        raise EventError(f"event {kind} must have exactly the fields {sorted(names)}, got {sorted(value)}")
    event = cls(**{name: value[name] for name in names})
    # A float written as an integer would give one event two texts, hence two hashes.
    if any(type(getattr(event, name)) is not type(value[name]) for name in names):
        raise EventError(f"event {kind} has a field of the wrong JSON type: {dict(value)!r}")
    return event


def _positive(event: object, *names: str, at_most: float = math.inf) -> None:
    """Store the named fields as floats in (0, at_most]; zero noise is no mechanism at all."""
    for name in names:
        value = getattr(event, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise EventError(f"{name} must be a number, got {value!r}")
        if not (math.isfinite(value) and 0 < value <= at_most):
            limit = "" if at_most == math.inf else f" and at most {at_most:g}"
            raise EventError(f"{name} must be finite, above 0{limit}, got {value!r}")
        object.__setattr__(event, name, float(value))


def _check_steps(steps: object) -> None:
    """Steps are counted, never estimated: a whole number."""
    if type(steps) is not int or steps < 0:
        raise EventError(f"steps must be a whole number, 0 or more, got {steps!r}")


def _check_adjacency(adjacency: object) -> None:
    """The adjacency must be one that pricing knows."""
    if adjacency not in ADJACENCIES:
        raise EventError(f"adjacency must be one of {ADJACENCIES}, got {adjacency!r}")
