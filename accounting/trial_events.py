"""Repeated runs of which the best is kept: tuning, restarts, model selection.

What is compared must itself be private: a score computed from a run's released result and public data is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .distributed_events import DistributedDiscreteGaussian, DistributedSkellam
from .errors import EventError
from .event_fields import Adjacency, Unit, View, number, positive, whole
from .gaussian_events import (
    AdaptiveClipPoissonGaussian,
    FixedSizeGaussian,
    Gaussian,
    PoissonGaussian,
    ShuffledGaussian,
)

Candidate = (
    PoissonGaussian
    | Gaussian
    | FixedSizeGaussian
    | ShuffledGaussian
    | AdaptiveClipPoissonGaussian
    | DistributedDiscreteGaussian
    | DistributedSkellam
)


@dataclass(frozen=True, slots=True)
class _Repeated:
    """Several runs of `candidate`: it protects whom, and against whom, one run of it does."""

    candidate: Candidate
    kind: ClassVar[str]
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.candidate, Candidate) or self.candidate.steps < 1:
            raise EventError(f"candidate must be an event of at least one step, got {self.candidate!r}")

    @property
    def unit(self) -> Unit:
        """The candidate's."""
        return self.candidate.unit

    @property
    def adjacency(self) -> Adjacency:
        """The candidate's."""
        return self.candidate.adjacency

    @property
    def views(self) -> tuple[View, ...]:
        """The candidate's."""
        return self.candidate.views

    @property
    def max_colluders(self) -> int | None:
        """The candidate's."""
        return self.candidate.max_colluders

    @property
    def sampler(self) -> str:
        """The candidate's."""
        return self.candidate.sampler


@dataclass(frozen=True, slots=True)
class Tuning(_Repeated):
    """The best of a random number of runs, and nothing about the others; `steps` such searches.

    Each run takes its own hyperparameters, drawn independently of the data, and costs at most what `candidate`
    does. Their number is drawn beforehand, in secret, from the truncated negative binomial distribution: from 1
    on, with `shape` > -1 (1: geometric, 0: logarithmic) and stopping parameter `gamma` in (0, 1). Neither that
    number nor any other run's result is released.

    Source: Papernot, Steinke 2022, "Hyperparameter tuning with Renyi differential privacy", Theorem 2.
    """

    shape: float
    gamma: float
    steps: int = 1
    kind: ClassVar[str] = "Tuning"

    def __post_init__(self) -> None:
        _Repeated.__post_init__(self)
        shape = number(self, "shape")
        if not (math.isfinite(shape) and shape > -1):
            raise EventError(f"shape must be finite and above -1, got {shape!r}")
        object.__setattr__(self, "shape", shape)
        positive(self, "gamma")
        if self.gamma >= 1:
            raise EventError(f"gamma must lie between 0 and 1, got {self.gamma!r}")
        if self.candidate.unit == "example" and getattr(self.candidate, "rounding_beta", 0.0) > 0:
            raise EventError("a candidate of Tuning must not charge delta: take rounding_beta = 0")
        whole(self, "steps")

    @property
    def mean_trials(self) -> float:
        """The expected number of runs.

        >>> Tuning(Gaussian(4.0, 1, 1.0), shape=1.0, gamma=0.1).mean_trials
        10.0
        """
        odds = (1 - self.gamma) / self.gamma
        if abs(self.shape) < 1e-9:  # the limit, before the quotient loses its digits
            return odds / math.log(1 / self.gamma)
        return odds * self.shape / -math.expm1(self.shape * math.log(self.gamma))


@dataclass(frozen=True, slots=True)
class RepeatedTrials(_Repeated):
    """A fixed number of runs, all of whose results may be seen: they compose; `steps` such series."""

    trials: int
    steps: int = 1
    kind: ClassVar[str] = "RepeatedTrials"

    def __post_init__(self) -> None:
        _Repeated.__post_init__(self)
        whole(self, "trials", at_least=1)
        whole(self, "steps")
