"""FFA-LoRA: A stays frozen and common to all, only B (and the head) is trained and averaged.

Source: Sun et al., "Improving LoRA in Privacy-preserving Federated Learning" (ICLR 2024).

    A random from the public seed, frozen; B₀ = 0;   B̄ = B₀ + Σₖ(Bₖ − B₀)/K

Linear and exact: mean(BₖA) = B̄A. Under DP-SGD the noise enters once, as ξ_B·A, because only one factor is
noised; and half of the adapter never travels.
"""

from __future__ import annotations

from fedlora_priv.methods.base import Contract
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.linear import LinearAverage, of_roles


class FFALoRA(LinearAverage):
    """Average of B and of the head; A frozen."""

    name = "ffa"
    title = "FFA-LoRA (frozen A)"
    source = "Sun et al., ICLR 2024"

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: the changes of B and of the head travel."""
        return Contract(
            uploads=of_roles(layout, "B", "head"),
            trains=frozenset({"B", "head"}),
            exact=True,
            noise="linear: ξ_B·A",
        )
