"""RoLoRA: odd rounds train and average B, even rounds A, the other factor frozen and common to all.

Source: Chen et al., "Robust Federated Finetuning of LoRA with Alternating Minimization" (RoLoRA, 2024), from notes.

    odd rounds:   B̄ = B₀ + mean of ΔBₖ, A frozen;    even rounds:   Ā = A₀ + mean of ΔAₖ, B frozen

Linear and exact in every round: with one factor common, the mean of the products is the product of the means. DP noise
enters once a round. It is a schedule of two linear methods (`fedlora_priv.methods.schedule`), for ever. B goes first
because it starts at zero, where A has no gradient. The head is trained in every round; that is ours.
"""

from __future__ import annotations

from fedlora_priv.methods.base import Contract, Method
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.linear import LinearAverage, of_roles


class RoLoRA(FFALoRA):
    """Average of B and the head in odd rounds, of A and the head in even ones."""

    name = "rolora"
    title = "RoLoRA (B and A in turn)"
    source = "Chen et al. 2024"

    def at(self, round: int) -> Method:
        """Return the method of that round: this one trains B."""
        return self if round % 2 or round == 0 else _EVEN


class _EvenRound(LinearAverage):
    """Average of A and of the head; B frozen."""

    name = "rolora"
    title = RoLoRA.title
    source = RoLoRA.source

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: the changes of A and of the head travel."""
        return Contract(
            uploads=of_roles(layout, "A", "head"),
            trains=frozenset({"A", "head"}),
            exact=True,
            noise="linear: B·ξ_A",
        )


_EVEN = _EvenRound()
