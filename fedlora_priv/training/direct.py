"""Clipping in one backward pass that computes nothing twice: per-example gradients instead of the batch's.

A plain backward pass sums each weight's gradient over the batch, and hooks then compute the same once more,
example by example. Here the trained linear layers run through an autograd function of their own, which in the
backward pass keeps the examples' gradients and leaves the batch's out. So a private step does about the work of
a plain one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn.functional import linear

from fedlora_priv.errors import ConfigError
from fedlora_priv.training.engine import (
    ClipCounts,
    Clipping,
    ClippingEngine,
    ExampleGradients,
    GradientRows,
    Losses,
    not_one_row_each,
    nothing_recorded,
)
from fedlora_priv.training.linear import bias_gradients, weight_gradients
from fedlora_priv.training.support import Coordinates


class DirectEngine(ClippingEngine):
    """Clips gradients that the trained layers' own backward passes leave behind."""

    name = "direct"

    def __init__(
        self,
        model: nn.Module,
        trained: Mapping[str, nn.Parameter],
        clipping: Clipping,
        parts: Mapping[str, Coordinates] | None = None,
    ) -> None:
        super().__init__(trained, clipping, parts)
        self._part_of = {id(trained[name]): part for name, part in self._parts.items()}
        self._model = model
        self._found: dict[int, ExampleGradients] = {}

    def add(self, losses: Losses, clip_norm: float) -> ClipCounts:
        """Clip and add one microbatch; see `ClippingEngine.add`."""
        self.forget()
        for parameter in self._trained.values():
            parameter.grad = None  # the last step's; anything there afterwards went past the recording
        each = losses(self._model)
        each.sum().backward()  # type: ignore[no-untyped-call]  # backward is untyped in torch
        return self._clip_and_add(self._take(), len(each), clip_norm)

    def record(self, layer: nn.Linear, inputs: Tensor, outputs: Tensor) -> None:
        """Keep the per-example gradients of one use of a layer, in the precision of its parameters."""
        dtype = layer.weight.dtype
        inputs, outputs = inputs.detach().to(dtype), outputs.detach().to(dtype)
        if layer.weight.requires_grad:
            part = self._part_of.get(id(layer.weight))
            self._keep(layer.weight, weight_gradients(inputs, outputs, part))
        if layer.bias is not None and layer.bias.requires_grad:
            self._keep(layer.bias, bias_gradients(outputs, self._part_of.get(id(layer.bias))))

    def forget(self) -> None:
        """Forget what an interrupted backward pass may have left behind: private, and of another batch."""
        self._found.clear()

    def _keep(self, parameter: Tensor, gradients: ExampleGradients) -> None:
        """Keep gradients; those of a parameter's several uses in one forward pass add up."""
        earlier = self._found.get(id(parameter))
        if earlier is not None:
            first, second = earlier.one_by_one(), gradients.one_by_one()
            if len(first.rows) != len(second.rows):  # such as positions that all examples share
                raise not_one_row_each()
            gradients = GradientRows(first.rows + second.rows, first.transposed)
        self._found[id(parameter)] = gradients

    def _take(self) -> list[ExampleGradients]:
        """Return what was kept for each parameter, and forget it, so that none is used twice."""
        for name, parameter in self._trained.items():
            if parameter.grad is not None:
                raise ConfigError(
                    f"{name} is also used outside its own layer, where its gradient escapes clipping",
                    'use training mode "hooks" only if the preflight agrees, or do not train this module',
                )
            if id(parameter) not in self._found:
                raise nothing_recorded(name)
        gradients = [self._found[id(parameter)] for parameter in self._trained.values()]
        self.forget()
        return gradients


@contextmanager
def direct_clipping(
    model: nn.Module,
    trained: Mapping[str, nn.Parameter],
    clipping: Clipping,
    parts: Mapping[str, Coordinates] | None = None,
) -> Iterator[DirectEngine]:
    """Give a direct engine; inside, the trained layers' forward passes are replaced."""
    engine = DirectEngine(model, trained, clipping, parts)
    layers = trained_layers(model, trained)
    try:
        for layer in layers:
            # Set on the instance, so that whatever hooks the layer has go on working around it.
            layer.forward = partial(_forward, engine, layer)  # type: ignore[method-assign]  # put back in the end
        yield engine
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
        engine.forget()


def trained_layers(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> list[nn.Linear]:
    """Return the modules that own trained parameters, all of them plain linear layers.

    Raises:
        ConfigError: one is something else, so its per-example gradients are not known here.
    """
    wanted = {id(parameter): name for name, parameter in trained.items()}
    layers: list[nn.Linear] = []
    missing = dict(wanted)
    for module in model.modules():
        own = [key for key in map(id, module._parameters.values()) if key in wanted]
        if not own:
            continue
        # Not a subclass: those may compute something else, or use their weight without calling forward.
        if type(module) is not nn.Linear or not {id(module.weight), id(module.bias)} >= set(own):
            raise ConfigError(
                f"{wanted[own[0]]} is of a {type(module).__name__}, not of a plain linear layer"
            )
        if "forward" in module.__dict__:
            raise ConfigError(f"the forward of the module of {wanted[own[0]]} has been replaced")
        layers.append(module)
        for key in own:
            missing.pop(key, None)
    if missing:
        raise ConfigError(f"no module of the model owns {min(missing.values())}")
    return layers


def _forward(engine: DirectEngine, layer: nn.Linear, inputs: Tensor) -> Tensor:
    """Return the layer's output, recorded."""
    output: Tensor = _RecordedLinear.apply(inputs, layer.weight, layer.bias, engine, layer)  # type: ignore[no-untyped-call]  # untyped in torch
    return output


class _RecordedLinear(Function):
    """A linear layer that in its backward pass records per-example gradients and sums none up."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, engine: DirectEngine, layer: nn.Linear
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.engine, ctx.layer = engine, layer
        return linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outputs: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        inputs, weight = ctx.saved_tensors
        ctx.engine.record(ctx.layer, inputs, outputs)
        if not ctx.needs_input_grad[0]:  # such as the first LoRA layer's
            return None, None, None, None, None
        # Under autocast outputs are coarser than weights. Small products are fastest with their weight in order.
        onwards = linear(outputs, weight.to(outputs.dtype).T.contiguous())
        return onwards.to(inputs.dtype), None, None, None, None
