"""b-bit integers as bytes: value i occupies bits i·b to (i+1)·b of a little-endian bit string.

32 values fill exactly b 32-bit words (fewer of each when b is even: divide by gcd(b, 32)). So every value of
such a group has a fixed word and shift, and one value of thousands of groups, a *lane*, is shifted at once:
a few dozen numpy calls for a block, none per value.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from protocols.errors import LocalProtocolError

_GROUPS = 4096  # groups per block: a block of 32 lanes is 512 KiB, and a lane long enough to hide the call


def packed_size(d: int, bits: int) -> int:
    """Return the exact length in bytes of `d` packed values: ceil(d·bits/8)."""
    _check_bits(bits)
    return (d * bits + 7) // 8


def pack(ring: NDArray[np.uint32], bits: int) -> bytes:
    """Return the values of `ring`, uint32 of shape (d,), as ceil(d·bits/8) bytes; unused last bits are zero.

    Raises:
        LocalProtocolError: `bits` is not 2 to 32, `ring` is no uint32 vector, or a value needs more bits.
    """
    _check_bits(bits)
    if ring.ndim != 1 or ring.dtype != np.uint32:
        raise LocalProtocolError("only a uint32 vector can be packed")
    if ring.size and int(ring.max()) >> bits:
        raise LocalProtocolError(f"a value does not fit into {bits} bits")
    block_values = _GROUPS * _shape(bits)[0]
    return b"".join(
        _pack_block(ring[start : start + block_values], bits) for start in range(0, ring.size, block_values)
    )


def unpack(data: bytes | memoryview, bits: int, d: int) -> NDArray[np.uint32]:
    """Return the `d` values that `pack` encoded, uint32 of shape (d,).

    Raises:
        LocalProtocolError: `data` is not exactly ceil(d·bits/8) bytes, or an unused last bit is set.
    """
    size = packed_size(d, bits)
    if d < 0 or len(data) != size:
        raise LocalProtocolError(f"{d} values of {bits} bits take {size} bytes, not {len(data)}")
    unused = 8 * size - d * bits
    if unused and data[-1] >> (8 - unused):
        raise LocalProtocolError("the unused last bits of a packed vector must be zero")
    ring = np.empty(d, dtype=np.uint32)
    lanes, words = _shape(bits)
    block_values, block_bytes = _GROUPS * lanes, _GROUPS * words * 4
    for block in range(-(-d // block_values)):
        out = ring[block * block_values : (block + 1) * block_values]
        _unpack_block(data[block * block_bytes : (block + 1) * block_bytes], bits, out)
    return ring


def _check_bits(bits: int) -> None:
    """Raise unless the width can be packed."""
    if not 2 <= bits <= 32:
        raise LocalProtocolError(f"values can be packed to 2 to 32 bits, not {bits}")


def _shape(bits: int) -> tuple[int, int]:
    """Return how many values fill how many 32-bit words exactly."""
    shared = math.gcd(bits, 32)
    return 32 // shared, bits // shared


def _pack_block(block: NDArray[np.uint32], bits: int) -> bytes:
    """Pack at most `_GROUPS` groups."""
    lane_count, word_count = _shape(bits)
    groups = -(-block.size // lane_count)
    padded = np.zeros(groups * lane_count, dtype=np.uint32)
    padded[: block.size] = block
    lanes = np.ascontiguousarray(padded.reshape(groups, lane_count).T)  # contiguous lanes shift fastest
    words = np.zeros((word_count, groups), dtype=np.uint32)
    for lane in range(lane_count):
        word, shift = divmod(lane * bits, 32)
        words[word] |= lanes[lane] << np.uint32(shift)
        if shift + bits > 32:
            words[word + 1] = lanes[lane] >> np.uint32(32 - shift)
    return words.T.astype("<u4").tobytes()[: packed_size(block.size, bits)]


def _unpack_block(data: bytes | memoryview, bits: int, out: NDArray[np.uint32]) -> None:
    """Unpack at most `_GROUPS` groups into `out`."""
    lane_count, word_count = _shape(bits)
    groups = -(-out.size // lane_count)
    padded = np.zeros(groups * word_count * 4, dtype=np.uint8)
    padded[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    words = np.ascontiguousarray(padded.view("<u4").reshape(groups, word_count).T)
    lanes = np.empty((lane_count, groups), dtype=np.uint32)
    for lane in range(lane_count):
        word, shift = divmod(lane * bits, 32)
        np.right_shift(words[word], np.uint32(shift), out=lanes[lane])
        if shift + bits > 32:
            lanes[lane] |= words[word + 1] << np.uint32(32 - shift)
    lanes &= np.uint32(2**bits - 1)
    out[:] = lanes.T.reshape(-1)[: out.size]
