"""The public constants of a client's private steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accounting.adaptive_clip import AdaptiveClip
from fedlora_priv.errors import ConfigError
from fedlora_priv.training.engine import Clipping, Mode, require_known


@dataclass(frozen=True)
class StepSettings:
    """What `PrivateTrainer.train` does in each step; nothing here may depend on private data.

    Attributes:
        steps: number of DP-SGD steps, at least 1.
        sample_rate: probability q with which each example joins a step.
        planned_batch_size: the normaliser, a public constant (q times the declared number of examples).
        noise_multiplier: noise standard deviation over `clip_norm`; 0 gives no privacy at all.
        clip_norm: L2 bound of one example's gradient over all trained arrays together.
        learning_rate: of the optimizer.
        optimizer: "sgd" (no momentum) or "adam"; its state starts afresh and sees noised gradients only.
        max_tokens_per_microbatch: padded tokens computed at once; bounds memory, not the batch.
        clipping: "flat" scales an example's whole gradient; "per-layer" each module's part of it, to
            ``clip_norm / √modules``. Both bound the whole by `clip_norm`, so both are priced alike.
        mode: how per-example gradients are clipped; every mode gives the same result up to rounding, and
            "auto" takes the fastest that fits the model; see `clipping`.
        gradient_checkpointing: compute each layer's activations twice instead of keeping them: about a third
            of the memory and half more time (docs/decisions/0030 and 0041), the same result.
        adaptive: how the clip norm follows noised counts, from `clip_norm` on; None keeps it constant. Then
            `noise_multiplier` is that of the gradients, which `accounting.planning` has made room for counts in.

    Raises:
        ConfigError: a value out of range.
    """

    steps: int
    sample_rate: float
    planned_batch_size: float
    noise_multiplier: float
    clip_norm: float
    learning_rate: float
    optimizer: str = "sgd"
    max_tokens_per_microbatch: int = 2048
    clipping: Clipping = "flat"
    mode: Mode = "auto"
    gradient_checkpointing: bool = False
    adaptive: AdaptiveClip | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise ConfigError(
                f"the sample rate must be in (0, 1], not {self.sample_rate}",
                "a batch cannot be larger than the data",
            )
        positive = ("steps", "planned_batch_size", "clip_norm", "learning_rate", "max_tokens_per_microbatch")
        for name in positive:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be positive, not {value}")
        if not isinstance(self.steps, int):
            raise ConfigError(f"steps must be a whole number, not {self.steps}")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ConfigError(f"noise_multiplier must be zero or more, not {self.noise_multiplier}")
        require_known(clipping=self.clipping, mode=self.mode)
        if self.adaptive is not None and self.clipping != "flat":
            raise ConfigError(
                f"adaptive clipping counts gradients clipped as a whole, not {self.clipping}", 'use "flat"'
            )
