"""Fed-SB: between two fixed factors a small square R, the only thing that is trained and travels.

Source: Singhal et al., "Fed-SB: A Silver Bullet for Extreme Communication Efficiency and Performance in (Private)
Federated LoRA Fine-Tuning" (2025) and its code.

    W = W0 + s·B·R·A;   B (m, r) and A (r, n) fixed;   R̄ = R₀ + mean of ΔRₖ,   R₀ = 0

Linear, exact and tiny: r² coordinates a module. DP noise enters once, as B·ξ_R·A.

B and A decide everything that R can reach. The original takes them from the SVD of a gradient on the clients' own data,
before any noise: that is a release of private data, and refused here. There are two ways to have them:

* a gradient G on data that somebody declares public, `PublicGradients`: SVD(−G) = UΣVᵀ, B = U_r, A = V_rᵀ;
* without one, orthonormal B and A from the public seed (ours; R then explores a random subspace, and learns less).

`as_lora` writes the result as a plain LoRA adapter of rank r: B·R and A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods import public
from fedlora_priv.methods.base import Contract, Shared
from fedlora_priv.methods.errors import AssumptionError, PrivateInitialisation
from fedlora_priv.methods.layout import Layout, LoraModule, Shapes, State
from fedlora_priv.methods.linear import LinearAverage
from fedlora_priv.methods.thin import dense_svd, require_rank_fits


@dataclass(frozen=True)
class PublicGradients:
    """Gradients of the loss by each adapted weight, (m, n) by module name, and what public data they are of.

    Whoever makes one declares that no private row had a part in it; nothing in an array can show that.

    Raises:
        PrivateInitialisation: no source is named.
    """

    gradients: Mapping[str, NDArray[Any]] = field(repr=False)
    source: str

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise PrivateInitialisation("the gradients name no public source", "say what data they are of")


class FedSB(LinearAverage):
    """Average of R and of the head; B and A fixed.

    Args:
        initialisation: what B and A come from; None draws them from the public seed.

    Raises:
        PrivateInitialisation: gradients that nobody has declared public.
    """

    name = "fed-sb"
    title = "Fed-SB (a square R between fixed factors)"
    source = "Singhal et al. 2025"

    def __init__(self, initialisation: PublicGradients | None = None) -> None:
        if not (initialisation is None or isinstance(initialisation, PublicGradients)):
            raise PrivateInitialisation(
                "B and A must not come from gradients of private data",
                "declare PublicGradients, or give none",
            )
        self.initialisation = initialisation

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: the changes of R and of the head travel."""
        squares = {m.r_name: (m.rank, m.rank) for m in layout.modules}
        return Contract(
            uploads=dict(sorted((squares | dict(layout.heads)).items())),
            trains=frozenset({"R", "head"}),
            exact=True,
            noise="linear: B·ξ_R·A",
            notes=("learns only within the fixed column space of B and row space of A",),
        )

    def shapes(self, layout: Layout) -> Shapes:
        """Return the layout's shapes and R's."""
        return dict(sorted((layout.shapes() | {m.r_name: (m.rank, m.rank) for m in layout.modules}).items()))

    def begin(self, layout: Layout, initial: State, shared: Shared) -> State:
        """Return `initial` with the fixed factors in place of its own, and R = 0.

        Raises:
            AssumptionError: a rank is above its matrix, or a gradient is missing or has another shape.
        """
        self._require(layout)
        state: dict[str, NDArray[Any]] = dict(initial)
        for module in layout.modules:
            b, a = self._fixed(module, shared)
            state |= {module.b_name: b, module.a_name: a, module.r_name: np.zeros((module.rank, module.rank))}
        return {name: np.asarray(array, dtype=np.float32) for name, array in state.items()}

    def as_lora(self, layout: Layout, state: State) -> dict[str, NDArray[np.float32]]:
        """Return the state as plain factors B·R and A, for PEFT."""
        plain = {name: array for name, array in state.items() if layout.role(name) != "R"}
        for module in layout.modules:
            plain[module.b_name] = state[module.b_name] @ state[module.r_name]
        return plain

    def _fixed(self, module: LoraModule, shared: Shared) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return B with orthonormal columns and A with orthonormal rows."""
        m, n, r = module.out_features, module.in_features, module.rank
        if self.initialisation is None:
            b = np.linalg.qr(public.gaussian(shared, f"fed-sb/B/{module.name}", (m, r)))[0]
            a = np.linalg.qr(public.gaussian(shared, f"fed-sb/A/{module.name}", (n, r)))[0].T
            return b, a
        gradient = self.initialisation.gradients.get(module.name)
        if gradient is None or gradient.shape != (m, n) or not np.isfinite(gradient).all():
            raise AssumptionError(
                f"there is no finite gradient of shape {(m, n)} for {module.name}", "give all"
            )
        svd = dense_svd(-gradient.astype(np.float64), r)
        return svd.u[0], svd.vt[0]

    def _require(self, layout: Layout) -> None:
        """Raise AssumptionError unless ranks fit."""
        require_rank_fits(layout)
