"""Masks, added to a vector in place: for each block that fits the cache, every mask, then the next block.

A mask is its key's keystream read as words of the narrowest of 8, 16 and 32 bits that holds a ring element. All
three moduli are multiples of 2^b, so a word modulo 2^b is uniform; and as the keystream is what masking costs,
a ring of at most 16 bits costs half of a wider one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.prg import CHUNK_BYTES, SecretStream
from protocols.redaction import Redacted


@dataclass(frozen=True, repr=False)
class Mask(Redacted):
    """The vector of words that `key` expands to, to be added or subtracted. A key masks once."""

    key: bytes
    subtract: bool = False

    @property
    def inverse(self) -> Mask:
        """The mask that undoes this one."""
        return Mask(self.key, not self.subtract)


def add_masks(ring: NDArray[np.uint32], masks: Iterable[Mask], modulus_bits: int) -> None:
    """Add every mask to `ring`, uint32 of shape (d,), in place, and reduce it modulo 2^modulus_bits."""
    word = word_type(modulus_bits)
    size = CHUNK_BYTES // word.itemsize
    streams = [(SecretStream(mask.key), np.subtract if mask.subtract else np.add) for mask in masks]
    scratch = np.empty(min(size, ring.size), dtype=word.newbyteorder("<"))
    for start in range(0, ring.size, size):
        block = ring[start : start + size]
        total = block.astype(word, copy=False)  # keeps the low bits: 2^b divides the word's modulus
        words = scratch[: block.size]
        for stream, operation in streams:
            stream.fill(words.view(np.uint8).data)
            operation(total, words, out=total)
        total &= word.type(2**modulus_bits - 1)
        block[:] = total


def word_type(modulus_bits: int) -> np.dtype[np.unsignedinteger]:
    """Return the type of a mask's words: uint8, uint16 or uint32, the narrowest that holds a ring element."""
    return np.dtype(np.uint8 if modulus_bits <= 8 else np.uint16 if modulus_bits <= 16 else np.uint32)
