"""FlexLoRA: clients of unequal ranks; the mean of their products, cut to each client's rank by one SVD.

Source: Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources"
(2024) and its code. Running it on sums of common factors (`fedlora_priv.methods.ranks`) is ours.

    ΔW = mean of sₖ·BₖAₖ,   sₖ = αₖ/rₖ,   SVD(ΔW) = U Σ Vᵀ
    a client of rank rₖ starts from A = V_rₖᵀ, B = U_rₖ Σ_rₖ / sₖ

The global state holds the largest rank, A = V_rᵀ and B = U_rΣ_r/s. With one rank for all only the split of Σ differs
from FRA-LoRA. The server learns how many survivors hold each component, which the assigned ranks already say.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.crossterm import CrossTerm, Released
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.ranks import Ragged
from fedlora_priv.methods.thin import rows_orthonormal, to_state


class FlexLoRA(Ragged):
    """Mean of products of unequal ranks."""

    name = "flexlora"
    title = "FlexLoRA (unequal ranks)"
    source = "Bai et al. 2024"

    def __init__(self, own: Layout | None = None, cross: CrossTerm = CrossTerm()) -> None:  # noqa: B008 - frozen
        super().__init__(own, cross)

    def _next(
        self, layout: Layout, combined: dict[str, NDArray[Any]], known: Released, shared: Shared
    ) -> dict[str, NDArray[Any]]:
        """Return the state with the SVD of the group's mean products."""
        svd = self.cross.mean_product(layout, known, shared).svd(known.group[0].rank)
        return combined | dict(to_state(known.group, *rows_orthonormal(known.group, svd)))
