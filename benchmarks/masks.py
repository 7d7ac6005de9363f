"""One client's masks, against a keystream and the addition alone (two ways to make it), and against Flower's."""

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
            vector = np.zeros(d, np.uint32)
            masks = [Mask(os.urandom(32)) for _ in range(MASKS)]
            ours = best(partial(add_masks, vector, masks, bits), repetitions)
            for mode in (modes.CTR(bytes(16)), modes.GCM(bytes(12))):
                limit = min(
                    best(partial(_limit, mode, d * bits // 8, chunk), repetitions) for chunk in CHUNKS
                )
                yield Row(
                    what, ours, f"AES-256-{mode.name} and add alone", limit, "≤ 1.43 (70 % of the limit)"
                )
            yield Row(what, ours, "Flower's SecAgg+", theirs, "≤ 1/6")


def _limit(mode: modes.CTR | modes.GCM, size: int, chunk: int) -> None:
    """Make and add ten keystreams of `size` bytes, as fast as this machine can through OpenSSL and numpy."""
    zeros, out = bytes(chunk), bytearray(chunk + 15)
    total = np.zeros(chunk // 4, np.uint32)
    stream = np.frombuffer(out, np.uint32, count=chunk // 4)
    for _ in range(MASKS):
        encryptor = Cipher(algorithms.AES(os.urandom(32)), mode).encryptor()
        for _ in range(size // chunk):
            encryptor.update_into(zeros, out)
            np.add(total, stream, out=total)
