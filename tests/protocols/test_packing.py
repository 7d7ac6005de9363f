"""Packing against a bit string built by Python integers, for every width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError
from protocols.packing import _BLOCK, pack, packed_size, unpack

WIDTHS = range(2, 33)


def random_ring(bits: int, d: int) -> np.ndarray:
    """Random values of that width."""
    return np.random.default_rng(bits * 1000 + d).integers(0, 2**bits, d, dtype=np.uint64).astype(np.uint32)


@pytest.mark.parametrize("bits", WIDTHS)
def test_against_one_long_integer(bits: int) -> None:
    for d in (0, 1, 2, 31, 32, 33, 100):
        ring = random_ring(bits, d)
        number = sum(value << (i * bits) for i, value in enumerate(ring.tolist()))
        expected = number.to_bytes(-(-d * bits // 8), "little")
        assert pack(ring, bits) == expected
        np.testing.assert_array_equal(unpack(expected, bits, d), ring)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_bit_by_bit(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from(WIDTHS))
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=300))
    packed = pack(np.array(values, dtype=np.uint32), bits)
    written = [value >> position & 1 for value in values for position in range(bits)]
    read = [byte >> position & 1 for byte in packed for position in range(8)]
    assert read == written + [0] * (len(read) - len(written))
    assert len(read) - len(written) < 8
    assert unpack(packed, bits, len(values)).tolist() == values


@pytest.mark.parametrize("bits", [3, 8, 11, 16, 20, 31, 32])
@pytest.mark.parametrize("extra", [-33, -1, 0, 1, 33])
def test_around_the_end_of_a_block(bits: int, extra: int) -> None:
    # Every 1000th value and the last ones, read from the byte string by Python integers.
    d = 2 * _BLOCK + extra
    ring = random_ring(bits, d)
    packed = pack(ring, bits)
    number = int.from_bytes(packed, "little")
    for i in (*range(0, d, 9973), *range(_BLOCK - 40, _BLOCK + 40), *range(d - 70, d)):
        start, stop = i * bits // 8, (i * bits + bits + 7) // 8
        window = int.from_bytes(packed[start:stop], "little")
        assert window >> (i * bits - 8 * start) & (2**bits - 1) == int(ring[i])
    assert number >> (d * bits) == 0
    np.testing.assert_array_equal(unpack(packed, bits, d), ring)


@pytest.mark.parametrize("bits", [2, 7, 16, 20, 23, 31, 32])
def test_across_blocks(bits: int) -> None:
    d = 4096 * 32 + 4096 + 77
    ring = random_ring(bits, d)
    packed = pack(ring, bits)
    assert len(packed) == packed_size(d, bits)
    np.testing.assert_array_equal(unpack(packed, bits, d), ring)
    tail = sum(value << (i * bits) for i, value in enumerate(ring[-8:].tolist()))
    number = int.from_bytes(packed[-4 * bits :], "little") >> ((d - 8) * bits - 8 * (len(packed) - 4 * bits))
    assert number == tail


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_value_that_does_not_fit_is_refused(bits: int) -> None:
    if bits < 32:
        with pytest.raises(LocalProtocolError):
            pack(np.array([0, 2**bits], dtype=np.uint32), bits)
    assert len(pack(np.array([0, 2**bits - 1], dtype=np.uint32), bits)) == packed_size(2, bits)


def test_lengths_are_exact() -> None:
    packed = pack(random_ring(11, 9), 11)
    for wrong in (packed[:-1], packed + b"\0", b""):
        with pytest.raises(LocalProtocolError):
            unpack(wrong, 11, 9)


def test_unused_bits_must_be_zero() -> None:
    packed = bytearray(pack(random_ring(11, 9), 11))  # 99 bits in 13 bytes: 5 unused
    packed[-1] |= 0x08
    with pytest.raises(LocalProtocolError, match="unused"):
        unpack(bytes(packed), 11, 9)


@pytest.mark.parametrize("bits", [-1, 0, 1, 33])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(LocalProtocolError):
        pack(np.zeros(1, dtype=np.uint32), bits)


@pytest.mark.parametrize(
    "ring", [np.zeros(3), np.zeros((2, 2), dtype=np.uint32), np.zeros(3, dtype=np.int32)]
)
def test_only_uint32_vectors_are_packed(ring: np.ndarray) -> None:
    with pytest.raises(LocalProtocolError):
        pack(ring, 8)
