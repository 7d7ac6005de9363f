"""Matrices as products of thin factors, whose SVD never forms an m × n matrix; and dense ones, where there are.

Modules of equal shape are worked on together, stacked along a first axis: left (L, m, k), right (L, k, n).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods import public
from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.errors import AssumptionError
from fedlora_priv.methods.layout import Layout, LoraModule

Array = NDArray[np.float64]
Group = tuple[LoraModule, ...]
"""Modules of one shape, rank and scaling."""

VANISHED = 1e-6
"""Singular values below this fraction of the largest count as vanished."""


@dataclass(frozen=True)
class Thin:
    """The product left·right of stacked thin factors (L, m, k) and (L, k, n)."""

    left: Array
    right: Array

    def __add__(self, other: Thin) -> Thin:
        """Return the sum of two products, as factors stacked side by side."""
        return Thin(
            np.concatenate([self.left, other.left], axis=2), np.concatenate([self.right, other.right], axis=1)
        )

    def part(self, i: int) -> Thin:
        """Return one module's product, with L = 1."""
        return Thin(self.left[i : i + 1], self.right[i : i + 1])

    def dense(self) -> Array:
        """Return the products as m × n matrices, (L, m, n)."""
        return self.left @ self.right

    def times(self, columns: Array) -> Array:
        """Return left·(right·columns), (L, m, g)."""
        return self.left @ (self.right @ columns)

    def after(self, rows: Array) -> Array:
        """Return (rows·left)·right, (L, l, n)."""
        return (rows @ self.left) @ self.right

    def svd(self, rank: int) -> Svd:
        """Return the leading singular triplets of each product, through QRs of the factors."""
        ql, rl = np.linalg.qr(self.left)
        qr, rr = np.linalg.qr(transposed(self.right))
        u, singular, vt = np.linalg.svd(rl @ transposed(rr), full_matrices=False)
        return Svd(ql @ u[:, :, :rank], singular[:, :rank], vt[:, :rank] @ transposed(qr)).padded(rank)


@dataclass(frozen=True)
class Dense:
    """Stacked m × n matrices, (L, m, n); the exact modes have them, one module at a time."""

    matrices: Array

    def part(self, i: int) -> Dense:
        """Return one module's matrix, with L = 1."""
        return Dense(self.matrices[i : i + 1])

    def dense(self) -> Array:
        """Return the matrices, (L, m, n)."""
        return self.matrices

    def times(self, columns: Array) -> Array:
        """Return matrix·columns, (L, m, g)."""
        return self.matrices @ columns

    def svd(self, rank: int) -> Svd:
        """Return the leading singular triplets of each matrix."""
        parts = [dense_svd(matrix, rank) for matrix in self.matrices]
        return Svd(*(np.concatenate(same) for same in zip(*parts, strict=True)))


Product = Thin | Dense
"""A group's matrices, whichever way they are held."""


def plus(first: Product, second: Product) -> Product:
    """Return the sum of two groups' matrices: thin if both are."""
    if isinstance(first, Thin) and isinstance(second, Thin):
        return first + second
    return Dense(first.dense() + second.dense())


class Svd(NamedTuple):
    """Leading singular triplets, stacked: u (L, m, r), singular (L, r) in falling order, vt (L, r, n)."""

    u: Array
    singular: Array
    vt: Array

    def padded(self, rank: int) -> Svd:
        """Return exactly `rank` triplets; the missing ones are zero."""
        missing = rank - self.singular.shape[1]
        if missing == 0:
            return self
        return Svd(
            np.pad(self.u, ((0, 0), (0, 0), (0, missing))),
            np.pad(self.singular, ((0, 0), (0, missing))),
            np.pad(self.vt, ((0, 0), (0, missing), (0, 0))),
        )


def groups(layout: Layout) -> list[Group]:
    """Return the modules of a layout by shape, rank and scaling, so that each group can be stacked."""

    def kind(module: LoraModule) -> tuple[float, ...]:
        return (module.out_features, module.in_features, module.rank, module.scaling)

    return [tuple(same) for _, same in groupby(sorted(layout.modules, key=kind), key=kind)]


def stack(arrays: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Array:
    """Return the named arrays as one float64 array with a first axis of modules."""
    return np.stack([arrays[name] for name in names]).astype(np.float64)


def factors(group: Group, state: Mapping[str, NDArray[Any]]) -> Thin:
    """Return B·A of a group's modules in a state, without the scaling."""
    return Thin(stack(state, [m.b_name for m in group]), stack(state, [m.a_name for m in group]))


def to_state(group: Group, b: Array, a: Array) -> Iterator[tuple[str, Array]]:
    """Yield a group's stacked factors under their names in a state."""
    for i, module in enumerate(group):
        yield module.b_name, b[i]
        yield module.a_name, a[i]


def transposed(stacked: Array) -> Array:
    """Return each matrix of a stack transposed."""
    return stacked.swapaxes(-1, -2)


def balanced(group: Group, svd: Svd, shared: Shared) -> tuple[Array, Array]:
    """Return B = U√(Σ/s) and A = √(Σ/s)Vᵀ of modules whose s·BA has these singular triplets.

    A singular direction that has vanished (σ ≤ 1e-6 of the largest) would leave zero in both factors and could
    never be trained again, so its row of A is drawn afresh from the round's public seed while its column of B is
    zero: s·BA does not change.
    """
    root = np.sqrt(svd.singular / group[0].scaling)
    b, a = svd.u * root[:, None, :], root[:, :, None] * svd.vt
    dead = svd.singular <= VANISHED * svd.singular[:, :1]
    for i in np.flatnonzero(dead.any(axis=1)):
        module, gone = group[i], dead[i]
        b[i][:, gone] = 0.0
        a[i][gone] = public.fresh_a(shared, f"vanished/{module.name}", int(gone.sum()), module.in_features)
    return b, a


def rows_orthonormal(group: Group, svd: Svd) -> tuple[Array, Array]:
    """Return B = UΣ/s and A = Vᵀ of modules whose s·BA has these singular triplets."""
    return svd.u * (svd.singular / group[0].scaling)[:, None, :], svd.vt


def dense_svd(matrix: Array, rank: int) -> Svd:
    """Return the leading singular triplets of one m × n matrix, with L = 1.

    They are eigenvectors of the smaller Gram matrix, many times faster than a full SVD. Squaring costs precision
    only in triplets below about 1e-8 of the largest singular value, far under `VANISHED`.
    """
    if matrix.shape[0] < matrix.shape[1]:
        flipped = dense_svd(matrix.T, rank)
        return Svd(transposed(flipped.vt), flipped.singular, transposed(flipped.u))
    import scipy.linalg  # takes a while to import, and only servers of a few methods need it

    size = matrix.shape[1]
    kept = min(rank, size)
    _, v = scipy.linalg.eigh(matrix.T @ matrix, subset_by_index=(size - kept, size - 1))
    projected = matrix @ v  # (m, kept): thin, so its own SVD is cheap and makes the triplets orthonormal
    u, singular, wt = np.linalg.svd(projected, full_matrices=False)
    return Svd(u[None], singular[None], (wt @ v.T)[None]).padded(rank)


def require_rank_fits(layout: Layout) -> None:
    """Raise AssumptionError if a module's rank is above what its matrix can have."""
    for module in layout.modules:
        most = min(module.out_features, module.in_features)
        if not 1 <= module.rank <= most:
            raise AssumptionError(
                f"{module.name} is {module.out_features} × {module.in_features}, its rank cannot be {module.rank}",
                f"set a LoRA rank of 1 to {most}",
            )
        if not (np.isfinite(module.scaling) and module.scaling > 0):
            raise AssumptionError(f"{module.name} has the scaling {module.scaling}", "alpha must be positive")
