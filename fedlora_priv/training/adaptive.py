"""The clip norm of each step in turn: a constant, or one that follows noised counts and is paid for.

With adaptive clipping a step releases, beside its noised sum of gradients, how many of the drawn examples had a
gradient within the clip norm C: b = Σ (1[‖g‖ ≤ C] - ½) plus Gaussian noise. Each example moves b by exactly ½ when it
is added or removed, whichever way it falls, and `accounting.adaptive_clip` splits the planned noise accordingly. The
next C is computed from noised counts and public constants alone, so it is public, and may cross rounds.

Opacus' `AdaClipDPOptimizer` is not used: it counts without the shift, so its noise is half of what is charged, and
it divides by the drawn batch's size, which is private.

Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially private learning with adaptive clipping",
Algorithm 1 and Theorem 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from accounting.private_audit import CountRecord
from fedlora_priv.training.engine import ClipCounts
from fedlora_priv.training.noise import gaussian_noise
from fedlora_priv.training.settings import StepSettings
from protocols.prg import SecretStream


class ClipNorm:
    """What the steps of one client clip to.

    Args:
        settings: public constants; `settings.clip_norm` is where it begins, and `settings.adaptive` how it goes on.
        stream: the client's secret stream, for the noise on counts: drawn after that of the step's gradients, so
            independent of it.

    Attributes:
        value: the clip norm of the next step; public.

    Guarantee:
        `value` is post-processing of noised counts, which the accounting charges beside the gradients.
    """

    def __init__(self, settings: StepSettings, stream: SecretStream) -> None:
        self._rule = settings.adaptive
        self._planned_batch_size = settings.planned_batch_size
        self._stream = stream
        self.value = settings.clip_norm

    def follow(self, counts: Sequence[ClipCounts]) -> CountRecord | None:
        """Move on after a step, and return what was counted: private but for its noised count; None if constant.

        Args:
            counts: what clipping to `value` did to each microbatch of the step's batch; none for an empty batch,
                whose count is noise alone. An example whose gradient is not finite counts as outside.
        """
        if self._rule is None:
            return None
        unclipped = sum(count.unclipped for count in counts)
        shifted = unclipped - sum(count.examples for count in counts) / 2
        noise = float(gaussian_noise(self._stream, 1, self._rule.count_noise_stddev)[0])
        record = CountRecord(self.value, unclipped, shifted + noise)
        self.value = self._rule.next_clip_norm(self.value, record.noised, self._planned_batch_size)
        return record
