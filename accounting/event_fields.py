"""What the events share: whom a price protects, against whom, and the checks of their fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from .errors import EventError

Unit = Literal["example", "client"]
Adjacency = Literal["add-remove", "replace-one", "zero-out"]
View = Literal["server", "released-model", "colluding-clients"]

UNITS: tuple[Unit, ...] = ("example", "client")
VIEWS: tuple[View, ...] = ("server", "released-model", "colluding-clients")
ADJACENCIES: tuple[Adjacency, ...] = ("add-remove", "replace-one")  # of examples
# Secure aggregation shows who takes part, so a client cannot be added or removed unseen: its data can be
# taken for zero, or for another client's.
CLIENT_ADJACENCIES: tuple[Adjacency, ...] = ("zero-out", "replace-one")


class LocalRelease:
    """What holds for an event whose noise one client adds alone, on each of its examples' behalf."""

    __slots__ = ()

    @property
    def unit(self) -> Unit:
        """Whose presence the price hides."""
        return "example"

    @property
    def views(self) -> tuple[View, ...]:
        """The adversaries against whom the price holds."""
        return VIEWS

    @property
    def max_colluders(self) -> int | None:
        """How many clients may collude in the view "colluding-clients"; None: all the others."""
        return None


def positive(event: object, *names: str, at_most: float = math.inf) -> None:
    """Store the named fields as floats in (0, at_most]; zero noise is no mechanism at all."""
    for name in names:
        value = number(event, name)
        if not (math.isfinite(value) and 0 < value <= at_most):
            limit = "" if at_most == math.inf else f" and at most {at_most:g}"
            raise EventError(f"{name} must be finite, above 0{limit}, got {value!r}")
        object.__setattr__(event, name, value)


def number(event: object, name: str) -> float:
    """The named field as a float. Raises EventError if it is no number."""
    value = getattr(event, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EventError(f"{name} must be a number, got {value!r}")
    return float(value)


def whole(event: object, *names: str, at_least: int = 0) -> None:
    """The named fields are whole numbers: steps and clients are counted, never estimated."""
    for name in names:
        value = getattr(event, name)
        if type(value) is not int or value < at_least:
            raise EventError(f"{name} must be a whole number, {at_least} or more, got {value!r}")


def one_of(event: object, name: str, allowed: Sequence[str]) -> None:
    """The named field is one of the words that pricing knows."""
    value = getattr(event, name)
    if value not in allowed:
        raise EventError(f"{name} must be one of {tuple(allowed)}, got {value!r}")
