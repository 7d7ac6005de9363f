"""What was released, never what it cost.

An event's meaning never changes: a change of meaning is a new version, and a reader refuses the kinds and
versions it does not know. Every event with a price says whom it protects (`unit`, `adjacency`), against whom
(`views`, and up to how many `max_colluders`), how batches were drawn (`sampler`) and how often it happened
(`steps`). To add a kind: write its dataclass, add it here, and teach `mechanisms.mechanism_of` what a step of it is.

    one client adds all the noise     PoissonGaussian, Gaussian, FixedSizeGaussian, ShuffledGaussian,
                                      AdaptiveClipPoissonGaussian
    shares of noise under masks       DistributedDiscreteGaussian, DistributedSkellam
    several runs, the best is kept    Tuning, RepeatedTrials
    outside every guarantee           NonPrivate
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .distributed_events import DistributedDiscreteGaussian, DistributedSkellam
from .errors import EventError
from .event_fields import ADJACENCIES, CLIENT_ADJACENCIES, UNITS, VIEWS, Adjacency, Unit, View
from .gaussian_events import (
    AdaptiveClipPoissonGaussian,
    FixedSizeGaussian,
    Gaussian,
    PoissonGaussian,
    ShuffledGaussian,
)
from .trial_events import Candidate, RepeatedTrials, Tuning

__all__ = [
    "ADJACENCIES",
    "CLIENT_ADJACENCIES",
    "UNITS",
    "VIEWS",
    "AdaptiveClipPoissonGaussian",
    "Adjacency",
    "Candidate",
    "DistributedDiscreteGaussian",
    "DistributedNoise",
    "DistributedSkellam",
    "Event",
    "FixedSizeGaussian",
    "Gaussian",
    "NonPrivate",
    "PoissonGaussian",
    "PrivateEvent",
    "RepeatedTrials",
    "ShuffledGaussian",
    "Tuning",
    "Unit",
    "View",
    "from_json",
    "to_json",
]


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


DistributedNoise = DistributedDiscreteGaussian | DistributedSkellam
PrivateEvent = Candidate | Tuning | RepeatedTrials
Event = PrivateEvent | NonPrivate
_KINDS: dict[str, type[Any]] = {
    event.kind: event
    for event in (
        PoissonGaussian,
        Gaussian,
        FixedSizeGaussian,
        ShuffledGaussian,
        AdaptiveClipPoissonGaussian,
        DistributedDiscreteGaussian,
        DistributedSkellam,
        Tuning,
        RepeatedTrials,
        NonPrivate,
    )
}


def to_json(event: Event) -> dict[str, Any]:
    """The event as a JSON object: its fields, and the kind and version that fix their meaning.

    >>> to_json(NonPrivate("n_k", "public weights"))
    {'kind': 'NonPrivate', 'version': 1, 'what': 'n_k', 'reason': 'public weights'}
    """
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    if isinstance(event, Tuning | RepeatedTrials):
        values["candidate"] = to_json(event.candidate)
    return {"kind": event.kind, "version": event.version, **values}


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
    stated = {name: value[name] for name in names}
    if "candidate" in names:
        stated["candidate"] = _read_candidate(stated["candidate"])
    event: Event = cls(**stated)
    # A float written as an integer would give one event two texts, hence two hashes.
    if any(type(getattr(event, name)) is not type(stated[name]) for name in names):
        raise EventError(f"event {kind} has a field of the wrong JSON type: {dict(value)!r}")
    return event


def _read_candidate(value: Mapping[str, Any]) -> Event:
    """The event inside another. Repeated runs do not nest: reading ends whatever the text says."""
    if isinstance(value, Mapping) and "candidate" in value:
        raise EventError("the candidate of repeated runs must be a plain event, not repeated runs again")
    return from_json(value)
