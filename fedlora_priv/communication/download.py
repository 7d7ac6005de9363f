"""What travels down: a part of the global state, everything else being zero or known already.

`largest`   the coordinates of largest magnitude; the client starts from zeros elsewhere. FLASC's download mask: the
            server keeps all of the state, and adds to it how clients moved away from the masked one.
`changed`   the coordinates that are not what they were; the client keeps its copy of the others. Exact. After a round
            with a sparse support and a server that adds the mean change, that is at most the support; after a step
            of a server optimiser with momentum, nearly everything. Who missed a round needs the whole state first.

Either is a function of the public state, so it reveals nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.communication.errors import CommunicationError
from protocols.sparsify import Support, server_topk, support_bytes


@dataclass(frozen=True)
class Download:
    """Some coordinates of a state, and their values.

    Args:
        support: which.
        values: float32 of shape (k,), finite.

    Raises:
        CommunicationError: the values are not such a vector.

    Example:
        >>> download = largest(np.array([0.5, -3.0, 0.0, 2.0], dtype=np.float32), density=0.5)
        >>> download.onto(np.zeros(4, dtype=np.float32)).tolist()
        [0.0, -3.0, 0.0, 2.0]
    """

    support: Support
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.support),) or self.values.dtype != np.float32:
            raise CommunicationError("a download has one float32 value for each of its coordinates")
        if not np.isfinite(self.values).all():
            raise CommunicationError("a value of the global state is not finite", "training has diverged")

    def onto(self, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a copy of `state`, shape (dimension,), with these values in it."""
        if state.shape != (self.support.dimension,):
            raise CommunicationError(f"this download is for {self.support.dimension} coordinates")
        result = state.copy()
        result[self.support.indices] = self.values
        return result

    def to_bytes(self) -> bytes:
        """Return the support's length and encoding, then the values as little-endian float32."""
        encoded = self.support.to_bytes()
        return len(encoded).to_bytes(4, "little") + encoded + self.values.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, dimension: int) -> Download:
        """Return the download that `data` encodes.

        Raises:
            SupportError, CommunicationError: it is not one of that many coordinates.
        """
        cut = 4 + int.from_bytes(data[:4], "little")
        support = Support.from_bytes(data[4:cut], dimension)
        if len(data) != cut + 4 * len(support):
            raise CommunicationError("a download has four bytes for each of its coordinates")
        return cls(support, np.frombuffer(data, "<f4", offset=cut).astype(np.float32))


def largest(state: NDArray[np.float32], density: float) -> Download:
    """Return the floor(density·d) coordinates of largest magnitude, at least one; of equal ones the lower index."""
    if not 0.0 < density <= 1.0:
        raise CommunicationError(f"a density is above 0 and at most 1, not {density}")
    k = max(1, math.floor(density * state.size))
    support = server_topk(np.abs(state), k, 0.0, b"")
    return Download(support, support.take(state))


def changed(before: NDArray[np.float32], after: NDArray[np.float32]) -> Download | None:
    """Return what turns `before` into `after` exactly, or None if they are the same."""
    if before.shape != after.shape or before.ndim != 1:
        raise CommunicationError("two states of one model are vectors of one length")
    moved = np.flatnonzero(before.view(np.uint32) != after.view(np.uint32))  # bits: -0.0 is not 0.0
    if moved.size == 0:
        return None
    support = Support(before.size, moved)
    return Download(support, support.take(after))


def download_bytes(dimension: int, k: int) -> int:
    """Return the length of `Download.to_bytes` of any k of that many coordinates."""
    return 4 + support_bytes(dimension, k) + 4 * k
