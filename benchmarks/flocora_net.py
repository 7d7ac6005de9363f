"""The net of FLoCoRA's setting in small: residual, with LoRA on its inner convolutions and all else trained in full.

1 → 16 channels with stride 2, then two residual blocks with stride 2 to 32 and 64, means over quarters, a linear head:
72,250 weights. Means over all places, as ResNets have them, learn much more slowly at this size. A random net stays
frozen where there is LoRA; α = 16r, as published. Group norms, not batch norms, whose running statistics are no weights
and would have to be averaged too.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlora_priv.communication.scales import Channels

Vector = NDArray[np.float32]

WIDTHS = (16, 32, 64)


class LoRAConv(nn.Module):
    """A frozen 3×3 convolution plus α/r times a 1×1 convolution B of an r-channel 3×3 convolution A; B begins at zero.

    That is one convolution, whose kernel is `merged`: W + (α/r)·Σ_j B[:, j]·A[j]. It is computed as one.
    """

    def __init__(self, inside: int, outside: int, stride: int, rank: int) -> None:
        super().__init__()
        self.base = _convolution(inside, outside, stride)
        self.base.weight.requires_grad_(False)
        self.lora_a = nn.Conv2d(inside, rank, 3, bias=False)
        self.lora_b = nn.Conv2d(rank, outside, 1, bias=False)
        nn.init.zeros_(self.lora_b.weight)
        self.stride = stride
        self.scaling = 16.0  # α/r

    def forward(self, images: Tensor) -> Tensor:
        """Return the convolved images."""
        return nn.functional.conv2d(images, self.merged(), stride=self.stride, padding=1)

    def merged(self) -> Tensor:
        """Return the kernel, shape (outside, inside, 3, 3)."""
        product = self.lora_b.weight.flatten(1) @ self.lora_a.weight.flatten(1)
        merged: Tensor = self.base.weight + self.scaling * product.view_as(self.base.weight)
        return merged


class Block(nn.Module):
    """Two convolutions with norms, around which the images go as they are: every second place, new channels zero."""

    def __init__(self, inside: int, outside: int, rank: int | None) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _inner(inside, outside, 2, rank),
            nn.GroupNorm(4, outside),
            nn.ReLU(),
            _inner(outside, outside, 1, rank),
            nn.GroupNorm(4, outside),
        )
        self.more = outside - inside

    def forward(self, images: Tensor) -> Tensor:
        """Return images of half the width and height."""
        around = nn.functional.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.more))
        both: Tensor = around + self.body(images)
        return both.relu()


def _convolution(inside: int, outside: int, stride: int) -> nn.Conv2d:
    """Return a 3×3 convolution with He's normal weights."""
    made = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(made.weight, nonlinearity="relu")
    return made


def _inner(inside: int, outside: int, stride: int, rank: int | None) -> nn.Module:
    """Return a convolution that is trained as LoRA of that rank, or whole."""
    return _convolution(inside, outside, stride) if rank is None else LoRAConv(inside, outside, stride, rank)


def build(rank: int | None, seed: int) -> nn.Sequential:
    """Return the net of that seed, with LoRA of `rank` on its inner convolutions or with all of it trained."""
    torch.manual_seed(seed)
    first, middle, last = WIDTHS
    return nn.Sequential(
        _convolution(1, first, 2),
        nn.GroupNorm(4, first),
        nn.ReLU(),
        Block(first, middle, rank),
        Block(middle, last, rank),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * last, 10),
    )


def trainable(net: nn.Module) -> list[nn.Parameter]:
    """Return what is trained, in order."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def lora_and_rest(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the LoRA matrices, and what else is trained."""
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    return [p for name, p in named if "lora_" in name], [p for name, p in named if "lora_" not in name]


def read(net: nn.Module) -> Vector:
    """Return what is trained as one vector."""
    return np.concatenate([p.detach().numpy().ravel() for p in trainable(net)])


def write(net: nn.Module, vector: Vector) -> None:
    """Set what is trained."""
    at = 0
    for parameter in trainable(net):
        part = torch.from_numpy(vector[at : at + parameter.numel()].copy())
        parameter.data = part.reshape(parameter.shape)
        at += parameter.numel()


def output_channels(net: nn.Module) -> Channels:
    """Return the channels of what is trained: LoRA's components (rows of A, columns of B), other arrays' rows."""
    shapes = {str(i): tuple(p.shape) for i, p in enumerate(trainable(net))}
    axes: dict[str, int | None] = {}
    for name, shape in shapes.items():
        axes[name] = None if len(shape) < 2 else 1 if shape[2:] == (1, 1) else 0
    return Channels.along(shapes, axes)
