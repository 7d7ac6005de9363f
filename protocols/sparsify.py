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

_DENSE, _BITMAP = b"\x00", b"\x01"
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
        """Return the canonical encoding: one byte if dense, else a byte and a bitmap, lowest bit first."""
        if self.is_dense:
            return _DENSE
        chosen = np.zeros(self.dimension, dtype=np.uint8)
        chosen[self.indices] = 1
        return _BITMAP + np.packbits(chosen, bitorder="little").tobytes()

    @staticmethod
    def from_bytes(data: bytes, dimension: int) -> Support:
        """Return the support of a `dimension`-long vector that `data` encodes.

        Raises:
            SupportError: not the canonical encoding of a support of that dimension.
        """
        if data == _DENSE:
            return dense(dimension)
        if data[:1] != _BITMAP or len(data) != 1 + (dimension + 7) // 8:
            raise SupportError(f"not the encoding of a support of {dimension} coordinates")
        bitmap = np.unpackbits(np.frombuffer(data, dtype=np.uint8, offset=1), bitorder="little")
        support = Support(dimension, np.flatnonzero(bitmap))  # a set bit beyond the end is out of range
        if support.is_dense:
            raise SupportError("a support of all coordinates has the one-byte encoding")
        return support

    def digest(self) -> bytes:
        """Return 32 bytes that two supports share exactly when they are equal."""
        header = b"fedlora-priv/v1/support/" + self.dimension.to_bytes(4, "little")
        return hashlib.sha256(header + self.to_bytes()).digest()


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
