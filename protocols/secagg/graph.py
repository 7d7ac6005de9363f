"""Who masks with whom: everybody with everybody, or the nearest ones on a ring (Bell et al. 2020, section 3).

The ring's order is seeded by T1, so nobody chooses a place before all keys are fixed, and every client
derives its neighbours itself.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from protocols.prg import SecretStream
from protocols.secagg.transcript import digest


class MaskGraph:
    """The undirected graph of pairwise masks over roster indices 0..n-1, each of `degree`."""

    def __init__(self, n: int, degree: int, t1: bytes) -> None:
        self.n = n
        self.degree = degree
        self._order = list(range(n)) if self.is_complete else _ring_order(n, t1)
        self._position = {index: position for position, index in enumerate(self._order)}

    @property
    def is_complete(self) -> bool:
        """Whether everybody masks with everybody."""
        return self.degree == self.n - 1

    def neighbours(self, index: int) -> tuple[int, ...]:
        """Return whom `index` masks with, increasing."""
        if self.is_complete:
            return tuple(other for other in range(self.n) if other != index)
        position, reach = self._position[index], self.degree // 2
        offsets = [*range(-reach, 0), *range(1, reach + 1)]
        return tuple(sorted(self._order[(position + offset) % self.n] for offset in offsets))

    def holders(self, index: int) -> tuple[int, ...]:
        """Return who gets shares of `index`'s secrets, increasing: its neighbours and itself."""
        return tuple(sorted((*self.neighbours(index), index)))

    def weakest_cut(self, members: Set[int]) -> int:
        """Return how few `members` any two disjoint windows of degree/2 ring positions hold together.

        Removing two such windows splits the ring into arcs without a common edge. If the members among them
        all collude, the server learns a sum for each arc instead of one sum. A complete graph has no cut:
        the answer is then the number of members.
        """
        if self.is_complete:
            return len(members)
        width = self.degree // 2
        present = np.array([index in members for index in self._order], dtype=np.int64)
        around = np.concatenate([[0], np.cumsum(np.concatenate([present, present]))])
        windows = around[width : width + self.n] - around[: self.n]
        # A window that starts width to n - width positions later is disjoint.
        others = _least_of_runs(np.roll(windows, -width), self.n - 2 * width + 1)
        return int((windows + others).min())


def _least_of_runs(values: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return, at each place of a ring, the least of the `length` values from there on.

    Source: van Herk 1992. Cut into blocks of that length, every run is the end of one block and the start of
    the next; so minima over blocks' ends and starts suffice.
    """
    count = -(-(values.size + length - 1) // length)
    blocks = np.resize(values, (count, length))  # goes around as often as needed
    starts = np.minimum.accumulate(blocks, axis=1).reshape(-1)
    ends = np.minimum.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].reshape(-1)
    least: NDArray[np.int64] = np.minimum(ends[: values.size], starts[length - 1 :][: values.size])
    return least


def _ring_order(n: int, t1: bytes) -> list[int]:
    """Return a permutation of 0..n-1 that is uniform over T1: sorted by pseudorandom 64-bit words."""
    words = SecretStream(digest(b"ring-order", t1)).words(n).tolist()
    return sorted(range(n), key=lambda index: (words[index], index))
