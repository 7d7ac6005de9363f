"""Ghost clipping through Opacus: one backward pass for the norms, one for the sum of weighted losses.

No example's gradient is ever held, so it needs the least memory; but a second backward pass costs far more than
LoRA's small per-example gradients. Opacus takes norms of linear layers in float32, where a sum over pairs of
tokens can cancel and come out too small; here they are taken as `linear` takes them.

Source: Li et al. 2022, section 4, in Opacus' `GradSampleModuleFastGradientClipping`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import Tensor, nn

from fedlora_priv.errors import ConfigError
from fedlora_priv.training.direct import direct_clipping, trained_layers
from fedlora_priv.training.engine import (
    ClipCounts,
    Clipping,
    ClippingEngine,
    Losses,
    nothing_recorded,
)
from fedlora_priv.training.hooks import forget_batches, quiet_hooks
from fedlora_priv.training.linear import bias_gradients, weight_gradients

_NORMS = "_norm_sample"
_COUNTER = "_forward_counter"


def _linear_norms(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> dict[Any, Tensor]:
    """Return each example's gradient norm, float64 (n,), for the weight and the bias of a linear layer."""
    norms: dict[Any, Tensor] = {}
    outputs = backprops.to(layer.weight.dtype)
    if layer.weight.requires_grad:
        inputs = activations[0].to(layer.weight.dtype)
        norms[layer.weight] = weight_gradients(inputs, outputs).squares().sqrt()
    if layer.bias is not None and layer.bias.requires_grad:
        norms[layer.bias] = bias_gradients(outputs).squares().sqrt()
    return norms


class _Hooked(GradSampleModuleFastGradientClipping):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' module with norms that are never too small."""

    NORM_SAMPLERS: ClassVar[dict[type, Any]] = {nn.Linear: _linear_norms}


class GhostEngine(ClippingEngine):
    """Clips by weighting the losses, once the norms are known."""

    name = "ghost"

    def __init__(
        self, model: nn.Module, hooked: _Hooked, trained: Mapping[str, nn.Parameter], clipping: Clipping
    ) -> None:
        super().__init__(trained, clipping)
        self._model, self._hooked, self._clipping = model, hooked, clipping

    def add(self, losses: Losses, clip_norm: float) -> ClipCounts:
        """Clip and add one microbatch; see `ClippingEngine.add`."""
        self._hooked.enable_hooks()
        try:
            each = losses(self._hooked)
            each.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]  # backward is untyped in torch
        except NotImplementedError as error:  # Opacus, of a layer that is used twice
            raise ConfigError(f"no ghost clipping here: {error}", 'use training mode "direct"') from error
        finally:
            self._hooked.disable_hooks()
        factors, counts = self._factors(self._take_norms(), len(each), clip_norm)
        if counts.non_finite:
            # Their weight is zero, but zero times infinity is not: other examples' sums must not see them.
            with direct_clipping(self._model, self._trained, self._clipping) as direct:
                return direct.add(losses, clip_norm)
        self._add_weighted(each, factors)
        return counts

    def _add_weighted(self, losses: Tensor, factors: Tensor) -> None:
        """Add the gradient of the weighted losses; arrays with weights of their own take a pass of their own."""
        names, parameters = list(self._trained), list(self._trained.values())
        for group in range(max(self._groups) + 1):
            members = [i for i, number in enumerate(self._groups) if number == group]
            weighted = (losses * factors[members[0]].to(losses.dtype)).sum()
            sums = torch.autograd.grad(weighted, [parameters[i] for i in members], retain_graph=True)
            self._add_sums(dict(zip((names[i] for i in members), sums, strict=True)))

    def _take_norms(self) -> list[Tensor]:
        """Return each parameter's squared norms, float64 (n,), and clear them and the batch's gradient."""
        squares = []
        for name, parameter in self._trained.items():
            norms = getattr(parameter, _NORMS, None)
            if not isinstance(norms, Tensor):
                raise nothing_recorded(name)
            squares.append(norms.square())
            delattr(parameter, _NORMS)
            parameter.grad = None
        return squares


@contextmanager
def ghost_clipping(
    model: nn.Module, trained: Mapping[str, nn.Parameter], clipping: Clipping
) -> Iterator[GhostEngine]:
    """Give a ghost engine; inside, the trained layers have Opacus' hooks.

    Raises:
        ConfigError: a trained layer is not linear.
    """
    layers = trained_layers(model, trained)
    with quiet_hooks():
        hooked = _Hooked(model, loss_reduction="sum", strict=True)
        try:
            for layer in layers:
                layer.training = True  # Opacus' hooks look at that
            yield GhostEngine(model, hooked, trained, clipping)
        finally:
            hooked.to_standard_module()
            forget_batches(model)
            for parameter in trained.values():
                for name in (_NORMS, _COUNTER):
                    parameter.__dict__.pop(name, None)
