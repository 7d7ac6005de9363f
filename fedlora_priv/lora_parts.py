"""What some methods have beside PEFT's A and B: a square R between them, and a residual beside the base weights.

    output = W0·x + residual·x + s·B·R·A·x

Both are modules of their own that work through hooks, so every clipping engine sees R as any other linear layer, and
W0 is never touched: a model without residual is the model that was loaded, bit for bit, and models that share their
base weights can have residuals that differ.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SQUARE = "lora_R"
_RESIDUAL = "residual"
RESIDUAL_PARTS = ("base", "base_B", "base_A")
"""Endings of a residual's names in a state: dense (m, n), or thin factors (m, k) and (k, n)."""


class Residual(nn.Module):
    """What was added to a frozen linear map's weights; as a forward hook it adds itself to the output.

    Args:
        parts: by their endings in a state.
    """

    def __init__(self, parts: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in parts.items():
            self.register_buffer(name, value)

    # torch hands a hook the layer too
    def forward(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG002  # torch's call
        """Return `output` and the residual times the first of the inputs."""
        parts = dict(self.named_buffers())
        if "base" in parts:
            return output + nn.functional.linear(inputs[0], parts["base"])
        return output + nn.functional.linear(
            nn.functional.linear(inputs[0], parts["base_A"]), parts["base_B"]
        )


def read_residual(layer: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return copies of the parts of a frozen layer's residual, by ending; none where it has none."""
    residual = getattr(layer, _RESIDUAL, None)
    if residual is None:
        return {}
    return {name: value.to("cpu", torch.float32).numpy().copy() for name, value in residual.named_buffers()}


def write_residual(layer: Any, parts: dict[str, NDArray[np.float32]]) -> None:
    """Give a frozen layer this residual in place of the one it had; with no parts, none."""
    old = layer._modules.pop(_RESIDUAL, None)
    if old is not None:
        old.hooked.remove()
    if parts:
        residual = Residual({name: _as_tensor(value, layer) for name, value in parts.items()})
        layer.add_module(_RESIDUAL, residual)
        residual.hooked = layer.register_forward_hook(residual)


def add_square(layer: Any, adapter: str) -> None:
    """Put R, zero at first, between A and B of a LoRA layer; nothing if it is there."""
    b = layer.lora_B[adapter]
    if not hasattr(b, SQUARE):
        weight = b.weight
        square = nn.Linear(weight.shape[1], weight.shape[1], bias=False, device=weight.device)
        nn.init.zeros_(square.weight)
        b.add_module(SQUARE, square)
        square.hooked = b.register_forward_pre_hook(_through_square)


def remove_square(layer: Any, adapter: str) -> None:
    """Take R out of a LoRA layer; nothing if there is none."""
    square = layer.lora_B[adapter]._modules.pop(SQUARE, None)
    if square is not None:
        square.hooked.remove()


def set_rank(layer: Any, adapter: str, rank: int, scaling: float) -> None:
    """Give a LoRA layer new A and B, zero, of that rank, and that scaling."""
    a, b = layer.lora_A[adapter], layer.lora_B[adapter]
    a.weight.data = a.weight.new_zeros(rank, a.in_features)
    b.weight.data = b.weight.new_zeros(b.out_features, rank)
    a.out_features = b.in_features = layer.r[adapter] = rank
    layer.scaling[adapter] = scaling


def _through_square(b: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Return what enters B: R times what leaves A."""
    square: nn.Module = getattr(b, SQUARE)
    return (square(inputs[0]),)


def _as_tensor(values: NDArray[np.float32], layer: Any) -> Tensor:
    """Return a copy of the values beside a layer's weights, in their precision."""
    return torch.tensor(values, device=layer.weight.device, dtype=layer.weight.dtype)
