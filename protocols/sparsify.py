"""Which coordinates travel: a support that every client shares, so that sums of short vectors make sense.

A support is chosen from public things only (a seed, the last sum), or by a masked vote (`voting`). Index sets of
single clients never travel: where a client's gradient is large tells what is in its data. What each reveals:

    dense             nothing
    seeded_random_k   nothing: a public seed
    server_topk       nothing beyond the public scores it is computed from
    voted-topk        how many clients voted for each coordinate; so votes must be private at the client
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocols.errors import SupportError
from protocols.prg import SecretStream

_DENSE, _BITMAP, _SPARSE = b"\x00", b"\x01", b"\x02"
_MAX_DIMENSION = 2**32 - 1

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Support:
    """The coordinates of a `dimension`-long vector that travel: `indices`, int64 of shape (k,), increasing.

    Raises:
        SupportError: the indices are none, repeated, out of order or out of range.

    Example:
        >>> support = Support(4, np.array([0, 2]))
        >>> support.scatter(support.take(np.array([5.0, 6.0, 7.0, 8.0])))
        array([5., 0., 7., 0.])
    """

    dimension: int
    indices: NDArray[np.int64]

    def __post_init__(self) -> None:
        indices = np.array(self.indices)
        if indices.ndim != 1 or indices.size == 0 or indices.dtype.kind not in "iu":
            raise SupportError("a support is a vector of at least one integer index")
        in_range = int(indices.min()) >= 0 and int(indices.max()) < self.dimension
        if self.dimension > _MAX_DIMENSION or not in_range:
            raise SupportError(f"a support's indices must lie in [0, {self.dimension})")
        indices = indices.astype(np.int64)
        if (np.diff(indices) <= 0).any():
            raise SupportError("a support's indices must increase")
        indices.flags.writeable = False
        object.__setattr__(self, "indices", indices)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Support) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def __len__(self) -> int:
        return int(self.indices.size)

    @property
    def is_dense(self) -> bool:
        """Whether every coordinate travels."""
        return len(self) == self.dimension

    def take(self, vector: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return the entries of `vector`, shape (dimension,), that travel, shape (k,)."""
        if vector.shape != (self.dimension,):
            raise SupportError(f"this support is for vectors of {self.dimension} entries, not {vector.shape}")
        return vector[self.indices]

    def scatter(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return a vector of shape (dimension,) with `values`, shape (k,), in place and zeros elsewhere."""
        if values.shape != (len(self),):
            raise SupportError(f"this support has {len(self)} entries, not {values.shape}")
        vector = np.zeros(self.dimension, dtype=values.dtype)
        vector[self.indices] = values
        return vector

    def to_bytes(self) -> bytes:
        """Return the canonical encoding: one byte if dense, else a byte and the shorter of a bitmap and `_sparse`.

        `support_bytes` says how long it is, which the two sizes alone determine.
        """
        if self.is_dense:
            return _DENSE
        if _sparse_bytes(self.dimension, len(self)) < _bitmap_bytes(self.dimension):
            return _SPARSE + _sparse(self)
        return _BITMAP + _bits(self.indices, self.dimension)

    @staticmethod
    def from_bytes(data: bytes, dimension: int) -> Support:
        """Return the support of a `dimension`-long vector that `data` encodes.

        Raises:
            SupportError: not the canonical encoding of a support of that dimension.
        """
        if data == _DENSE:
            return dense(dimension)
        if data[:1] == _BITMAP and len(data) == 1 + _bitmap_bytes(dimension):
            support = Support(dimension, _set_bits(data[1:]))  # a set bit beyond the end is out of range
        elif data[:1] == _SPARSE:
            support = Support(dimension, _sparse_indices(data[1:], dimension))
        else:
            raise SupportError(f"not the encoding of a support of {dimension} coordinates")
        if support.to_bytes() != data:
            raise SupportError("a support has one encoding, and this is another")
        return support

    def digest(self) -> bytes:
        """Return 32 bytes that two supports share exactly when they are equal."""
        header = b"fedlora-priv/v1/support/" + self.dimension.to_bytes(4, "little")
        return hashlib.sha256(header + self.to_bytes()).digest()


def support_bytes(d: int, k: int) -> int:
    """Return the length of `Support.to_bytes` of any `k` of `d` coordinates.

    Example:
        >>> [support_bytes(64_000, k) for k in (64_000, 16_000, 1_000)]
        [1, 8001, 1005]
    """
    _check_count(d, k)
    return 1 if k == d else 1 + min(_bitmap_bytes(d), _sparse_bytes(d, k))


def dense(d: int) -> Support:
    """Return the support of all `d` coordinates."""
    if d < 1:
        raise SupportError("a vector has at least one coordinate")
    return Support(d, np.arange(d, dtype=np.int64))


def seeded_random_k(d: int, k: int, seed: bytes) -> Support:
    """Return `k` of `d` coordinates, every such set equally likely; the same for all who know `seed`."""
    _check_count(d, k)
    return Support(d, np.flatnonzero(smallest(public_words(seed, d), k)))


def server_topk(
    scores: NDArray[np.floating[Any]], k: int, exploration_fraction: float, seed: bytes
) -> Support:
    """Return the coordinates of the highest public `scores`, shape (d,), and some random others: `k` in all.

    ceil(k · exploration_fraction) of them are drawn at random among the rest, so that no coordinate is left
    out for good. Of equal scores the lower index wins.

    Raises:
        SupportError: a NaN score, `k` not in [1, d] or the fraction not in [0, 1].
    """
    d = scores.size
    _check_count(d, k)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise SupportError("scores are a vector without NaN")
    if not 0.0 <= exploration_fraction <= 1.0:
        raise SupportError(f"the exploration fraction must be in [0, 1], not {exploration_fraction}")
    explored = math.ceil(k * exploration_fraction)
    chosen = smallest(-scores.astype(np.float64), k - explored)
    rest = np.flatnonzero(~chosen)
    chosen[rest[smallest(public_words(seed, rest.size), explored)]] = True
    return Support(d, np.flatnonzero(chosen))


def _check_count(d: int, k: int) -> None:
    """Raise unless k of d coordinates can be chosen."""
    if not 1 <= k <= d:
        raise SupportError(f"cannot choose {k} of {d} coordinates: k must be 1 to d")


def public_words(seed: bytes, n: int) -> NDArray[np.uint64]:
    """Return n words that everybody who knows the public `seed` has: uint64 of shape (n,)."""
    return SecretStream(hashlib.sha256(b"fedlora-priv/v1/support-seed/" + seed).digest()).words(n)


def smallest(keys: NDArray[Any], k: int) -> NDArray[np.bool_]:
    """Return a mask of the k smallest of `keys`, ties by index; in linear time, alike on every platform."""
    if k == 0:
        return np.zeros(keys.size, dtype=np.bool_)
    threshold = np.partition(keys, k - 1)[k - 1]
    chosen = np.asarray(keys < threshold)
    ties = np.flatnonzero(keys == threshold)
    chosen[ties[: k - int(np.count_nonzero(chosen))]] = True
    return chosen


def _bitmap_bytes(d: int) -> int:
    """Return the bytes of a bitmap of d coordinates."""
    return (d + 7) // 8


def _low_bits(d: int, k: int) -> int:
    """Return floor(log2(d/k)), how many low bits of each index `_sparse` writes out."""
    return (d // k).bit_length() - 1


def _sparse_bytes(d: int, k: int) -> int:
    """Return the bytes of `_sparse`."""
    low = _low_bits(d, k)
    return 4 + (k * low + 7) // 8 + (k + ((d - 1) >> low) + 7) // 8


def _sparse(support: Support) -> bytes:
    """Return k, the low bits of every index, and what is above them, in unary: about log2(d/k) + 2 bits an index.

    Index i of k has its high part h marked by bit h + i of the last bit string, which so has k ones.

    Source: Elias 1974; Fano 1971.
    """
    k, low = len(support), _low_bits(support.dimension, len(support))
    low_parts = ((support.indices[:, None] >> np.arange(low)) & 1).astype(np.uint8)
    marks = (support.indices >> low) + np.arange(k)
    unary = _bits(marks, k + ((support.dimension - 1) >> low))
    return k.to_bytes(4, "little") + np.packbits(low_parts, bitorder="little").tobytes() + unary


def _sparse_indices(data: bytes, d: int) -> NDArray[np.int64]:
    """Return the indices of what `_sparse` wrote; what is no support is refused by whoever makes one of them."""
    k = int.from_bytes(data[:4], "little")
    if not 1 <= k <= d or len(data) != _sparse_bytes(d, k):
        raise SupportError(f"not the encoding of a support of {d} coordinates")
    low = _low_bits(d, k)
    cut = 4 + (k * low + 7) // 8
    marks = _set_bits(data[cut:])
    if marks.size != k:
        raise SupportError("the encoding of a support has more or fewer indices than it says")
    low_parts = np.unpackbits(np.frombuffer(data[4:cut], np.uint8), count=k * low, bitorder="little")
    low_values = low_parts.reshape(k, low).astype(np.int64) << np.arange(low)
    indices: NDArray[np.int64] = ((marks - np.arange(k)) << low) | low_values.sum(axis=1)
    return indices


def _bits(positions: NDArray[np.int64], length: int) -> bytes:
    """Return a bit string in which the bits at these positions are set, lowest bit of a byte first."""
    bits = np.zeros(length, dtype=np.uint8)
    bits[positions] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def _set_bits(data: bytes) -> NDArray[np.int64]:
    """Return the positions of the bits that are set."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little"))
