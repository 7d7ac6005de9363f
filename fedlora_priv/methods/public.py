"""Randomness that everybody can draw: Gaussian and uniform arrays from the public seed.

A client and the server must draw the *same* sketching matrices, though they may run on other machines and with
another numpy. Numpy keeps the raw words of its bit generators for ever, but not what it makes of them; so the words
are Philox's and the rest is here.

Nothing secret may come from here: whoever reads the experiment file draws the same.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.base import Shared


def gaussian(shared: Shared, label: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return independent standard normal values, float64, the same for everybody (Box and Muller 1958)."""
    pairs = (int(np.prod(shape)) + 1) // 2
    first, second = unit(shared, label, 2 * pairs).reshape(2, pairs)
    radius, angle = np.sqrt(-2.0 * np.log(first)), 2.0 * np.pi * second
    values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return values[: int(np.prod(shape))].reshape(shape)


def uniform(shared: Shared, label: str, limit: float, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return independent values uniform in ±limit, float64, the same for everybody."""
    return (2.0 * unit(shared, label, int(np.prod(shape))).reshape(shape) - 1.0) * limit


def fresh_a(shared: Shared, label: str, rows: int, in_features: int) -> NDArray[np.float64]:
    """Return rows of a new A, (rows, n): uniform in ±1/√n, which is PEFT's Kaiming initialisation."""
    return uniform(shared, label, 1.0 / np.sqrt(in_features), (rows, in_features))


def unit(shared: Shared, label: str, count: int) -> NDArray[np.float64]:
    """Return values in (0, 1] with 53 random bits each; seed, round and label choose the stream."""
    name = f"fedlora-priv public randomness v1\n{shared.seed}\n{shared.round}\n{label}"
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    words = np.random.Philox(key=key).random_raw(count)
    return ((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53
