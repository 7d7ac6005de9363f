"""Fed-HeLLo's allocations by shape: fixed (GD-HLA) and drawn anew each round (RGD-HLA); and FedRA's.

Source: Fed-HeLLo and its code; FedRA and its code. See `shapes` for what a shape is.

* `Geometric`, GD-HLA: a client always trains the same layers, those that the shape gives to its budget.
* `RandomGeometric`, RGD-HLA: each round each client draws its budget of layers without replacement, one after the
  other, each with a probability in proportion to the shape's weights among those that are left.
* `FedRA`: all layers alike. The original trains a shallower model of the drawn blocks alone; here the client keeps
  the whole model, the other layers frozen, so its forward pass costs as much as anybody's.

Where a draw leaves a layer with too few clients, layers are exchanged (`cover.covered`), so with tight budgets the
counts are nearer to uniform than the shape.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.allocation import shapes
from fedlora_priv.allocation.base import Allocator, Part, Public, Setting
from fedlora_priv.allocation.cover import covered
from fedlora_priv.allocation.errors import AllocationError


class Geometric(Allocator):
    """GD-HLA: the same layers every round, the counts of clients in a shape.

    Args:
        shape: that of all clients together.
        holders: see `Allocator`.

    Raises:
        AllocationError: there is no such shape.
    """

    title = "GD-HLA (fixed layers by shape)"
    source = "Fed-HeLLo"

    def __init__(self, shape: shapes.Shape, holders: int = 1) -> None:
        super().__init__(holders)
        self.shape, self.name = _known(shape), f"gd-{shape}"

    def _parts(self, setting: Setting) -> dict[str, Part]:
        """Return the shape's layers for each budget."""
        layers = len(setting.cost.layers)
        chosen = shapes.dealt(self.shape, setting.budgets(), layers)
        held = np.concatenate([np.array(part, dtype=np.int64) for part in chosen.values()])
        shapes.require_shape(self.shape, np.bincount(held, minlength=layers).tolist())
        return setting.parts(chosen)


class Random(Allocator):
    """Base of allocators in which each client draws its budget of layers; `_weights` says with what chances."""

    def _parts(self, setting: Setting) -> dict[str, Part]:
        """Return drawn layers, exchanged where a layer was drawn too rarely."""
        weights = self._weights(setting.round, setting.public)
        drawn = {
            client_id: _drawn(weights, count, setting.draw(client_id, len(weights)))
            for client_id, count in setting.budgets().items()
        }
        return setting.parts(covered(drawn, len(weights), self.needed, lambda *_: True, setting.draw))

    @abstractmethod
    def _weights(self, round: int, public: Public) -> NDArray[np.float64]:
        """Return each layer's weight in a round, (layers,), positive."""


class RandomGeometric(Random):
    """RGD-HLA: layers drawn each round from a distribution of a shape.

    Args:
        shape: of the distribution.
        holders: see `Allocator`.

    Raises:
        AllocationError: there is no such shape.
    """

    title = "RGD-HLA (random layers by shape)"
    source = "Fed-HeLLo"

    def __init__(self, shape: shapes.Shape, holders: int = 1) -> None:
        super().__init__(holders)
        self.shape, self.name = _known(shape), f"rgd-{shape}"

    def _weights(self, round: int, public: Public) -> NDArray[np.float64]:  # noqa: ARG002 - the same every round
        """Return the shape's weights."""
        return shapes.weights(self.shape, len(public.cost.layers))


class FedRA(Random):
    """FedRA: layers drawn each round, all alike."""

    name = "fedra"
    title = "FedRA (random layers)"
    source = "FedRA, code"

    def _weights(self, round: int, public: Public) -> NDArray[np.float64]:  # noqa: ARG002 - the same every round
        """Return equal weights."""
        return shapes.weights("uniform", len(public.cost.layers))


def _drawn(weights: NDArray[np.float64], count: int, uniform: NDArray[np.float64]) -> list[int]:
    """Return `count` layers drawn without replacement: those whose exponential clocks of these rates ring first."""
    return sorted(int(layer) for layer in np.argsort(-np.log(uniform) / weights, kind="stable")[:count])


def _known(shape: shapes.Shape) -> shapes.Shape:
    """Return the shape, if there is one of that name."""
    if shape not in shapes.SHAPES:
        raise AllocationError(f"there is no shape {shape!r}", f"use {', '.join(shapes.SHAPES)}")
    return shape
