"""b-bit integers as bytes: value i occupies bits i·b to (i+1)·b of a little-endian bit string.

32 values fill exactly b 32-bit words (fewer of each when b is even: divide by gcd(b, 32)). So every value of
such a group has a fixed word and shift, and one value of thousands of groups, a *lane*, is shifted at once:
a few dozen numpy calls for a block, none per value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import LocalProtocolError

_BLOCK = (
    128 * 1024
)  # values worked on at a time: lanes long enough to hide numpy's calls, scratch that fits L2


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
    lane_count, word_count = _shape(bits)
    packed = np.empty((-(-ring.size // lane_count), word_count), dtype="<u4")
    lanes, words = _scratch(lane_count, word_count, len(packed))
    for at, groups in _blocks(ring, lane_count, lanes.shape[1]):
        used = slice(0, len(groups))
        lanes[:, used] = groups.T  # contiguous lanes shift fastest
        _lanes_to_words(lanes[:, used], words[:, used], bits)
        packed[at] = words[:, used].T
    return packed.reshape(-1).view(np.uint8)[: packed_size(ring.size, bits)].tobytes()


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
    lane_count, word_count = _shape(bits)
    ring = np.empty((-(-d // lane_count), lane_count), dtype=np.uint32)
    lanes, words = _scratch(lane_count, word_count, len(ring))
    packed = np.frombuffer(data, dtype=np.uint8)
    for at, groups in _blocks(packed, 4 * word_count, lanes.shape[1]):
        used = slice(0, len(groups))
        words[:, used] = groups.view("<u4").T
        _words_to_lanes(words[:, used], lanes[:, used], bits)
        ring[at] = lanes[:, used].T
    return ring.reshape(-1)[:d]


def _check_bits(bits: int) -> None:
    """Raise unless the width can be packed."""
    if not 2 <= bits <= 32:
        raise LocalProtocolError(f"values can be packed to 2 to 32 bits, not {bits}")


def _shape(bits: int) -> tuple[int, int]:
    """Return how many values fill how many 32-bit words exactly."""
    shared = math.gcd(bits, 32)
    return 32 // shared, bits // shared


def _scratch(lane_count: int, word_count: int, groups: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return room for one block's lanes and words, a row for each."""
    columns = max(1, min(groups, _BLOCK // lane_count))
    return np.empty((lane_count, columns), dtype=np.uint32), np.empty((word_count, columns), dtype=np.uint32)


def _blocks(flat: NDArray[Any], group_size: int, block_groups: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Yield which groups, and their content of shape (groups, group_size); zeros fill an incomplete last one."""
    whole = flat.size // group_size
    groups = flat[: whole * group_size].reshape(whole, group_size)
    for start in range(0, whole, block_groups):
        part = groups[start : start + block_groups]
        yield slice(start, start + len(part)), part
    if flat.size % group_size:
        last = np.zeros((1, group_size), dtype=flat.dtype)
        last[0, : flat.size % group_size] = flat[whole * group_size :]
        yield slice(whole, whole + 1), last


def _lanes_to_words(lanes: NDArray[np.uint32], words: NDArray[np.uint32], bits: int) -> None:
    """Fill `words` from `lanes`: every row at once for all groups."""
    shifted = np.empty_like(lanes[0])
    for lane, values in enumerate(lanes):
        word, shift = divmod(lane * bits, 32)
        if shift == 0:
            words[word] = values
        else:
            words[word] |= np.left_shift(values, np.uint32(shift), out=shifted)
        if shift + bits > 32:
            np.right_shift(values, np.uint32(32 - shift), out=words[word + 1])


def _words_to_lanes(words: NDArray[np.uint32], lanes: NDArray[np.uint32], bits: int) -> None:
    """Fill `lanes` from `words`: every row at once for all groups."""
    shifted = np.empty_like(lanes[0])
    for lane, values in enumerate(lanes):
        word, shift = divmod(lane * bits, 32)
        np.right_shift(words[word], np.uint32(shift), out=values)
        if shift + bits > 32:
            values |= np.left_shift(words[word + 1], np.uint32(32 - shift), out=shifted)
    lanes &= np.uint32(2**bits - 1)
