"""FLoRA, merged: the mean of the products goes into the base weights, and clients start afresh every round.

Source: Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations" (2024)
and its code (ATP-1010/FederatedLLM).

    W0 ← W0 + mean of s·BₖAₖ;   next round: A from the round's public seed, B = 0

The original stacks the clients' factors, [w₁A₁; …; w_KA_K] and [B₁, …, B_K], which hands every adapter to the server;
what it computes with them is the mean of the products, and that is a sum. The dense sum gives it exactly, of any rank
up to Σrₖ; the sketch up to rank r + k, exactly where the covariance of the drifts has no more than k.

The base changes: the state has a residual (`fedlora_priv.methods.residual`), which must be shipped with the adapter.
Clients may have unequal ranks (`fedlora_priv.methods.ranks`): a smaller one starts from the first rows of the new A.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods import public, residual
from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.crossterm import CrossTerm, Released
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.ranks import Ragged


class FLoRA(Ragged):
    """Mean of the products, merged into the base."""

    name = "flora"
    title = "FLoRA (merged into the base every round)"
    source = "Wang et al. 2024"
    changes_base = True

    def __init__(
        self,
        own: Layout | None = None,
        cross: CrossTerm = CrossTerm(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(own, cross)

    def _next(
        self, layout: Layout, combined: dict[str, NDArray[Any]], known: Released, shared: Shared
    ) -> dict[str, NDArray[Any]]:
        """Return the state with the group's products in the base and fresh factors that add nothing."""
        product = self.cross.mean_product(layout, known, shared)
        combined = dict(residual.added(known.group, combined, product))
        for module in known.group:
            label = f"flora/{module.name}"
            combined[module.a_name] = public.fresh_a(shared, label, module.rank, module.in_features)
            combined[module.b_name] = np.zeros((module.out_features, module.rank))
        return combined
