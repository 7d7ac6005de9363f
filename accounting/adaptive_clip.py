"""A clip norm that follows noised counts: its public constants, and how one release's noise is split in two.

Each step releases a sum of clipped gradients and a count of how many needed no clipping. Together they are one
Gaussian mechanism, so a planned noise multiplier z is divided between them; the clip norm of the next step is
computed from the noised count, so it is as public as the update.

Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially private learning with adaptive clipping",
Algorithm 1 and Theorem 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from .errors import PlanningError

_DECIMALS = 1e6  # of a noise multiplier, as calibration rounds it
_LEAST_SHARE = 0.01  # of the precision z^-2, for the gradients: beyond it they would be noise alone


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveClip:
    """The public constants by which a client's clip norm follows the share of gradients within it.

    Attributes:
        target_quantile: the share of examples whose gradient should need no clipping.
        learning_rate: the clip norm changes by the factor e^(-learning_rate · (share - target_quantile)) a step.
        count_noise_stddev: standard deviation of the noise on each step's count.
        smallest_clip_norm, largest_clip_norm: the clip norm never leaves this public range.

    Raises:
        PlanningError: a constant out of range.
    """

    target_quantile: float
    learning_rate: float
    count_noise_stddev: float
    smallest_clip_norm: float
    largest_clip_norm: float

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise PlanningError(f"adaptive clipping: {item.name} must be a number, got {value!r}")
            if not (math.isfinite(value) and value > 0):
                raise PlanningError(
                    f"adaptive clipping: {item.name} must be finite and above 0, got {value!r}"
                )
            object.__setattr__(self, item.name, float(value))
        if self.target_quantile >= 1:
            raise PlanningError(f"the target quantile must lie between 0 and 1, got {self.target_quantile!r}")
        if self.smallest_clip_norm > self.largest_clip_norm:
            raise PlanningError("adaptive clipping: smallest_clip_norm is above largest_clip_norm")

    def gradient_noise(self, noise_multiplier: float) -> float:
        """The noise multiplier that the gradients must have for both releases to amount to `noise_multiplier`.

        z_gradients = (z^-2 - (2 · count_noise_stddev)^-2)^(-1/2), rounded up to six decimals. It is the larger of
        the two: the count takes its share of the price, and the gradients pay for it.

        Raises:
            PlanningError: the count alone would cost as much as both may, or nearly.

        >>> AdaptiveClip(target_quantile=0.5, learning_rate=0.2, count_noise_stddev=2.0,
        ...              smallest_clip_norm=0.1, largest_clip_norm=10.0).gradient_noise(1.0)
        1.032796
        """
        ratio = noise_multiplier / (2 * self.count_noise_stddev)
        left = 1 - ratio * ratio  # of the precision z^-2
        if not left > _LEAST_SHARE:
            raise PlanningError(
                f"counts noised by {self.count_noise_stddev:g} cost what a noise multiplier of "
                f"{2 * self.count_noise_stddev:g} does, which leaves the gradients nothing of the "
                f"{noise_multiplier:g} planned for both: take count noise well above {noise_multiplier / 2:g}"
            )
        return math.ceil(_DECIMALS * noise_multiplier / math.sqrt(left)) / _DECIMALS

    def next_clip_norm(self, clip_norm: float, noised_count: float, planned_batch_size: float) -> float:
        """The clip norm after a step at `clip_norm` whose noised count, shifted by one half each, is `noised_count`.

        The share within the clip norm is estimated as ½ + count / planned batch. The planned batch size is a public
        constant; the drawn one is private, and dividing by it would release it.
        """
        share = 0.5 + noised_count / planned_batch_size
        moved = math.log(clip_norm) - self.learning_rate * (share - self.target_quantile)
        low, high = math.log(self.smallest_clip_norm), math.log(self.largest_clip_norm)
        # The ends are stored, not computed: exp(log(x)) may lie a little outside the public range.
        if moved <= low:
            return self.smallest_clip_norm
        return self.largest_clip_norm if moved >= high else math.exp(moved)
