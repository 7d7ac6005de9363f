"""HetLoRA: factors of unequal ranks, padded with zeros and weighed by how large their product is.

Source: Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models" (2024). With all
factors padded to the largest rank r, and sums over survivors,

    A = Σ wₖAₖ / Σ wₖ,   B = Σ wₖBₖ / Σ wₖ,   wₖ ∝ ‖BₖAₖ‖_F;   a client of rank rₖ starts from the first rₖ components

Nobody sees a weight: beside the weighted factors travels wₖ itself, one number a module, and the server divides one sum
by the other. A weight is bounded on both sides, so that no client can push the others out of the mean and none divides
by nothing: wₖ = ‖sₖBₖAₖ‖_F / `largest`, cut to [1/16, 1].

*What travels of a component.* Of one that every client has, the weighted change wₖ·(Aₖ − A₀). Of any other the weighted
value wₖ·Aₖ: a client that does not have it sends zeros, so that the sum is of its holders and counted as theirs. Its
change would be wₖ·(0 − A₀): no zeros, and yet nothing that could hide another client's. Which components everybody has
is public.

As published, a component that few clients have is pulled towards zero by the padding of the others (FediLoRA does
not do that). Ours: one weight a module, its bounds, and that the head's mean is unweighted. Ranks that clients prune by
themselves are in `fedlora_priv.allocation.pruning`; everybody then has as many components as the rule's least rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.base import Contract, Shared, Sums
from fedlora_priv.methods.errors import AssumptionError, SumError
from fedlora_priv.methods.layout import Layout, LoraModule, State
from fedlora_priv.methods.linear import moved
from fedlora_priv.methods.ranks import OfOwnRank, padded, pairs

LEAST_WEIGHT = 1 / 16
"""A client whose product is small still counts for so much of one whose product is large."""


class HetLoRA(OfOwnRank):
    """Weighted average of padded factors.

    Args:
        own: the layout of this client's own model; None for the server, or where all ranks are the same.
        largest: the norm ‖s·BA‖_F of a module from which on a client's weight is 1; a public constant.
        common: components that every client has, of every module; the first ones. The same at server and clients.

    Raises:
        AssumptionError: `largest` is not positive.
    """

    name = "hetlora"
    title = "HetLoRA (unequal ranks, padded, weighed by norm)"
    source = "Cho et al. 2024"

    def __init__(self, own: Layout | None = None, largest: float = 1.0, common: int = 0) -> None:
        if not (np.isfinite(largest) and largest > 0):
            raise AssumptionError(f"norms cannot be measured by {largest}", "give a positive norm")
        self.own, self.largest, self.common = own, largest, common

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: weighted factors and the weights travel."""
        weights = {weight_name(m): (1,) for m in layout.modules}
        return Contract(
            uploads=dict(sorted((layout.shapes() | weights).items())),
            trains=frozenset({"A", "B", "head"}),
            exact=False,
            noise="quadratic: ξ_B·A + B·ξ_A + ξ_B·ξ_A; weights are of noised factors",
            leaks="the sums over survivors of weighted factors and of weights; nearly that of weights for each rank",
            weights="norm",
            limits=dict.fromkeys(weights, 1.0),
            travels_whole=True,
            notes=("components that few clients have are pulled towards zero",),
        )

    def weight(self, own: LoraModule, trained: State) -> float:
        """Return the weight of one module of a client."""
        norm = own.scaling * product_norm(trained[own.b_name], trained[own.a_name])
        return float(np.clip(norm / self.largest, LEAST_WEIGHT, 1.0))

    def _accept_module(self, module: LoraModule, own: LoraModule | None) -> None:
        """Raise AssumptionError unless shapes are the same and the client has what everybody has, and no more."""
        super()._accept_module(module, own)
        if own is not None and own.rank < min(self.common, module.rank):
            raise AssumptionError(
                f"{module.name} has rank {own.rank} at a client, and {self.common} components are everybody's",
                "lower how many are",
            )

    def _upload(
        self,
        layout: Layout,
        start: State,
        trained: State,
        shared: Shared,  # noqa: ARG002 - the interface has it
    ) -> Mapping[str, NDArray[Any]]:
        """Return weighted factors and weights; the head's change as it is."""
        arrays: dict[str, NDArray[Any]] = {name: trained[name] - start[name] for name in layout.heads}
        for module, own in pairs(layout, self.own):
            weight, known = self.weight(own, trained), self._known(module, start)
            factors = padded(module, own, trained)
            arrays |= {name: weight * (array - known[name]) for name, array in factors.items()}
            arrays[weight_name(module)] = np.array([weight])
        return arrays

    def _combine(
        self,
        layout: Layout,
        state: State,
        sums: Sums,
        n: int,
        shared: Shared,  # noqa: ARG002 - the interface has it
    ) -> Mapping[str, NDArray[Any]]:
        """Return the state with the weighted means of the padded factors."""
        combined: dict[str, NDArray[Any]] = dict(moved(state, {name: sums[name] for name in layout.heads}, n))
        for module in layout.modules:
            total = float(sums[weight_name(module)][0])
            if total < LEAST_WEIGHT / 2:  # quantising moves a sum by less than that
                raise SumError(f"the weights of {module.name} sum to nothing", "a client has spoilt the sum")
            for name, known in self._known(module, state).items():
                combined[name] = known + sums[name] / total
        return combined

    def _known(self, module: LoraModule, state: State) -> dict[str, NDArray[np.float32]]:
        """Return what factors travel as differences from: the round's start where everybody has it, zero beyond."""
        everybodys = np.arange(module.rank) < self.common
        return {
            module.a_name: np.where(everybodys[:, None], state[module.a_name], np.float32(0.0)),
            module.b_name: np.where(everybodys, state[module.b_name], np.float32(0.0)),
        }


def product_norm(b: NDArray[Any], a: NDArray[Any]) -> float:
    """Return ‖BA‖_F from the r × r Gram matrices of the factors."""
    left, right = b.astype(np.float64), a.astype(np.float64)
    return float(np.sqrt(max(0.0, ((left.T @ left) * (right @ right.T)).sum())))


def weight_name(module: LoraModule) -> str:
    """Name of a module's weight in an upload."""
    return f"{module.name}.weight"
