"""The shapes that the clients of all layers together can have: Triangle, Inverted Triangle, Bottleneck, Uniform.

A shape is an order in which layers are given away. A client with room for b layers gets the first b of it, so that
the count of clients falls along the order::

    triangle            inverted            bottleneck          uniform
    count  ▇▇           count       ▇▇      count ▇▇      ▇▇    count  ▇▇▇▇▇▇▇▇▇▇▇▇
           ▇▇▇▇                   ▇▇▇▇            ▇▇▇    ▇▇▇
           ▇▇▇▇▇▇▇▇           ▇▇▇▇▇▇▇▇            ▇▇▇▇▇▇▇▇▇▇
    layer  0 ... 11     layer 0 ... 11      layer 0 ...   11    layer  0 ... 11

Uniform has no order: the clients are dealt layers that the fewest have so far, evenly spread, so that no two counts
differ by more than one.

For drawing at random the same shapes are weights: the counts that clients with half, three quarters and all of the
layers would give. For Bottleneck over 12 layers that is (3, 3, 3, 2, 2, 1, 1, 1, 2, 3, 3, 3)/27, as in the code of
Fed-HeLLo.

Source: Fed-HeLLo. Which end is the Triangle's broad one it does not say: here early layers are trained most often.
Fed-HeLLo's Uniform has one list a tier (0, 2, 4, 6, 8, 10 for six of twelve), under which counts differ by two;
ours deals.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.allocation.errors import AllocationError

Shape = Literal["triangle", "inverted", "bottleneck", "uniform"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


def order(shape: Shape, layers: int) -> list[int]:
    """Return the order in which a shape gives layers away; for "uniform" that of a client alone."""
    match shape:
        case "triangle" | "uniform":
            return list(range(layers))
        case "inverted":
            return list(range(layers))[::-1]
        case "bottleneck":  # 0, L-1, 1, L-2, ...
            ends = itertools.zip_longest(range((layers + 1) // 2), range(layers - 1, (layers - 1) // 2, -1))
            return [layer for pair in ends for layer in pair if layer is not None]


def dealt(shape: Shape, budgets: Mapping[str, int], layers: int) -> dict[str, list[int]]:
    """Return each client's layers under a shape, in the order of `budgets`."""
    if shape != "uniform":
        return {client_id: sorted(order(shape, layers)[:count]) for client_id, count in budgets.items()}
    counts = np.zeros(layers, dtype=np.int64)
    lists: dict[str, list[int]] = {}
    for client_id, count in budgets.items():
        lists[client_id] = sorted(_least_held(counts, count))
        counts[lists[client_id]] += 1
    return lists


def weights(shape: Shape, layers: int) -> NDArray[np.float64]:
    """Return the probabilities with which a shape's layers are drawn, (layers,).

    Raises:
        AllocationError: so few layers cannot have that shape.
    """
    if shape == "uniform":
        return np.full(layers, 1.0 / layers)
    tiers = {str(share): -(-layers * share // 4) for share in (2, 3, 4)}
    counts = np.bincount(np.concatenate(list(dealt(shape, tiers, layers).values())), minlength=layers)
    require_shape(shape, counts.tolist())
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def require_shape(shape: Shape, counts: Sequence[int]) -> None:
    """Return if these counts of clients by layer have the shape.

    Raises:
        AllocationError: they do not: there are too few layers, or the clients' budgets are all alike.
    """
    if not has_shape(shape, counts):
        raise AllocationError(
            f"{len(counts)} layers with {', '.join(map(str, counts))} clients do not form the shape {shape!r}",
            "take more layers, clients of unequal budgets, or the shape 'uniform'",
        )


def has_shape(shape: Shape, counts: Sequence[int]) -> bool:
    """Whether counts fall (triangle), rise (inverted), fall and then rise (bottleneck), or are equal but for one."""
    if shape == "uniform":
        return max(counts) - min(counts) <= 1
    if shape == "inverted":
        return has_shape("triangle", counts[::-1])
    if shape == "triangle":
        return _falls(counts) and counts[0] > counts[-1]
    waist = list(counts).index(min(counts))
    left, right = counts[: waist + 1], counts[waist:][::-1]
    return _falls(left) and _falls(right) and left[0] > left[-1] and right[0] > right[-1]


def _falls(counts: Sequence[int]) -> bool:
    """Whether no count is above the one before."""
    return all(a >= b for a, b in itertools.pairwise(counts))


def _least_held(counts: NDArray[np.int64], count: int) -> list[int]:
    """Return the `count` layers that the fewest clients have; where several have as few, evenly spread ones."""
    chosen: list[int] = []
    for level in np.unique(counts):
        alike = np.flatnonzero(counts == level)
        wanted = min(count - len(chosen), len(alike))
        chosen += [int(alike[i * len(alike) // wanted]) for i in range(wanted)]
    return chosen
