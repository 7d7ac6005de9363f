"""FRA-LoRA: aggregate the full-rank product, then return to rank r by a truncated SVD.

Source: Trautmann, Hales, Volk, "Aggregating Low Rank Adapters in Federated Fine-tuning". The abstract is what
we had; the split of Σ between the factors (√Σ each), the treatment of vanished directions and the ways to get the mean
from sums (`fedlora_priv.methods.crossterm`) are ours.

    ΔW = mean of s·BₖAₖ,   ΔW ≈ U_r Σ_r V_rᵀ,   B = U_r √(Σ_r/s),   A = √(Σ_r/s) V_rᵀ

The SVD is post-processing of sums, so it costs no privacy. Dense products take m·n coordinates per module instead of
LoRA's r·(m + n); factors and a sketch, about three times LoRA's, and no m × n matrix is formed; two passes a little
less, in two exchanges. All leave the best rank r of what they know of ΔW.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.crossterm import CrossTerm, Released
from fedlora_priv.methods.fullrank import FullRank
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.thin import balanced, to_state


class FRALoRA(FullRank):
    """Mean of the products BₖAₖ, truncated to rank r."""

    name = "fra"
    source = "Trautmann, Hales, Volk"

    def __init__(self, cross: CrossTerm = CrossTerm()) -> None:  # noqa: B008 - frozen
        super().__init__(cross)
        how = {"exact": "exact dense sum", "sketch": "factor sums and a sketch", "two-pass": "two passes"}
        self.title = f"FRA-LoRA (full-rank aggregation, {how[cross.mode]})"

    def _notes(self) -> tuple[str, ...]:
        """See `FullRank`."""
        return (*super()._notes(), "rank r of the mean product is kept")

    def _next(
        self, layout: Layout, combined: dict[str, NDArray[Any]], known: Released, shared: Shared
    ) -> dict[str, NDArray[Any]]:
        """Return the state with the best rank-r factors of the group's mean products."""
        svd = self.cross.mean_product(layout, known, shared).svd(known.group[0].rank)
        return combined | dict(to_state(known.group, *balanced(known.group, svd, shared)))
