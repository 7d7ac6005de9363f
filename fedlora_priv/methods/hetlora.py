"""HetLoRA: factors of unequal ranks, padded with zeros and weighed by how large their product is.

Source: Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models" (2024). With all
factors padded to the largest rank r, and sums over survivors,

    A = Σ wₖAₖ / Σ wₖ,   B = Σ wₖBₖ / Σ wₖ,   wₖ ∝ ‖BₖAₖ‖_F;   a client of rank rₖ starts from the first rₖ components

Nobody sees a weight: beside wₖ·(Aₖ − A₀) and wₖ·(Bₖ − B₀) travels wₖ itself, one number a module, and the server
divides one sum by the other. A weight is bounded on both sides, so that no client can push the others out of the
mean and none divides by nothing: wₖ = ‖sₖBₖAₖ‖_F / `largest`, cut to [1/16, 1].

As published, a component that few clients have is pulled towards zero by the padding of the others (FediLoRA does
not do that). Ours: one weight a module, its bounds, and that the head's mean is unweighted. Ranks that clients
prune by themselves are in `fedlora_priv.allocation.pruning`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.base import Contract, Method, Shared, Sums
from fedlora_priv.methods.errors import AssumptionError, SumError
from fedlora_priv.methods.layout import Layout, LoraModule, Shapes, State
from fedlora_priv.methods.linear import moved
from fedlora_priv.methods.ranks import as_if_equal, first_components, padded, pairs
from fedlora_priv.methods.thin import require_rank_fits

LEAST_WEIGHT = 1 / 16
"""A client whose product is small still counts for so much of one whose product is large."""


class HetLoRA(Method):
    """Weighted average of padded factors.

    Args:
        own: the layout of this client's own model; None for the server, or where all ranks are the same.
        largest: the norm ‖s·BA‖_F of a module from which on a client's weight is 1; a public constant.

    Raises:
        AssumptionError: `largest` is not positive.
    """

    name = "hetlora"
    title = "HetLoRA (unequal ranks, padded, weighed by norm)"
    source = "Cho et al. 2024"

    def __init__(self, own: Layout | None = None, largest: float = 1.0) -> None:
        if not (np.isfinite(largest) and largest > 0):
            raise AssumptionError(f"norms cannot be measured by {largest}", "give a positive norm")
        self.own, self.largest = own, largest

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: weighted changes and the weights travel."""
        weights = {weight_name(m): (1,) for m in layout.modules}
        return Contract(
            uploads=dict(sorted((layout.shapes() | weights).items())),
            trains=frozenset({"A", "B", "head"}),
            exact=False,
            noise="quadratic: ξ_B·A + B·ξ_A + ξ_B·ξ_A; weights are of noised factors",
            leaks="the sums over survivors of weighted factors and of weights",
            weights="norm",
            limits=dict.fromkeys(weights, 1.0),
            travels_whole=True,
            notes=("components that few clients have are pulled towards zero",),
        )

    def start(self, layout: Layout, state: State, shared: Shared) -> State:
        """Return this client's first components of the global state, in its own scaling."""
        mine = dict(super().start(layout, state, shared))
        for module, own in pairs(layout, self.own):
            mine |= first_components(module, own, state)
        return mine

    def shapes(self, layout: Layout) -> Shapes:
        """Return the shapes of this client's own arrays."""
        return (self.own or layout).shapes()

    def weight(self, own: LoraModule, trained: State) -> float:
        """Return the weight of one module of a client."""
        norm = own.scaling * product_norm(trained[own.b_name], trained[own.a_name])
        return float(np.clip(norm / self.largest, LEAST_WEIGHT, 1.0))

    def _accept_module(self, module: LoraModule, own: LoraModule | None) -> None:
        """Raise AssumptionError unless shapes are the same and the rank no larger; scalings may differ."""
        super()._accept_module(module, own and as_if_equal(module, own))

    def _require(self, layout: Layout) -> None:
        """Raise AssumptionError unless ranks fit, and this client's own model does."""
        require_rank_fits(layout)
        if self.own is not None:
            self.accept(layout, self.own)
            require_rank_fits(self.own)

    def _upload(
        self,
        layout: Layout,
        start: State,
        trained: State,
        shared: Shared,  # noqa: ARG002 - the interface has it
    ) -> Mapping[str, NDArray[Any]]:
        """Return weighted changes and weights; the head's change as it is."""
        arrays: dict[str, NDArray[Any]] = {name: trained[name] - start[name] for name in layout.heads}
        for module, own in pairs(layout, self.own):
            weight = self.weight(own, trained)
            factors = padded(module, own, trained)
            arrays |= {name: weight * (array - start[name]) for name, array in factors.items()}
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
        """Return the state moved by the weighted mean changes."""
        combined: dict[str, NDArray[Any]] = dict(moved(state, {name: sums[name] for name in layout.heads}, n))
        for module in layout.modules:
            total = float(sums[weight_name(module)][0])
            if total < LEAST_WEIGHT / 2:  # quantising moves a sum by less than that
                raise SumError(f"the weights of {module.name} sum to nothing", "a client has spoilt the sum")
            for name in (module.a_name, module.b_name):
                combined[name] = state[name] + sums[name] / total
        return combined


def product_norm(b: NDArray[Any], a: NDArray[Any]) -> float:
    """Return ‖BA‖_F from the r × r Gram matrices of the factors."""
    left, right = b.astype(np.float64), a.astype(np.float64)
    return float(np.sqrt(max(0.0, ((left.T @ left) * (right @ right.T)).sum())))


def weight_name(module: LoraModule) -> str:
    """Name of a module's weight in an upload."""
    return f"{module.name}.weight"
