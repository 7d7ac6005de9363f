"""FedEx-LoRA: average the factors, and put what that misses into the base weights.

Source: Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning" (2024) and
its code.

    Ā, B̄ as in FedIT;   W0 ← W0 + s·(mean(BₖAₖ) − B̄Ā) = W0 + s·C

C is the covariance of the clients' changes of B and A (`fedlora_priv.methods.crossterm`): from a dense sum exactly, of
any rank up to Σrₖ; from a sketch to rank k. The factors are FedIT's either way, so they travel in both modes.

The base changes: the state has a residual (`fedlora_priv.methods.residual`), which must be shipped with the adapter.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fedlora_priv.methods import residual
from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.crossterm import CrossTerm, Released
from fedlora_priv.methods.fullrank import FullRank
from fedlora_priv.methods.layout import Layout, Shapes
from fedlora_priv.methods.linear import of_roles
from fedlora_priv.methods.thin import Thin, plus, to_state


class FedEx(FullRank):
    """Average of the factors; the rest of the mean product goes into the base."""

    name = "fedex"
    title = "FedEx-LoRA (the average's error goes into the base)"
    source = "Singhal et al. 2024"
    changes_base = True

    def __init__(self, cross: CrossTerm = CrossTerm()) -> None:  # noqa: B008 - frozen
        super().__init__(cross)

    def _next(
        self, layout: Layout, combined: dict[str, NDArray[Any]], known: Released, shared: Shared
    ) -> dict[str, NDArray[Any]]:
        """Return the state with the group's mean factors, and s·C in the base."""
        mean = known.linear()
        if known.has("delta_w"):
            total = self.cross.mean_product(layout, known, shared)
            missed = plus(total, Thin(-known.group[0].scaling * mean.left, mean.right))
        else:
            missed = self.cross.cross_term(layout, known, shared)
        return residual.added(known.group, combined, missed) | dict(
            to_state(known.group, mean.left, mean.right)
        )

    def _beside(self, layout: Layout) -> Shapes:
        """Return what travels beside the cross term: the factors in every mode."""
        return of_roles(layout, "A", "B", "head")
