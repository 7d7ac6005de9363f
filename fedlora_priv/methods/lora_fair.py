"""LoRA-FAIR: correct the mean B, on the server, so that B̄Ā points where the mean of the products does.

Source: Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement" (2024), from
notes:

    ΔB = argmin  1 − cos(ΔW, (B̄ + ΔB)Ā) + λ‖ΔB‖,   λ = 0.01;   B ← B̄ + ΔB,  A ← Ā

Two linear exchanges. The first is FedIT's; then Ā is announced and Bₖ(AₖĀᵀ) (m, r) travels, whose mean is M = ΔWĀᵀ.
That is all of ΔW that the objective needs: with G = ĀĀᵀ,

    ⟨ΔW, BĀ⟩ = ⟨M, B⟩,    ‖BĀ‖² = ⟨B, BG⟩.

Ours: ‖ΔW‖ itself cannot be had from these sums, and in its place stands c, the norm of ΔW's projection on the rows of
Ā, c² = ⟨M, MG⁻¹⟩. The cosine is then larger by a constant factor, so λ weighs a little less than in the original. And
the way to the minimum: where the gradient vanishes, with N = ‖BĀ‖, S = ⟨M, B⟩, D = ‖B − B̄‖,

    B = (λ/D·B̄ + M/(cN)) (λ/D·I + S/(cN³)·G)⁻¹,

and iterating that settles. The minimum may be B̄ itself: ‖ΔB‖ is not squared, so small corrections do not pay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.base import Contract, Method, Shared, Sums
from fedlora_priv.methods.layout import Layout, State
from fedlora_priv.methods.linear import moved, of_roles
from fedlora_priv.methods.thin import Array, require_rank_fits

ITERATIONS = 500
SETTLED = 1e-10
"""A step below this fraction of ‖B‖ ends the iteration."""


class LoRAFair(Method):
    """Average of the factors and of the head, and a correction of B.

    Args:
        weight: λ, the price of the correction's norm.
    """

    name = "lora-fair"
    title = "LoRA-FAIR (average, B refined towards the mean product)"
    source = "Bian et al. 2024"

    def __init__(self, weight: float = 0.01) -> None:
        self.weight = weight

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: every trainable array's change, then each product's image of Ā."""
        return Contract(
            uploads=layout.shapes(),
            later=({f"{m.name}.image": (m.out_features, m.rank) for m in layout.modules},),
            announces=(of_roles(layout, "A"),),
            trains=frozenset({"A", "B", "head"}),
            exact=False,
            noise="quadratic: ξ_B·A + B·ξ_A + ξ_B·ξ_A",
            leaks="the sums over survivors of the factors and of one map of the products",
            travels_whole=True,
        )

    def _upload(
        self, layout: Layout, start: State, trained: State, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return every array's change, or Bₖ(AₖĀᵀ)."""
        if shared.exchange == 0:
            return {name: trained[name] - start[name] for name in layout.shapes()}
        return {
            f"{m.name}.image": trained[m.b_name] @ (trained[m.a_name] @ shared.announced[m.a_name].T)
            for m in layout.modules
        }

    def _announce(self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared) -> State | None:  # noqa: ARG002  # the base's
        """Return Ā."""
        return moved({m.a_name: state[m.a_name] for m in layout.modules}, sums, n)

    def _combine(
        self,
        layout: Layout,
        state: State,
        sums: Sums,
        n: int,
        shared: Shared,  # noqa: ARG002 - the interface has it
    ) -> Mapping[str, NDArray[Any]]:
        """Return the state moved by the mean change, B refined."""
        combined = moved(state, sums, n)
        for m in layout.modules:
            b, a = combined[m.b_name].astype(np.float64), combined[m.a_name].astype(np.float64)
            refined = refine(b, a, sums[f"{m.name}.image"] / n, self.weight)
            combined[m.b_name] = refined.astype(np.float32)
        return combined

    def _require(self, layout: Layout) -> None:
        """Raise AssumptionError unless ranks fit."""
        require_rank_fits(layout)


def refine(mean_b: Array, mean_a: Array, image: Array, weight: float) -> Array:
    """Return the B (m, r) that minimises `objective`, or `mean_b` if nothing found is better."""
    gram = mean_a @ mean_a.T
    target = image @ np.linalg.pinv(gram)  # the B at which the cosine is 1
    c = np.sqrt(np.sum(image * target))
    if not c > 0:
        return mean_b
    b = mean_b + 1e-3 * (target - mean_b)
    for _ in range(ITERATIONS):
        size = np.sqrt(np.sum(b * (b @ gram)))
        distance = np.linalg.norm(b - mean_b)
        if distance <= SETTLED * np.linalg.norm(b):
            return mean_b
        pull = weight / distance
        curvature = np.sum(image * b) / (c * size**3)
        right = pull * mean_b + image / (c * size)
        before, b = b, np.linalg.solve(pull * np.eye(len(gram)) + curvature * gram, right.T).T
        if np.linalg.norm(b - before) <= SETTLED * np.linalg.norm(b):
            break
    better = objective(b, mean_b, mean_a, image, weight) < objective(mean_b, mean_b, mean_a, image, weight)
    return b if better else mean_b


def objective(b: Array, mean_b: Array, mean_a: Array, image: Array, weight: float) -> float:
    """Return 1 − cos(ΔW, BĀ) + λ‖B − B̄‖, the cosine within the row space of Ā; infinite where BĀ = 0."""
    gram = mean_a @ mean_a.T
    c, size = np.sqrt(np.sum(image * (image @ np.linalg.pinv(gram)))), np.sqrt(np.sum(b * (b @ gram)))
    if not size > 0:
        return np.inf
    return float(1.0 - np.sum(image * b) / (c * size) + weight * np.linalg.norm(b - mean_b))
