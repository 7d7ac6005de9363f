"""Quantising and packing a vector, against one copy of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.common import MILLION, Row, best
from protocols.packing import pack, unpack
from protocols.prg import SecretStream
from protocols.quantise import Quantiser


def rows() -> Iterator[Row]:
    """Quantising and packing a million values against one copy of them."""
    values = np.random.default_rng(0).normal(size=MILLION).astype(np.float32)
    quantiser = Quantiser(5.0, 8, 5)
    ring = quantiser.quantise(values, SecretStream())
    packed = pack(ring, quantiser.modulus_bits)
    copy = best(lambda: [values.copy() for _ in range(20)]) / 20
    for what, action in (
        ("stochastic rounding, 2^20 values to 8 bits", lambda: quantiser.quantise(values, SecretStream())),
        ("packing 2^20 values to 11 bits", lambda: pack(ring, quantiser.modulus_bits)),
        ("unpacking them", lambda: unpack(packed, quantiser.modulus_bits, MILLION)),
    ):
        yield Row(what, best(action), "one copy of the vector", copy)
