"""Sums under secure aggregation to which every client adds its share of the noise: `distributed`, `client`.

Their price rests on the masks: it holds against whoever sees nothing but sums. A client that colludes takes its
own share of the noise away, so only `survivors - max_colluders` shares are counted on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .errors import EventError
from .event_fields import (
    ADJACENCIES,
    CLIENT_ADJACENCIES,
    UNITS,
    VIEWS,
    Adjacency,
    Unit,
    View,
    number,
    one_of,
    positive,
    whole,
)

# Where a bound on the rounded norm fails with this probability at most, delta can pay for the failures.
LARGEST_UNCHECKED_BETA = 1e-15


@dataclass(frozen=True, slots=True)
class _DistributedNoise:
    """`steps` sums of integer vectors, each client's with its own share of integer noise, under masks.

    unit "example": every example enters a step by a secret Poisson draw with probability `sample_rate` (the
    largest of any client's) and adds a vector clipped to L2 norm `clip_norm`. unit "client": a client's whole
    vector is clipped to `clip_norm`, and `sample_rate` is 1, because cohorts are public.

    Vectors are rotated and padded to `dimension` coordinates, multiplied by `scale`, rounded at random,
    coordinate by coordinate and without bias, and reduced modulo 2^`modulus_bits`. Each client adds noise
    of standard deviation `local_stddev`, in integers, to every coordinate, never clamped. The sum is released
    only if at least `survivors` clients confirmed it, of whom at most `max_colluders` reveal their noise.

    `rounding_beta` is how often the bound on the rounded norm may fail. unit "client": never, since the
    client draws the rounding again until its integer norm fits (conditional rounding); beta only says how often
    it must. unit "example": nothing can be checked, so beta is 0, or at most 1e-15 and charged to delta at
    every step.

    Guarantee: per unit, under the stated adjacency, in the stated views.
    """

    local_stddev: float
    scale: float
    clip_norm: float
    dimension: int
    survivors: int
    max_colluders: int
    modulus_bits: int
    rounding_beta: float
    unit: Unit
    sample_rate: float
    steps: int
    adjacency: Adjacency
    kind: ClassVar[str]
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        positive(self, "local_stddev", "scale", "clip_norm")
        positive(self, "sample_rate", at_most=1.0)
        whole(self, "dimension", "survivors", "modulus_bits", at_least=1)
        whole(self, "steps", "max_colluders")
        one_of(self, "unit", UNITS)
        one_of(self, "adjacency", ADJACENCIES if self.unit == "example" else CLIENT_ADJACENCIES)
        if self.unit == "client" and self.sample_rate != 1.0:
            raise EventError(
                "cohorts are public, so sampling clients amplifies nothing: sample_rate must be 1"
            )
        if self.survivors <= self.max_colluders:
            raise EventError(
                f"{self.survivors} survivors, of whom {self.max_colluders} may collude, leave no noise that nobody "
                "knows: survivors must be more than max_colluders"
            )
        self._check_beta()

    def _check_beta(self) -> None:
        """Store beta as a float, if it is one that its unit allows."""
        beta = number(self, "rounding_beta")
        if not 0 <= beta < 1:
            raise EventError(f"rounding_beta must lie in [0, 1), got {beta!r}")
        if self.unit == "example" and beta > LARGEST_UNCHECKED_BETA:
            raise EventError(
                f"rounding_beta {beta:g} is too large: a sum of examples cannot be rounded again, so beta must be 0, "
                f"or at most {LARGEST_UNCHECKED_BETA:g} and charged to delta"
            )
        object.__setattr__(self, "rounding_beta", beta)

    @property
    def honest(self) -> int:
        """How many shares of noise the price counts on."""
        return self.survivors - self.max_colluders

    @property
    def central_noise_multiplier(self) -> float:
        """The counted noise's standard deviation over the clip norm; the price also depends on the rounding."""
        return math.sqrt(self.honest) * self.local_stddev / (self.scale * self.clip_norm)

    @property
    def views(self) -> tuple[View, ...]:
        """All of them, but that of colluding clients only if the price reckons with any."""
        return VIEWS if self.max_colluders else tuple(view for view in VIEWS if view != "colluding-clients")

    @property
    def sampler(self) -> str:
        """The name of the sampling scheme."""
        return "poisson" if self.sample_rate < 1 else "none"


@dataclass(frozen=True, slots=True)
class DistributedDiscreteGaussian(_DistributedNoise):
    """As `_DistributedNoise`; a share is a discrete Gaussian with parameter `local_stddev`, at least 1.

    A sum of discrete Gaussians is not quite one; below 1 the difference is too large to be priced.

    Source: Kairouz, Liu, Steinke 2021, "The distributed discrete Gaussian mechanism for federated learning
    with secure aggregation".
    """

    kind: ClassVar[str] = "DistributedDiscreteGaussian"

    def __post_init__(self) -> None:
        _DistributedNoise.__post_init__(self)
        if self.local_stddev < 1:
            raise EventError(
                f"local_stddev must be at least 1 in integers, got {self.local_stddev!r}: take a larger scale"
            )


@dataclass(frozen=True, slots=True)
class DistributedSkellam(_DistributedNoise):
    """As `_DistributedNoise`; a share is the difference of two Poisson draws of mean `local_stddev`²/2 each.

    Source: Agarwal, Kairouz, Liu 2021, "The Skellam mechanism for differentially private federated learning".
    """

    kind: ClassVar[str] = "DistributedSkellam"
