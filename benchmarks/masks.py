"""One client's masks, against the keystream and the addition alone, and against Flower's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks import flower
from benchmarks.common import MILLION, Row, best
from protocols.secagg.mask import Mask, add_masks

MASKS = 10
CHUNKS = (1 << 16, 1 << 17, 1 << 18)
"""Bytes of keystream made at a time by the limit; the best of them counts."""


def rows() -> Iterator[Row]:
    """Ten masks onto 2^20 and 10·2^20 values, in rings of 32 and of 16 bits."""
    for name, d, repetitions in (("2^20", MILLION, 15), ("10·2^20", 10 * MILLION, 5)):
        theirs = flower.measured("masks").get(f"masks {name}")
        for bits in (32, 16):
            what = f"{MASKS} masks onto {name} values of {bits} bits"
            ours, limit = _masking(d, bits, repetitions)
            yield Row(what, ours, "AES-256-CTR and add alone", limit, "≤ 1.43 (70 % of the limit)")
            yield Row(what, ours, "Flower's SecAgg+", theirs, "≤ 1/6")


def _masking(d: int, bits: int, repetitions: int) -> tuple[float, float]:
    """Return our CPU seconds and the limit's."""
    vector = np.zeros(d, np.uint32)
    masks = [Mask(os.urandom(32)) for _ in range(MASKS)]
    ours = best(lambda: add_masks(vector, masks, bits), repetitions)
    return ours, min(best(partial(_limit, d * bits // 8, chunk), repetitions) for chunk in CHUNKS)


def _limit(size: int, chunk: int) -> None:
    """Make and add ten keystreams of `size` bytes, as fast as this machine can through OpenSSL and numpy."""
    zeros, out = bytes(chunk), bytearray(chunk + 15)
    total = np.zeros(chunk // 4, np.uint32)
    stream = np.frombuffer(out, np.uint32, count=chunk // 4)
    for _ in range(MASKS):
        encryptor = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        for _ in range(size // chunk):
            encryptor.update_into(zeros, out)
            np.add(total, stream, out=total)
