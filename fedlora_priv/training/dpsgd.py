"""The private step: clip each example's gradient, sum, add noise, divide by the planned batch size.

Guarantee: one step on a Poisson batch is the Poisson-subsampled Gaussian mechanism with sensitivity
`clip_norm` (add/remove one example) and standard deviation ``noise_multiplier * clip_norm``, for a batch of
any size, zero included.

Source: Abadi et al. 2016, algorithm 1, in Opacus' `DPOptimizer`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedlora_priv.errors import FedloraError
from fedlora_priv.training.noise import gaussian_noise
from protocols.prg import SecretStream
from protocols.redaction import Redacted

_ROUNDING = 1e-6  # float32 products may err by this much; clip that much lower


@dataclass(frozen=True)
class ClipCounts:
    """What clipping did to a microbatch; private.

    Attributes:
        clipped, non_finite: how many examples were scaled down, or zeroed for a gradient that is not finite.
        largest_norm: the largest norm of an example's gradient after that.
    """

    clipped: int
    non_finite: int
    largest_norm: float


class SecretNoiseOptimizer(Redacted, DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with noise from a `SecretStream` and a batch that may be empty; never copied or pickled.

    After every backward pass call `clip_and_accumulate`; after the last, or after none, call `step`.

    Args:
        optimizer: a fresh torch optimizer over the trained parameters, all float32.
        stream: the client's secret stream.
        noise_multiplier: noise standard deviation over `clip_norm`.
        clip_norm: largest L2 norm of one example's gradient over all trained parameters together.
        planned_batch_size: the public normaliser. Never the drawn size, which is private.

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
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=planned_batch_size,
            loss_reduction="mean",
        )
        self._stream = stream
        self.noise_digest = ""

    def clip_and_accumulate(self) -> ClipCounts:
        """Add the clipped gradients of the microbatch to each ``summed_grad`` (float64) and forget them.

        Raises:
            FedloraError: a parameter has no per-example gradients, so it would silently not be trained.
        """
        gradients = self._take_gradients()
        # Summed in float64: float32 can lose 1e-3 of a long vector's norm, and would then clip too little.
        squares = [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) ** 2 for g in gradients]
        norms = torch.stack(squares).sum(dim=0).sqrt()
        finite = torch.isfinite(norms.float())  # beyond float32, the factor below would be too coarse
        factors = (self.max_grad_norm / (norms * (1 + _ROUNDING))).clamp(max=1.0)
        for parameter, gradient in zip(self.params, gradients, strict=True):
            # Zero the rows first: 0 * inf would be nan. A zero row is within clip_norm like any other.
            gradient[~finite] = 0.0
            total = torch.einsum(
                "i,i...->...", torch.where(finite, factors, 0.0).to(gradient.dtype), gradient
            ).double()
            parameter.summed_grad = total if parameter.summed_grad is None else parameter.summed_grad + total
        kept = torch.where(finite, norms * factors, 0.0)
        return ClipCounts(int((factors < 1).sum()), int((~finite).sum()), float(kept.max()))

    def _take_gradients(self) -> list[Tensor]:
        """Return each parameter's per-example gradients (n, *shape) and clear them, so none is used twice."""
        gradients = []
        for parameter in self.params:
            if not isinstance(getattr(parameter, "grad_sample", None), Tensor):
                raise FedloraError(
                    f"a trainable of shape {tuple(parameter.shape)} got no per-example gradient",
                    "build a new PrivateTrainer after changing the model; switch gradient checkpointing off",
                )
            gradients.append(parameter.grad_sample)
            parameter.grad_sample = None
        return gradients

    def add_noise(self) -> None:
        """Set each ``grad`` to its clipped sum, zero if the batch was empty, plus noise."""
        sizes = [p.numel() for p in self.params]
        drawn = gaussian_noise(self._stream, sum(sizes), self.noise_multiplier * self.max_grad_norm)
        self.noise_digest = hashlib.sha256(drawn.data).hexdigest()[:16]
        for parameter, part in zip(self.params, torch.split(torch.from_numpy(drawn), sizes), strict=True):
            total = part.to(parameter.device).view(parameter.shape)
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
        """Noise and scale the accumulated sum; there is nothing left to clip."""
        if any(getattr(p, "grad_sample", None) is not None for p in self.params):
            self.clip_and_accumulate()
        self.add_noise()
        if self.step_hook:
            self.step_hook(self)
        return True


def make_optimizer(name: str, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Return a fresh SGD (no momentum) or Adam over `parameters`; its state sees noised gradients only."""
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise FedloraError(f"the learning rate must be positive, not {learning_rate}")
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate)
    raise FedloraError(f"there is no optimizer {name!r}", 'use "sgd" or "adam"')
