"""Length-sorted microbatches: examples of similar length together, each microbatch padded to its own longest.

Per-example clipping makes the cut exact: the sum of clipped gradients does not depend on who shares a
microbatch with whom.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def microbatches(lengths: NDArray[np.int64], max_tokens: int) -> list[NDArray[np.int64]]:
    """Return index arrays that partition the examples, longest first, each of at most `max_tokens` tokens.

    An example longer than `max_tokens` has a microbatch of its own.

    >>> [group.tolist() for group in microbatches(np.array([2, 9, 3, 2]), max_tokens=9)]
    [[1], [2, 0, 3]]
    """
    groups: list[NDArray[np.int64]] = []
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, int(max_tokens // lengths[order[start]]))
        groups.append(order[start : start + size])
        start += size
    return groups
