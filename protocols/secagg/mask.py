"""Masks, added to a vector in place: for each block that fits the cache, every mask, then the next block.

A mask is its key's keystream read as words of the narrowest of 8, 16 and 32 bits that holds a ring element. All
three moduli are multiples of 2^b, so a word modulo 2^b is uniform; and as the keystream is what masking costs,
a modulus of at most 16 bits costs half of a wider one.

The keystream is that of AES-256-GCM (SP 800-38D) under a nonce of zeros, which is counter mode from the counter
block 2; a key masks once, so the nonce may be constant. GCM only because OpenSSL runs it on wider vectors than
its plain counter mode: more than twice as fast where the processor has them. The tag is never made. GCM ends
after 64 GiB, more than the longest vector (2^32 words of 4 bytes) takes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocols.errors import LocalProtocolError
from protocols.redaction import Redacted

KEY_BYTES = 32
CHUNK_BYTES = 128 * 1024  # keystream, input zeros and the block of the vector stay in a 1 MiB L2 cache
_ZEROS = memoryview(bytes(CHUNK_BYTES))


@dataclass(frozen=True, repr=False)
class Mask(Redacted):
    """The vector of words that `key`, 32 bytes, expands to, to be added or subtracted. A key masks once.

    Raises:
        LocalProtocolError: the key has another length.
    """

    key: bytes
    subtract: bool = False

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise LocalProtocolError(f"a mask's key is {KEY_BYTES} bytes")

    @property
    def inverse(self) -> Mask:
        """The mask that undoes this one."""
        return Mask(self.key, not self.subtract)


def add_masks(ring: NDArray[np.uint32], masks: Iterable[Mask], modulus_bits: int) -> None:
    """Add every mask to `ring`, uint32 of shape (d,), in place, and reduce it modulo 2^modulus_bits."""
    word = word_type(modulus_bits)
    size = CHUNK_BYTES // word.itemsize
    streams = [
        (
            Cipher(algorithms.AES(mask.key), modes.GCM(bytes(12))).encryptor(),
            np.subtract if mask.subtract else np.add,
        )
        for mask in masks
    ]
    scratch = np.empty(min(size, ring.size), dtype=word.newbyteorder("<"))
    for start in range(0, ring.size, size):
        block = ring[start : start + size]
        total = block.astype(word, copy=False)  # keeps the low bits: 2^b divides the word's modulus
        words = scratch[: block.size]
        keystream = words.view(np.uint8).data
        for encryptor, operation in streams:
            encryptor.update_into(_ZEROS[: len(keystream)], keystream)
            operation(total, words, out=total)
        total &= word.type(2**modulus_bits - 1)
        block[:] = total


def word_type(modulus_bits: int) -> np.dtype[np.unsignedinteger]:
    """Return the type of a mask's words: uint8, uint16 or uint32, the narrowest that holds a ring element."""
    return np.dtype(np.uint8 if modulus_bits <= 8 else np.uint16 if modulus_bits <= 16 else np.uint32)
