"""The private step: to a sum of clipped gradients add noise, divide by the planned batch size, step.

Guarantee: one step on a Poisson batch is the Poisson-subsampled Gaussian mechanism with sensitivity
`clip_norm` (add/remove one example) and standard deviation ``noise_multiplier * clip_norm``, for a batch of
any size, zero included.

Source: Abadi et al. 2016, algorithm 1, in Opacus' `DPOptimizer`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedlora_priv.errors import ConfigError
from fedlora_priv.training.noise import gaussian_noise
from fedlora_priv.training.support import Coordinates
from protocols.prg import SecretStream
from protocols.redaction import Redacted


class SecretNoiseOptimizer(Redacted, DPOptimizer):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' optimizer with noise from a `SecretStream` and a batch that may be empty; never copied or pickled.

    Clipping is not done here: a `clipping.ClippingEngine` leaves each microbatch's clipped sum in the parameters'
    ``summed_grad``. After the last microbatch, or after none, call `step`; or `pre_step`, which leaves the noised
    gradients in the parameters, and have `original_optimizer` step.

    Args:
        optimizer: a fresh torch optimizer over the trained parameters, all float32.
        stream: the client's secret stream.
        noise_multiplier: noise standard deviation over `clip_norm`.
        clip_norm: largest L2 norm of one example's gradient over all trained parameters together.
        planned_batch_size: the public normaliser. Never the drawn size, which is private.
        parts: for each parameter of `optimizer` the coordinates that are trained, or None for all of them; by default
            all of all. Others get no noise and a gradient of zero, at which neither SGD nor Adam moves anything.

    Attributes:
        noise_digest: 16 hex digits by which the last step's noise is known again, should a stream repeat itself.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        stream: SecretStream,
        noise_multiplier: float,
        clip_norm: float,
        planned_batch_size: float,
        parts: Sequence[Coordinates | None] = (),
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=planned_batch_size,
            loss_reduction="mean",
        )
        self._stream = stream
        self._parts = tuple(parts) or (None,) * len(self.params)
        self.noise_digest = ""

    def add_noise(self) -> None:
        """Set each ``grad`` to its clipped sum, zero if the batch was empty, plus noise."""
        sizes = [
            p.numel() if part is None else len(part) for p, part in zip(self.params, self._parts, strict=True)
        ]
        drawn = gaussian_noise(self._stream, sum(sizes), self.noise_multiplier * self.max_grad_norm)
        self.noise_digest = hashlib.sha256(drawn.data).hexdigest()[:16]
        cut = torch.split(torch.from_numpy(drawn), sizes)
        for parameter, part, noise in zip(self.params, self._parts, cut, strict=True):
            noise = noise.to(parameter.device)
            total = noise.view(parameter.shape) if part is None else part.scatter(noise)
            if parameter.summed_grad is not None:
                total = total + parameter.summed_grad
            parameter.grad = (total / self.expected_batch_size).to(parameter.dtype)
            parameter.summed_grad = None

    def clipped_sums(self) -> list[Tensor]:
        """Return what `add_noise` is about to add to: each parameter's clipped sum (float64), zero if empty."""
        return [
            torch.zeros_like(p, dtype=torch.float64) if p.summed_grad is None else p.summed_grad
            for p in self.params
        ]

    def pre_step(self) -> bool:
        """Noise and scale the accumulated sum; the engine has clipped it."""
        self.add_noise()
        if self.step_hook:
            self.step_hook(self)
        return True


def make_optimizer(name: str, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Return a fresh SGD (no momentum) or Adam over `parameters`; its state sees noised gradients only."""
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ConfigError(f"the learning rate must be positive, not {learning_rate}")
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate)
    raise ConfigError(f"there is no optimizer {name!r}", 'use "sgd" or "adam"')
