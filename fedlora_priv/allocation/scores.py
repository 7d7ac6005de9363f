"""Scores of layers, and where they come from: public data, or private data at a price that a ledger knows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedlora_priv.allocation.errors import AllocationError, PrivateScores


@dataclass(frozen=True)
class LayerScores:
    """One number a layer, 0 or more. Whoever makes one declares its origin; no number can show it.

    Make them by `of_public_data` or `charged`.
    """

    values: tuple[float, ...]
    origin: str
    is_charged: bool

    def __post_init__(self) -> None:
        if not self.origin.strip():
            raise PrivateScores(
                "layer scores name neither public data nor a ledger event",
                "score with public data, or charge a noised score and name its event",
            )
        if not self.values or not all(math.isfinite(value) and value >= 0 for value in self.values):
            raise AllocationError("layer scores must be finite and 0 or more", "measure them again")

    @classmethod
    def of_public_data(cls, values: tuple[float, ...], data: str) -> LayerScores:
        """Return scores measured on data that are declared public.

        Raises:
            PrivateScores: no data are named.
        """
        return cls(values, data, is_charged=False)

    @classmethod
    def charged(cls, values: tuple[float, ...], event: str) -> LayerScores:
        """Return scores of private data that were noised, and charged under this event of the ledger.

        Raises:
            PrivateScores: no event is named.
        """
        return cls(values, event, is_charged=True)


def require_scores(scores: object, layers: int, name: str) -> LayerScores:
    """Return the scores, if they are declared and there is one for each layer.

    Raises:
        PrivateScores: they are bare numbers, which nobody has declared public or charged.
        AllocationError: there are none, or another number of them.
    """
    if scores is None:
        raise AllocationError(f"{name!r} needs a score of each layer", "measure them on public data")
    if not isinstance(scores, LayerScores):
        raise PrivateScores(
            f"{name!r} was given scores that nobody has declared public or charged", "make LayerScores"
        )
    if len(scores.values) != layers:
        raise AllocationError(
            f"there are {len(scores.values)} scores for {layers} layers", "score each layer"
        )
    return scores
