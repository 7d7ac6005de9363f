"""FedASK: the mean product in two linear exchanges, the second on the range that the first one found.

Source: the FedASK code; its equations, with Ω (n, k) Gaussian and shared, means over clients:

    1.  Y = mean of Bᵢ(AᵢΩ)          Q = qr(Y), announced
    2.  Pᵀ = mean of (QᵀBᵢ)Aᵢ        SVD(Pᵀ) = U S Vᵀ
    B = Q U √S,   A = √S Vᵀ

Clients train B (and the head), the SVD turns A. With A common to all, the mean product B̄A has rank r and k = r columns
would do; the two more make the sketch well conditioned. With A trained too (`trains_a`, not under DP) it is exact only
where k ≥ dim span{Bᵢ} + 2, and the best rank r of QPᵀ otherwise.

Ours: the products themselves travel, as in the original, where FRA-LoRA in two passes sends only their cross term; the
original simulates the sketch on adapters in clear, here both exchanges are sums; √(S/s) in place of √S because of the
scaling; vanished directions as in FRA-LoRA; the server announces its Q, so that no client's own QR (whose signs depend
on the machine) matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods import public
from fedlora_priv.methods.base import Contract, Method, Shared, Sums
from fedlora_priv.methods.crossterm import announced_basis, basis_name
from fedlora_priv.methods.layout import Layout, LoraModule, Role, State
from fedlora_priv.methods.linear import moved, of_roles
from fedlora_priv.methods.thin import (
    Thin,
    balanced,
    factors,
    groups,
    require_rank_fits,
    stack,
    to_state,
    transposed,
)


class FedASK(Method):
    """Mean product by a two-exchange sketch.

    Args:
        oversampling: columns of the sketch beyond the rank.
        trains_a: train A as well; then DP noise enters as a product.
    """

    name = "fedask"
    title = "FedASK (two-exchange sketch)"
    source = "FedASK, code"

    def __init__(self, oversampling: int = 2, *, trains_a: bool = False) -> None:
        self.oversampling = oversampling
        self.trains_a = trains_a

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: a sketch of each product and the head's change, then a projection."""
        columns = {m: self._columns(m) for m in layout.modules}
        sketches = {f"{m.name}.range": (m.out_features, k) for m, k in columns.items()}
        trains: frozenset[Role] = frozenset({"A", "B", "head"} if self.trains_a else {"B", "head"})
        return Contract(
            uploads=dict(sorted((sketches | of_roles(layout, "head")).items())),
            later=({f"{m.name}.projected": (k, m.in_features) for m, k in columns.items()},),
            announces=({basis_name(m): (m.out_features, k) for m, k in columns.items()},),
            trains=trains,
            exact=not self.trains_a,
            noise="quadratic: ξ_B·ξ_A enters before the SVD" if self.trains_a else "linear: ξ_B·A",
            leaks="the sums over survivors of two maps of the products",
            travels_whole=True,
        )

    def _upload(
        self, layout: Layout, start: State, trained: State, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return B(AΩ) and the head's change, or (QᵀB)A."""
        if shared.exchange == 0:
            arrays: dict[str, NDArray[Any]] = {name: trained[name] - start[name] for name in layout.heads}
        else:
            arrays = {}
        for group in groups(layout):
            own = factors(group, trained)
            if shared.exchange == 0:
                kind, made = "range", own.times(np.stack([self._omega(module, shared) for module in group]))
            else:
                kind, made = "projected", own.after(transposed(announced_basis(group, shared)))
            arrays |= {f"{m.name}.{kind}": array for m, array in zip(group, made, strict=True)}
        return arrays

    def _announce(self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared) -> State | None:  # noqa: ARG002  # the base's
        """Return Q, an orthonormal basis of the range of the mean sketch."""
        announced: dict[str, NDArray[np.float32]] = {}
        for group in groups(layout):
            basis = np.linalg.qr(stack(sums, [f"{m.name}.range" for m in group]))[0]
            announced |= {basis_name(m): q.astype(np.float32) for m, q in zip(group, basis, strict=True)}
        return announced

    def _combine(
        self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return the state with the factors of Q·Pᵀ and the mean head."""
        combined: dict[str, NDArray[Any]] = dict(moved(state, {name: sums[name] for name in layout.heads}, n))
        for group in groups(layout):
            projected = stack(sums, [f"{m.name}.projected" for m in group]) / n
            product = Thin(group[0].scaling * announced_basis(group, shared), projected)
            combined |= to_state(group, *balanced(group, product.svd(group[0].rank), shared))
        return combined

    def _columns(self, module: LoraModule) -> int:
        """Return k: the rank and some more, but no more than the matrix has."""
        return min(module.rank + self.oversampling, module.out_features, module.in_features)

    def _omega(self, module: LoraModule, shared: Shared) -> NDArray[np.float64]:
        """Return Ω of a module, (n, k)."""
        return public.gaussian(shared, f"fedask/{module.name}", (module.in_features, self._columns(module)))

    def _require(self, layout: Layout) -> None:
        """Raise AssumptionError unless ranks fit."""
        require_rank_fits(layout)
