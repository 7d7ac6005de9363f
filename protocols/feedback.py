"""Error feedback: what compression left out of one round is added to the next one's update.

    compensated = update + residual        what this round would like to send
    residual    = compensated - sent       what it could not

so that, over any number of rounds, the sum of all updates equals the sum of all that was sent plus one residual:
a biased support (top-k) or a coarse quantiser delays a coordinate, and never loses it.

The residual is private data. It is computed from values that masks hide from the server, and it is state that
crosses rounds: a raw one would carry yesterday's rows into tomorrow's release, which no ledger event covers. So
feedback takes only updates that are private at the client (`PrivateAtClient`), mode `local`; the residual and all
that follows is then post-processing. Where clients add *shares* of the noise it must not be used: a raw update
minus a sent one is not private, and there is no way to declare it so.

Source: Seide et al. 2014; Karimireddy et al. 2019 ("Error feedback fixes SignSGD"), whose lemma 3 bounds the residual.
In the form used here: if compression leaves out at most a fraction s < 1 of the norm of what it is given, and no update
is longer than G, a residual e is followed by one of norm at most s·(|e| + G). So none is ever longer than G·s/(1-s);
top-k of d leaves out s = sqrt(1 - k/d).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import LocalProtocolError
from protocols.private import PrivateAtClient, require_private
from protocols.redaction import Redacted

_HEADER = struct.Struct("<4sBI")  # magic, version, dimension
_MAGIC, _VERSION = b"fpef", 1


class ErrorFeedback(Redacted):
    """One client's residual: float32 of shape (dimension,), zero at first.

    Works with any support and quantiser: `record` is told what was really sent, on all coordinates.

    Example:
        >>> feedback = ErrorFeedback(2)
        >>> update = PrivateAtClient(np.array([1.0, 0.25]), accounted_as="an example")
        >>> wanted = feedback.compensate(update)
        >>> feedback.record(wanted, sent=np.array([1.0, 0.0]))  # the support was coordinate 0
        >>> feedback.compensate(update).values.tolist()
        [1.0, 0.5]
    """

    __slots__ = ("_residual",)

    def __init__(self, dimension: int) -> None:
        if not 1 <= dimension < 2**32:
            raise LocalProtocolError("a residual has at least one coordinate")
        self._residual = np.zeros(dimension, dtype=np.float32)

    @property
    def dimension(self) -> int:
        """How many coordinates the update has before any support."""
        return int(self._residual.size)

    def compensate(self, update: PrivateAtClient) -> PrivateAtClient:
        """Return the update plus what earlier rounds left out, float64 of shape (dimension,). Nothing changes.

        Raises:
            LocalProtocolError: the update was not declared private at the client, or has another length.
        """
        declared = require_private(update, self.dimension)
        return PrivateAtClient(declared.values.astype(np.float64) + self._residual, declared.accounted_as)

    def record(self, compensated: PrivateAtClient, sent: NDArray[np.floating[Any]]) -> None:
        """Keep what was left out of `compensated`, once it is certain what was sent.

        Args:
            compensated: what `compensate` returned in this round.
            sent: what the sum got from this client, shape (dimension,): its own ring elements, dequantised and
                scattered, zero where nothing travelled. Of a lost round: zeros, since nothing arrived.

        Raises:
            LocalProtocolError: wrong shape, NaN or infinity. The residual stays as it was.
        """
        wanted = require_private(compensated, self.dimension).values
        if not isinstance(sent, np.ndarray) or sent.shape != (self.dimension,) or sent.dtype.kind != "f":
            raise LocalProtocolError(f"what was sent is a float vector of shape ({self.dimension},)")
        with np.errstate(over="ignore", invalid="ignore"):
            residual = (wanted.astype(np.float64) - sent).astype(np.float32)
        if not np.isfinite(residual).all():
            raise LocalProtocolError("the residual would not be finite: scales are far too small")
        self._residual = residual

    def snapshot(self) -> bytes:
        """Return the residual as bytes. They are private data: keep them with the client's secrets."""
        return _HEADER.pack(_MAGIC, _VERSION, self.dimension) + self._residual.astype("<f4").tobytes()

    @classmethod
    def restore(cls, snapshot: bytes, dimension: int) -> ErrorFeedback:
        """Return the feedback that `snapshot` was taken of.

        Args:
            dimension: what this experiment's updates have.

        Raises:
            LocalProtocolError: not a snapshot, damaged, or of another dimension.
        """
        feedback = cls(dimension)
        if snapshot[: _HEADER.size] != _HEADER.pack(_MAGIC, _VERSION, dimension):
            raise LocalProtocolError(f"not a residual of {dimension} coordinates, or of another version")
        if len(snapshot) != _HEADER.size + 4 * dimension:
            raise LocalProtocolError("the residual's bytes are truncated, or more than they should be")
        residual = np.frombuffer(snapshot, dtype="<f4", offset=_HEADER.size).astype(np.float32)
        if not np.isfinite(residual).all():
            raise LocalProtocolError("the residual's bytes are damaged: an entry is not finite")
        feedback._residual = residual
        return feedback
