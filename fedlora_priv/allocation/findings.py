"""What a round's allocation follows from beside the experiment file: what was found while the run went on.

Findings are public. The server holds them, every round's message carries them, and they are in the digest that all
masks of the round are bound to: clients that were told different ones do not sum. What a client accepts as found is in
`fedlora_priv.federation.allocating`; that they are numbers of the right form, and finite, is seen to here.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedlora_priv.errors import FederationError

PREFIX = "findings/"
"""Of the names of the blobs in which findings travel; what was not found has none."""
_SCORES, _RANKS = PREFIX + "scores", PREFIX + "ranks"


@dataclass(frozen=True)
class Findings:
    """What a round's allocation follows from beside the file: measured scores, and ranks that clients have pruned.

    Args:
        scores: the latest of each layer, finite and 0 or more, the lowest layer first; none where none was measured.
        ranks: of clients whose rank has changed, each at least 1, by client_id in sorted order.

    Raises:
        FederationError: scores or ranks are none.
    """

    scores: tuple[float, ...] = ()
    ranks: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if not all(type(score) is float and math.isfinite(score) and score >= 0 for score in self.scores):
            raise FederationError("scores that were found must be finite numbers, 0 or more")
        if not all(type(rank) is int and rank >= 1 for _, rank in self.ranks):
            raise FederationError("ranks that were found must be whole numbers of at least 1")
        names = [client_id for client_id, _ in self.ranks]
        if names != sorted(set(names)):
            raise FederationError("ranks that were found must list each client once, in order")

    def to_json(self) -> dict[str, Any]:
        """Return them as a report states them; what was not found is left out.

        >>> Findings(ranks=(("client-2", 4),)).to_json()
        {'ranks': {'client-2': 4}}
        """
        found: dict[str, Any] = {}
        if self.scores:
            found["scores"] = list(self.scores)
        if self.ranks:
            found["ranks"] = dict(self.ranks)
        return found

    def digest(self) -> bytes:
        """Return 32 bytes that differ whenever anything else was found."""
        return hashlib.sha256(b"fedlora-priv/v1/findings/" + _canonical(self.to_json())).digest()

    def to_blobs(self) -> dict[str, bytes]:
        """Return the blobs of a message; those of scores are as long whatever they are."""
        blobs = {}
        if self.scores:
            blobs[_SCORES] = struct.pack(f"<{len(self.scores)}d", *self.scores)
        if self.ranks:
            blobs[_RANKS] = _canonical(dict(self.ranks))
        return blobs

    @classmethod
    def from_blobs(cls, blobs: Mapping[str, bytes], layers: int) -> Findings:
        """Return the findings of a message.

        Args:
            blobs: those of the message whose names begin with `PREFIX`.
            layers: how many the model has.

        Raises:
            FederationError: they are garbled, or not of so many layers.
        """
        scores: tuple[float, ...] = ()
        ranks: Any = {}
        try:
            if _SCORES in blobs:
                scores = struct.unpack(f"<{layers}d", blobs[_SCORES])
            if _RANKS in blobs:
                ranks = json.loads(blobs[_RANKS])
            found = cls(scores, tuple(sorted(ranks.items())))
        except (struct.error, ValueError, AttributeError, RecursionError):
            raise FederationError(f"what was found is garbled, or not of {layers} layers") from None
        if found.to_blobs() != blobs:
            raise FederationError("what was found is not written as it is written")
        return found


def _canonical(value: object) -> bytes:
    """Return a JSON value in one certain form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
