"""FedSA-LoRA: everybody trains A, B and the head, but shares A alone.

Source: Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning" (FedSA-LoRA, 2024)
and its code.

    Ā = A₀ + mean of ΔAₖ;   B and the head stay at each client

Linear. There is no common W: client k's is W0 + s·Bₖ·Ā, so the mean of the products is not a thing it has, and `exact`
says only that Ā is the mean. B and the head never leave, but they are inside the clipped and noised vector with A all
the same: what stays at home shapes the A that leaves. The global state's B and head are the ones everybody began with;
a client starts from its own (`Method.personal`).
"""

from __future__ import annotations

from fedlora_priv.methods.base import Contract
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.linear import LinearAverage, of_roles


class FedSALoRA(LinearAverage):
    """Average of A; B and the head are each client's own."""

    name = "fedsa"
    title = "FedSA-LoRA (shared A, personal B and head)"
    source = "Guo et al. 2024"

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: the change of A travels; B and the head are trained and stay at home."""
        return Contract(
            uploads=of_roles(layout, "A"),
            trains=frozenset({"A", "B", "head"}),
            exact=True,
            noise="linear in the shared factor: B·ξ_A; each client's own B is noised too",
            stays_home=frozenset({"B", "head"}),
        )
