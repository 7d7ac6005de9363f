"""What everyone signs: T0 (the parameters), T1 (all keys, as a Merkle root), and sets of clients.

T1 has one leaf for each roster index, empty for a client that did not advertise, padded to a power of two.
Each leaf also holds T0: so whatever is derived from T1 depends on the context that its owner computed. A
client that holds T1 and a path knows that everybody with the same T1 was shown the same keys.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence

_DOMAIN = b"fedlora-priv/v1/"
_length = struct.Struct("<I").pack  # thousands of statements are made in a session


def digest(label: bytes, *parts: bytes) -> bytes:
    """Return SHA-256 over the label and the parts, each preceded by its length: no two inputs collide."""
    return hashlib.sha256(_DOMAIN + statement(label, *parts)).digest()


def statement(*parts: bytes) -> bytes:
    """Return the parts, each preceded by its length in 4 bytes: the payload of every signature."""
    return b"".join([_length(len(part)) + part for part in parts])


def to_bitmap(members: Iterable[int], n: int) -> bytes:
    """Return a set of roster indices as ceil(n/8) bytes, lowest bit first.

    Example:
        >>> to_bitmap({0, 2, 8}, 9).hex()
        '0501'
    """
    number = 0
    for index in members:
        number |= 1 << index
    return number.to_bytes((n + 7) // 8, "little")


def from_bitmap(bitmap: bytes, n: int) -> frozenset[int]:
    """Return the set that `to_bitmap` encoded.

    Raises:
        ValueError: the bitmap has another length, or a bit beyond the roster.
    """
    number = int.from_bytes(bitmap, "little")
    if len(bitmap) != (n + 7) // 8 or number >> n:
        raise ValueError("not a bitmap of the roster")
    return frozenset(index for index in range(n) if number >> index & 1)


def set_digest(members: Iterable[int], n: int) -> bytes:
    """Return H(U) for a set U of roster indices."""
    return digest(b"survivors", n.to_bytes(4, "little"), to_bitmap(members, n))


class MerkleTree:
    """The tree over the signed advertisements by roster index. `root` is T1."""

    def __init__(self, t0: bytes, advertisements: Mapping[int, bytes], n: int) -> None:
        width = 1 << (n - 1).bit_length()
        self._levels = [[_leaf(t0, index, advertisements.get(index, b"")) for index in range(width)]]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            self._levels.append([_node(*below[i : i + 2]) for i in range(0, len(below), 2)])

    @property
    def root(self) -> bytes:
        """The root, 32 bytes."""
        return self._levels[-1][0]

    def path(self, index: int) -> tuple[bytes, ...]:
        """Return the siblings from the leaf `index` up to the root."""
        return tuple(level[(index >> height) ^ 1] for height, level in enumerate(self._levels[:-1]))


def path_root(t0: bytes, index: int, advertisement: bytes, path: Sequence[bytes]) -> bytes:
    """Return the root that a leaf and its path lead to."""
    node = _leaf(t0, index, advertisement)
    for sibling in path:
        node = _node(sibling, node) if index & 1 else _node(node, sibling)
        index >>= 1
    return node


def _leaf(t0: bytes, index: int, advertisement: bytes) -> bytes:
    """Return the hash of a leaf; its label differs from a node's, so neither passes for the other."""
    return digest(b"leaf", t0, index.to_bytes(4, "little"), advertisement)


def _node(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return digest(b"node", left, right)
