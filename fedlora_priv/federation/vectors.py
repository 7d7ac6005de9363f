"""Named arrays as one vector and back, in the order of their shapes, which every party knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.layout import Shapes

_T = TypeVar("_T", bound=np.generic)


def dimension(shapes: Shapes) -> int:
    """Return how many coordinates arrays of these shapes have, all together."""
    return sum(math.prod(shape) for shape in shapes.values())


def flatten(shapes: Shapes, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return the named arrays as one vector, of the dtype that holds them all.

    Raises:
        KeyError: one is not there; what is zero must be said to be (`zeros`).

    Example:
        >>> flatten({"b": (2,), "a": (1, 2)}, {"a": np.array([[3.0, 4.0]]), "b": np.array([1.0, 2.0])}).tolist()
        [1.0, 2.0, 3.0, 4.0]
    """
    return np.concatenate([arrays[name].ravel() for name in shapes] or [np.zeros(0, np.float32)])


def zeros(shapes: Shapes) -> dict[str, NDArray[np.float32]]:
    """Return arrays of zeros, for what may be missing where a vector has a place for it."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def unflatten(shapes: Shapes, vector: NDArray[_T]) -> dict[str, NDArray[_T]]:
    """Return the named arrays that a vector is made of, as views of it.

    Example:
        >>> unflatten({"b": (2,), "a": (1, 2)}, np.array([1.0, 2.0, 3.0, 4.0]))["a"].tolist()
        [[3.0, 4.0]]
    """
    arrays, at = {}, 0
    for name, shape in shapes.items():
        arrays[name] = vector[at : (at := at + math.prod(shape))].reshape(shape)
    return arrays
