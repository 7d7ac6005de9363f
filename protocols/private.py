"""A declaration that a vector is private by itself, which some encodings demand and cannot check.

Votes, and residuals that cross rounds, depend on where a client's update is large. That is a function of its
data. It is covered by the client's guarantee only if the update was noised at the client in full before
(mode `local`): then whatever follows is post-processing. Nothing in a vector shows whether it was; so the
functions that rely on it take no array but a `PrivateAtClient`, and whoever makes one signs for it by naming
the event in the client's own ledger that priced the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import LocalProtocolError
from protocols.redaction import Redacted

_MAX_EVENT = 256


@dataclass(frozen=True, repr=False, eq=False)
class PrivateAtClient(Redacted):
    """A vector that its owner declares differentially private already, with no help of a sum or a mask.

    Never declare a raw update, nor one that carries only this client's *share* of the noise: both are private,
    if at all, in the sum alone.

    Args:
        values: the update after clipping and noise, float32 or float64 of shape (d,), finite.
        accounted_as: the ledger event, in this client's own words, that priced the noise in `values`.

    Raises:
        LocalProtocolError: not such a vector, or no event is named.

    Example:
        >>> PrivateAtClient(np.array([0.5, -2.0]), accounted_as="round 3, attempt 1")
        PrivateAtClient(<secret>)
    """

    values: NDArray[np.floating[Any]]
    accounted_as: str

    def __post_init__(self) -> None:
        values = self.values
        if not isinstance(values, np.ndarray) or values.ndim != 1 or values.size == 0:
            raise LocalProtocolError("an update is a vector of at least one coordinate")
        if values.dtype not in (np.float32, np.float64) or not np.isfinite(values).all():
            raise LocalProtocolError("an update is float32 or float64, without NaN or infinity")
        if not isinstance(self.accounted_as, str) or not 0 < len(self.accounted_as.strip()) <= _MAX_EVENT:
            raise LocalProtocolError(
                "name the ledger event that priced this update's noise; without one, stop"
            )

    def __len__(self) -> int:
        return int(self.values.size)


def require_private(update: object, dimension: int) -> PrivateAtClient:
    """Return `update` if it is declared private and has `dimension` coordinates.

    Raises:
        LocalProtocolError: it is a bare array, or of another length.
    """
    if not isinstance(update, PrivateAtClient):
        raise LocalProtocolError(
            "only an update that is private at the client may be used here: clip and noise it in full, charge "
            "it, and declare it as PrivateAtClient; with shares of noise this function cannot be used at all"
        )
    if len(update) != dimension:
        raise LocalProtocolError(f"the update has {len(update)} coordinates, not {dimension}")
    return update
