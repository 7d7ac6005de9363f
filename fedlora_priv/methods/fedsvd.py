"""FedSVD: FFA-LoRA whose A the server turns, every round, to where the adapter points.

Source: github.com/seanie12/fed-svd.

    clients train B (and the head) with A frozen;   B̄ = B₀ + Σₖ(Bₖ − B₀)/K
    server:  SVD(B̄A) = U Σ Vᵀ,   A ← V_rᵀ,   B ← U_r Σ_r

Linear and exact: B̄A is the mean of the BₖA, it has rank r, and its SVD only writes it differently. The rows of the
new A are orthonormal, so noise ξ_B of the next round enters W as ξ_B·A with ‖ξ_B·A‖ = ‖ξ_B‖. Where B̄A has a rank below
r (as before the first round) the remaining rows of A are any orthonormal ones. A travels down, not up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from fedlora_priv.methods.base import Contract, Shared, Sums
from fedlora_priv.methods.layout import Layout, State
from fedlora_priv.methods.linear import LinearAverage, moved, of_roles
from fedlora_priv.methods.thin import factors, groups, require_rank_fits, to_state


class FedSVD(LinearAverage):
    """Average of B and of the head; A from the SVD of the mean product."""

    name = "fedsvd"
    title = "FedSVD (frozen A, turned by an SVD every round)"
    source = "seanie12/fed-svd"
    moves_by_mean = False

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: the changes of B and of the head travel up, A also down."""
        return Contract(
            uploads=of_roles(layout, "B", "head"),
            trains=frozenset({"B", "head"}),
            exact=True,
            noise="linear: ξ_B·A with orthonormal rows of A",
        )

    def _combine(
        self,
        layout: Layout,
        state: State,
        sums: Sums,
        n: int,
        shared: Shared,  # noqa: ARG002 - the interface has it
    ) -> Mapping[str, NDArray[Any]]:
        """Return the state with the mean product and head, A with orthonormal rows."""
        combined: dict[str, NDArray[Any]] = dict(moved(state, sums, n))
        for group in groups(layout):
            svd = factors(group, combined).svd(group[0].rank)
            combined |= to_state(group, svd.u * svd.singular[:, None, :], svd.vt)
        return combined

    def _require(self, layout: Layout) -> None:
        """Raise AssumptionError unless ranks fit."""
        require_rank_fits(layout)
