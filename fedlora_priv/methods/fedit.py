"""FedIT, the baseline: average the factors.

Source: Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning" (2023); it is FedAvg
(McMahan et al. 2017) applied to A and B apart.

    Ā = A₀ + Σₖ(Aₖ − A₀)/K,   B̄ = B₀ + Σₖ(Bₖ − B₀)/K

Linear, so it runs on sums; but B̄Ā is not the mean of the BₖAₖ, and under DP-SGD the product of the two noises
ξ_B·ξ_A enters W. All K clients count equally.
"""

from __future__ import annotations

from fedlora_priv.methods.base import Contract
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.linear import LinearAverage


class FedIT(LinearAverage):
    """Average of A, of B and of the head."""

    name = "fedit"
    title = "FedIT (FedAvg of the factors)"
    source = "Zhang et al. 2023"

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: every trainable array travels as it changed."""
        return Contract(
            uploads=layout.shapes(),
            trains=frozenset({"A", "B", "head"}),
            exact=False,
            noise="quadratic: ξ_B·A + B·ξ_A + ξ_B·ξ_A",
            notes=("the mean of the products is not the product of the means",),
        )
