"""Masks are the keystream as 32-bit words, added or subtracted, whatever the block size."""

from __future__ import annotations

import numpy as np
import pytest

from protocols.prg import SecretStream
from protocols.secagg.mask import Mask, add_masks, reduce

KEYS = [bytes([i]) * 32 for i in range(3)]


def expansion(key: bytes, d: int) -> list[int]:
    """The mask's words, read one at a time."""
    data = SecretStream(key).bytes(4 * d)
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, 4 * d, 4)]


@pytest.mark.parametrize("d", [1, 7, 32 * 1024, 32 * 1024 + 1, 70_001])
def test_against_python_integers(d: int) -> None:
    ring = np.arange(d, dtype=np.uint32)
    add_masks(ring, [Mask(KEYS[0]), Mask(KEYS[1], subtract=True), Mask(KEYS[2])])
    plus, minus, also = (expansion(key, d) for key in KEYS)
    expected = [(i + a - b + c) % 2**32 for i, (a, b, c) in enumerate(zip(plus, minus, also, strict=True))]
    assert ring.tolist() == expected


def test_the_inverse_undoes() -> None:
    ring = np.arange(50_000, dtype=np.uint32)
    masks = [Mask(key, subtract=bool(i % 2)) for i, key in enumerate(KEYS)]
    add_masks(ring, masks)
    add_masks(ring, (mask.inverse for mask in masks))
    assert ring.tolist() == list(range(50_000))


@pytest.mark.parametrize("bits", [2, 11, 31, 32])
def test_reducing_later_is_reducing_at_once(bits: int) -> None:
    values = [2**32 - 1, 0, 5, 2**31, 123456789]
    ring = np.array(values, dtype=np.uint32)
    reduce(ring, bits)
    assert ring.tolist() == [value % 2**bits for value in values]
