"""Masking a vector, against the keystream and the addition alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.common import MILLION, Row, best
from protocols.prg import SecretStream
from protocols.secagg.mask import Mask, add_masks

CHUNK_BYTES = 1 << 18


def rows() -> Iterator[Row]:
    """Ten masks over a million values against the keystream and the addition alone."""
    vector = np.zeros(MILLION, np.uint32)
    keys = [SecretStream().bytes(32) for _ in range(10)]
    ours = best(lambda: add_masks(vector, [Mask(key) for key in keys], 32))
    yield Row("10 masks over 2^20 uint32, added", ours, "AES-256-CTR and add, nothing else", best(_limit))


def _limit() -> None:
    """Make and add ten keystreams in cache-sized chunks, as fast as this machine can through OpenSSL."""
    zeros, out = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES + 15)
    total = np.zeros(CHUNK_BYTES // 4, np.uint32)
    stream = np.frombuffer(out, np.uint32, count=CHUNK_BYTES // 4)
    for _ in range(10):
        encryptor = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        for _ in range(4 * MILLION // CHUNK_BYTES):
            encryptor.update_into(zeros, out)
            np.add(total, stream, out=total)
