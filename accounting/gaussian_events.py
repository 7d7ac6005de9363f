"""Gaussian releases of one client that adds all of the noise itself: mode `local`.

Their price holds in every view, whoever else colludes, with or without masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .errors import EventError
from .event_fields import ADJACENCIES, Adjacency, LocalRelease, one_of, positive, whole


@dataclass(frozen=True, slots=True)
class PoissonGaussian(LocalRelease):
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
    sampler: ClassVar[str] = "poisson"

    def __post_init__(self) -> None:
        positive(self, "noise_multiplier", "clip_norm")
        positive(self, "sample_rate", at_most=1.0)
        whole(self, "steps")
        one_of(self, "adjacency", ADJACENCIES)


@dataclass(frozen=True, slots=True)
class Gaussian(LocalRelease):
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
    sampler: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        positive(self, "noise_multiplier", "clip_norm")
        whole(self, "steps")
        one_of(self, "adjacency", ADJACENCIES)


@dataclass(frozen=True, slots=True)
class FixedSizeGaussian(LocalRelease):
    """`steps` Gaussian releases, each on a uniform secret sample of exactly `batch_size` examples.

    Each step draws its sample afresh, without replacement, from all `dataset_size` examples; the size of the
    data set is public. Otherwise as `PoissonGaussian`. `clip_norm` bounds one example's contribution, so two
    data sets that differ in one example differ by up to twice that.

    Guarantee: per example, replace-one only: a batch of fixed size hides no change of the data set's size.
    """

    noise_multiplier: float
    batch_size: int
    dataset_size: int
    steps: int
    clip_norm: float
    adjacency: Adjacency = "replace-one"
    kind: ClassVar[str] = "FixedSizeGaussian"
    version: ClassVar[int] = 1
    sampler: ClassVar[str] = "fixed-size"

    def __post_init__(self) -> None:
        positive(self, "noise_multiplier", "clip_norm")
        whole(self, "batch_size", "dataset_size", at_least=1)
        whole(self, "steps")
        one_of(self, "adjacency", ("replace-one",))
        if self.batch_size > self.dataset_size:
            raise EventError(f"batch_size {self.batch_size} is above dataset_size {self.dataset_size}")

    @property
    def sample_rate(self) -> float:
        """The share of the data set in each batch."""
        return self.batch_size / self.dataset_size


@dataclass(frozen=True, slots=True)
class ShuffledGaussian(LocalRelease):
    """`steps` whole passes over the data, each in disjoint batches of a fresh shuffle, every batch noised.

    A step here is a pass, not a batch, and one that was begun counts in full: within a pass an example is in
    exactly one batch, so a pass costs what one Gaussian release costs, and the shuffle amplifies nothing.

    Guarantee: per example, replace-one only: an example added or removed would move others between batches.
    """

    noise_multiplier: float
    steps: int
    clip_norm: float
    adjacency: Adjacency = "replace-one"
    kind: ClassVar[str] = "ShuffledGaussian"
    version: ClassVar[int] = 1
    sampler: ClassVar[str] = "shuffled"

    def __post_init__(self) -> None:
        positive(self, "noise_multiplier", "clip_norm")
        whole(self, "steps")
        one_of(self, "adjacency", ("replace-one",))


@dataclass(frozen=True, slots=True)
class AdaptiveClipPoissonGaussian(LocalRelease):
    """DP-SGD whose clip norm follows noised counts: two releases a step, on one and the same Poisson sample.

    The sum of clipped vectors gets noise of standard deviation `noise_multiplier` times the step's clip norm.
    Each example of the batch also adds +1/2 to a count if its norm was within the clip norm, else -1/2 (so
    that it changes the count by 1/2, not 1); the count gets Gaussian noise of standard deviation
    `count_noise_stddev`. `clip_norm` is the first step's; later ones depend on noised counts only, and are
    divided by the planned batch size, never by the drawn one.

    Guarantee: as `PoissonGaussian`, for both releases together.
    Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially private learning with adaptive
    clipping", Theorem 1.
    """

    noise_multiplier: float
    count_noise_stddev: float
    sample_rate: float
    steps: int
    clip_norm: float
    adjacency: Adjacency = "add-remove"
    kind: ClassVar[str] = "AdaptiveClipPoissonGaussian"
    version: ClassVar[int] = 1
    sampler: ClassVar[str] = "poisson"

    def __post_init__(self) -> None:
        positive(self, "noise_multiplier", "count_noise_stddev", "clip_norm")
        positive(self, "sample_rate", at_most=1.0)
        whole(self, "steps")
        one_of(self, "adjacency", ADJACENCIES)
