"""Masks, added to a vector in place: for each block that fits the cache, every mask, then the next block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.prg import CHUNK_BYTES, SecretStream
from protocols.redaction import Redacted

_BLOCK = CHUNK_BYTES // 4


@dataclass(frozen=True, repr=False)
class Mask(Redacted):
    """The vector of 32-bit words that `key` expands to, to be added or subtracted. A key masks once."""

    key: bytes
    subtract: bool = False

    @property
    def inverse(self) -> Mask:
        """The mask that undoes this one."""
        return Mask(self.key, not self.subtract)


def add_masks(ring: NDArray[np.uint32], masks: Iterable[Mask]) -> None:
    """Add every mask to `ring`, uint32 of shape (d,), in place and modulo 2^32.

    Reduce modulo 2^b afterwards: 2^b divides 2^32, so the result is the same for every b up to 32.
    """
    streams = [(SecretStream(mask.key), np.subtract if mask.subtract else np.add) for mask in masks]
    scratch = np.empty(min(_BLOCK, ring.size), dtype="<u4")
    for start in range(0, ring.size, _BLOCK):
        block = ring[start : start + _BLOCK]
        words = scratch[: block.size]
        for stream, operation in streams:
            stream.fill(words.view(np.uint8).data)
            operation(block, words, out=block)


def reduce(ring: NDArray[np.uint32], modulus_bits: int) -> None:
    """Reduce `ring` modulo 2^modulus_bits in place."""
    ring &= np.uint32(2**modulus_bits - 1)
