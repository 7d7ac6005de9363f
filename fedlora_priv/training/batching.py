"""Microbatches of one width: examples of like length together, each padded to its length rounded up.

Per-example clipping makes the cut exact: the sum of clipped gradients does not depend on who shares a
microbatch with whom. Rounding could: matrix products over another width round differently, in bfloat16 by up
to 1e-2 of a gradient. So an example's padded width is a function of its own length alone, never of who else
was drawn, and microbatches never mix widths (docs/decisions/0034).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WIDTH_STEP = 8
"""Padded widths are multiples of this: few enough to fill microbatches, and at most 7 tokens of padding."""


def padded_widths(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each length rounded up to a multiple of `WIDTH_STEP`.

    >>> padded_widths(np.array([1, 8, 9])).tolist()
    [8, 8, 16]
    """
    return -(-lengths // WIDTH_STEP) * WIDTH_STEP


def microbatches(lengths: NDArray[np.int64], max_tokens: int) -> list[NDArray[np.int64]]:
    """Return index arrays that partition the examples, widest first, each of one padded width, all padded or none.

    Where nothing is padded, models leave the mask out and take another kernel: that, too, must not depend on who else
    was drawn. Each has at most `max_tokens` padded tokens, or one example; those of a width are about equally large.

    >>> [group.tolist() for group in microbatches(np.array([2, 9, 3, 7, 4]), max_tokens=16)]
    [[1], [0, 2], [3, 4]]
    """
    groups: list[NDArray[np.int64]] = []
    widths = padded_widths(lengths)
    kinds = 2 * widths + (lengths == widths)
    for kind in np.unique(kinds)[::-1]:
        members, width = np.flatnonzero(kinds == kind), kind // 2
        at_once = max(1, int(max_tokens // width))
        groups += np.array_split(members, -(-len(members) // at_once))
    return groups
