"""Training on a part of the coordinates: which ones, array by array, and how values get in and out of them.

Under DP every trained coordinate gets its own noise. Where only k of N coordinates travel, training those k alone adds
noise of k dimensions instead of N: per-example gradients are cut to the support *before* their norms are taken, noise
is drawn on the support, and everything else stays as it was, bit for bit.

Guarantee: a step is the subsampled Gaussian mechanism that it is without a support, at the same clip norm C and
deviation z·C, so at the same price. A gradient cut to public coordinates and then clipped is at most C long, and what a
Gaussian mechanism costs depends on that length and the noise, not on how many coordinates there are. The support must
be public: chosen before the batch is drawn, from nothing but seeds and what was released.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.methods.layout import State

TrainSupport = Mapping[str, NDArray[np.bool_]]
"""By state name, which coordinates of each array are trained; shapes as the arrays'."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Some coordinates of an array.

    Attributes:
        shape: of the array.
        positions: where they are in the flattened array, int64 (k,), increasing, on the array's device.
    """

    shape: torch.Size
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, values: Tensor) -> Tensor:
        """Return these coordinates of arrays (n, *shape), as (n, k)."""
        return values.flatten(1).index_select(1, self.positions)

    def scatter(self, values: Tensor) -> Tensor:
        """Return an array with `values`, (k,), at these coordinates and zeros elsewhere."""
        flat = values.new_zeros(self.shape.numel())
        flat[self.positions] = values
        return flat.view(self.shape)

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """The rows of a matrix that have any of them, and which of those each is in: int64 (≤ k,) and (k,)."""
        found: tuple[Tensor, Tensor] = torch.unique(self.positions // self.shape[1], return_inverse=True)
        return found

    @cached_property
    def columns(self) -> tuple[Tensor, Tensor]:
        """The same for columns."""
        found: tuple[Tensor, Tensor] = torch.unique(self.positions % self.shape[1], return_inverse=True)
        return found


def coordinates(
    trained: Mapping[str, nn.Parameter], support: TrainSupport | None
) -> tuple[dict[str, nn.Parameter], dict[str, Coordinates]]:
    """Return the parameters that have anything to train, and which coordinates of those that are trained in part.

    Args:
        trained: by state name, in the order that is kept.
        support: of exactly these arrays; None trains all of them.

    Raises:
        ConfigError: the support is of other arrays or shapes, or of no coordinate at all.
    """
    if support is None:
        return dict(trained), {}
    if set(support) != set(trained):
        odd = min(set(support) ^ set(trained))
        raise ConfigError(f"support and trained arrays differ in {odd}", "mark coordinates of each of them")
    kept: dict[str, nn.Parameter] = {}
    parts: dict[str, Coordinates] = {}
    for name, parameter in trained.items():
        chosen = np.asarray(support[name])
        if chosen.dtype != np.bool_ or chosen.shape != tuple(parameter.shape):
            raise ConfigError(f"the support of {name} must be bool of shape {tuple(parameter.shape)}")
        if chosen.any():
            kept[name] = parameter
            if not chosen.all():
                positions = torch.from_numpy(np.flatnonzero(chosen)).to(parameter.device)
                parts[name] = Coordinates(parameter.shape, positions)
    if not kept:
        raise ConfigError("the support has no coordinate, so nothing would be trained")
    return kept, parts


def require_unmoved(start: State, trained: State, support: TrainSupport) -> None:
    """Raise FedloraError unless every coordinate outside of the support is as it was, bit for bit."""
    for name, chosen in support.items():
        before, after = (np.asarray(state[name], dtype=np.float32)[~chosen] for state in (start, trained))
        if before.tobytes() != after.tobytes():
            raise FedloraError(
                f"training moved {name} outside of the support", "no hook and no optimizer may do that"
            )
