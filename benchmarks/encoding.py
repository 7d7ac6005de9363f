"""Quantising and packing a vector, against one copy of it and against Flower's; and what is uploaded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks import flower
from benchmarks.common import MILLION, Row, best
from protocols.packing import pack, unpack
from protocols.prg import SecretStream
from protocols.quantise import Quantiser
from protocols.secagg.codec import encode
from protocols.secagg.messages import SIGNATURE_BYTES, MaskedVector

WIDTHS = (3, 8, 11, 16, 17, 20, 31, 32)


def rows() -> Iterator[Row]:
    """Stochastic rounding, packing and unpacking for some widths, and the bytes of a masked vector."""
    values = np.random.default_rng(0).normal(size=MILLION).astype(np.float32)
    quantiser = Quantiser(5.0, 8, 5)
    theirs = flower.measured("encoding")
    yield Row(
        "stochastic rounding of 2^20 values",
        best(lambda: quantiser.quantise(values, SecretStream())),
        "Flower's SecAgg+",
        theirs.get("quantise"),
    )
    copy = best(lambda: [values.copy() for _ in range(20)]) / 20
    for bits in WIDTHS:
        yield from _packing(bits, copy)
    yield from _uploads(theirs.get("upload"))


def _packing(bits: int, copy: float) -> Iterator[Row]:
    """Packing and unpacking to one width."""
    ring = np.random.default_rng(bits).integers(0, 2**bits, MILLION, dtype=np.uint64).astype(np.uint32)
    packed = pack(ring, bits)
    there, back = best(lambda: pack(ring, bits), 9), best(lambda: unpack(packed, bits, MILLION), 9)
    yield Row(f"packing 2^20 values to {bits} bits", there, "one copy of the vector", copy, "≈ 2 ms")
    yield Row(f"unpacking 2^20 values of {bits} bits", back, "one copy of the vector", copy, "≈ 2 ms")


def _uploads(theirs: float | None) -> Iterator[Row]:
    """A client's whole message with a masked vector, against the bare bits and against Flower's vector."""
    for bits in (11, 32):
        message = MaskedVector(pack(np.zeros(MILLION, np.uint32), bits), bytes(SIGNATURE_BYTES))
        size, bare = len(encode(message)), MILLION * bits / 8
        what = f"upload of 2^20 values of {bits} bits"
        yield Row(what, size, "the bits alone", bare, "≤ 1.01", "bytes")
        yield Row(what, size, "Flower's SecAgg+", theirs, "≤ 1/2", "bytes")
