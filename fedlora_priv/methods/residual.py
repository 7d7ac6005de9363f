"""What a method has added to the base weights, W0 ← W0 + residual, kept in the state and shipped with the adapter.

A residual is thin factors ``<module>.base_B`` (m, k) and ``<module>.base_A`` (k, n), or dense ``<module>.base`` (m, n),
whichever is smaller; the scaling is inside. It grows by the rank of every round's change until dense is smaller.

The result of a run is then not a plain rank-r adapter, but can be used as plain PEFT in two ways: `merged` gives what
to add to the base weights, `as_adapter` an adapter of higher rank that is exactly the same map.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.layout import Layout, LoraModule, Shapes, State
from fedlora_priv.methods.thin import Array, Dense, Group, Product, Thin, plus

NEGLIGIBLE = 1e-7
"""Singular values of a residual below this fraction of the largest are less than float32 can hold beside it."""


def added(group: Group, state: State, change: Product) -> dict[str, NDArray[np.float32]]:
    """Return `state` with the residuals of a group's modules moved by `change`, (L, m, n)."""
    result = dict(state)
    for i, module in enumerate(group):
        total = plus(kept(module, state), change.part(i))
        if isinstance(total, Thin):
            total = _compact(total)
        for name in _names(module):
            result.pop(name, None)
        result |= {name: array.astype(np.float32) for name, array in _named(module, total).items()}
    return result


def kept(module: LoraModule, state: State) -> Product:
    """Return a module's residual as it is kept, float64, with L = 1; of rank 0 if the base has not changed."""
    dense, b, a = (state.get(name) for name in _names(module))
    if dense is not None:
        return Dense(dense.astype(np.float64)[None])
    if b is None or a is None:
        return Thin(np.zeros((1, module.out_features, 0)), np.zeros((1, 0, module.in_features)))
    return Thin(b.astype(np.float64)[None], a.astype(np.float64)[None])


def whole(module: LoraModule, state: State) -> Product:
    """Return all that a state adds to a module's first base weights: s·BA and the residual; L = 1."""
    b, a = (state[name].astype(np.float64)[None] for name in (module.b_name, module.a_name))
    return plus(Thin(module.scaling * b, a), kept(module, state))


def merged(layout: Layout, state: State) -> dict[str, Array]:
    """Return what to add to each module's base weights, (m, n) float64: residual and adapter together."""
    return {module.name: whole(module, state).dense()[0] for module in layout.modules}


def as_adapter(layout: Layout, state: State) -> tuple[Layout, dict[str, NDArray[Any]]]:
    """Return a layout of higher ranks and plain factors, without residual, that are exactly the same map.

    The scaling of each module stays: a PEFT configuration needs `rank_pattern` and `alpha_pattern` with α/r as before.
    A dense residual D becomes D·I, of rank min(m, n).
    """
    modules, arrays = [], {name: array for name, array in state.items() if layout.role(name) != "base"}
    for module in layout.modules:
        extra = _factors(module, state)
        rank = module.rank + extra.left.shape[2]
        b = np.concatenate([state[module.b_name], extra.left[0] / module.scaling], axis=1)
        a = np.concatenate([state[module.a_name], extra.right[0]])
        arrays |= {module.b_name: b.astype(np.float32), module.a_name: a.astype(np.float32)}
        modules.append(replace(module, rank=rank))
    return replace(layout, modules=tuple(modules)), arrays


def shapes(layout: Layout, held: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes that residuals whose arrays claim those of `held` must have.

    A module has one residual, dense or thin, and a thin one is smaller than a dense one would be; what is neither has
    no shape here.
    """
    allowed: dict[str, tuple[int, ...]] = {}
    for module in layout.modules:
        (dense, b, a), m, n = _names(module), module.out_features, module.in_features
        rank = held[b][1] if len(held.get(b, ())) == len(held.get(a, ())) == 2 else 0
        if dense in held:
            allowed[dense] = (m, n)
        elif 0 < rank * (m + n) < m * n:
            allowed |= {b: (m, rank), a: (rank, n)}
    return allowed


def _factors(module: LoraModule, state: State) -> Thin:
    """Return a residual as factors, however it is kept."""
    residual = kept(module, state)
    if isinstance(residual, Thin):
        return residual
    m, n = residual.matrices.shape[1:]
    return Thin(residual.matrices, np.eye(n)[None]) if n <= m else Thin(np.eye(m)[None], residual.matrices)


def _compact(product: Thin) -> Product:
    """Return the same product with as few columns as float32 can tell apart; dense where that is smaller."""
    (_, m, k), n = product.left.shape, product.right.shape[2]
    svd = product.svd(min(m, k, n))
    live = svd.singular[0] > NEGLIGIBLE * svd.singular[0, :1]
    if int(live.sum()) * (m + n) >= m * n:
        return Dense(product.dense())
    root = np.sqrt(svd.singular[0, live])
    return Thin(svd.u[:, :, live] * root, root[:, None] * svd.vt[:, live])


def _named(module: LoraModule, residual: Product) -> dict[str, Array]:
    """Return a residual's arrays under their names in a state."""
    dense, b, a = _names(module)
    if isinstance(residual, Dense):
        return {dense: residual.matrices[0]}
    return {b: residual.left[0], a: residual.right[0]} if residual.left.shape[2] else {}


def _names(module: LoraModule) -> tuple[str, str, str]:
    """Return the names that a module's residual may have: dense, left factor, right factor."""
    return f"{module.name}.base", f"{module.name}.base_B", f"{module.name}.base_A"
