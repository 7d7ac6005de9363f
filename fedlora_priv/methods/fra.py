"""FRA-LoRA: aggregate the full-rank product, then return to rank r by a truncated SVD.

Source: Trautmann, Hales, Volk, "Aggregating Low Rank Adapters in Federated Fine-tuning". The abstract is what
we had; the split of Σ between the factors (√Σ each) and the treatment of vanished directions are ours.

    client:  sₖ·(BₖAₖ − B₀A₀)            (m, n) per module, s = α/r
    server:  ΔW = s·B₀A₀ + (1/K)Σₖ s·(BₖAₖ − B₀A₀) = mean of s·BₖAₖ
             ΔW ≈ U_r Σ_r V_rᵀ,   B = U_r √(Σ_r/s),   A = √(Σ_r/s) V_rᵀ

This is the `exact` mode: the dense product is summed, which costs m·n coordinates per module instead of
r·(m + n). The SVD is post-processing of the sum, so it costs no privacy. A singular direction that has
vanished (σ ≤ 1e-6 of the largest) would leave zero in both factors and could never be trained again, so its
row of A is drawn afresh from the round's public seed while its column of B is zero: s·BA does not change.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.base import Contract, Layout, LoraModule, Shared, State, Sums
from fedlora_priv.methods.linear import LinearAverage

VANISHED = 1e-6
"""Singular values below this fraction of the largest count as vanished."""


class FRALoRA:
    """Mean of the products BₖAₖ, truncated to rank r."""

    name = "fra"
    title = "FRA-LoRA (full-rank aggregation, exact dense sum)"
    source = "Trautmann, Hales, Volk"

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: a dense (m, n) product per module and the head's changes travel."""
        uploads = {product_name(m): (m.out_features, m.in_features) for m in layout.modules}
        return Contract(
            uploads=dict(sorted((uploads | dict(layout.heads)).items())),
            trains=frozenset({"A", "B", "head"}),
            exact=True,
            noise="post-processing of each client's own DP-SGD; ξ_B·ξ_A enters before the SVD",
            notes=("uploads m·n coordinates per module", "rank r of the mean product is kept"),
        )

    def upload(self, layout: Layout, start: State, trained: State, shared: Shared) -> State:  # noqa: ARG002
        """Return the change of every module's product s·BA and of the head, float32."""
        changes = {name: trained[name] - start[name] for name in layout.heads}
        for module in layout.modules:
            changes[product_name(module)] = product(module, trained) - product(module, start)
        return changes

    def combine(self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared) -> State:
        """Return the best rank-r factors of the mean product, and the mean head."""
        heads = {name: sums[name] for name in layout.heads}
        combined = LinearAverage.moved(state, heads, n)
        for module in layout.modules:
            mean = product(module, state).astype(np.float64) + sums[product_name(module)] / n
            combined[module.b_name], combined[module.a_name] = factor(module, mean, shared)
        return combined


def product_name(module: LoraModule) -> str:
    """Name of a module's dense product in an upload."""
    return f"{module.name}.delta_w"


def product(module: LoraModule, state: State) -> NDArray[np.float32]:
    """Return s·BA of one module, shape (m, n)."""
    return np.float32(module.scaling) * (state[module.b_name] @ state[module.a_name])


def factor(
    module: LoraModule, delta_w: NDArray[np.float64], shared: Shared
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (B, A) of rank r with s·BA the best rank-r approximation of `delta_w`."""
    u, singular, vt = np.linalg.svd(delta_w, full_matrices=False)
    rank = min(module.rank, singular.size)
    root = np.zeros(module.rank)
    root[:rank] = np.sqrt(singular[:rank] / module.scaling)
    b = np.zeros((module.out_features, module.rank))
    a = np.zeros((module.rank, module.in_features))
    b[:, :rank], a[:rank] = u[:, :rank], vt[:rank]
    b, a = b * root, a * root[:, None]
    dead = root**2 * module.scaling <= VANISHED * singular[0]
    if dead.any():
        b[:, dead] = 0.0
        a[dead] = _fresh_rows(module, int(dead.sum()), shared)
    return b.astype(np.float32), a.astype(np.float32)


def _fresh_rows(module: LoraModule, count: int, shared: Shared) -> NDArray[np.float64]:
    """Draw rows of A uniform in ±1/√n (PEFT's Kaiming initialisation) from the round's public seed."""
    rng = np.random.default_rng([shared.seed, shared.round, zlib.crc32(module.name.encode())])
    limit = 1.0 / np.sqrt(module.in_features)
    return rng.uniform(-limit, limit, (count, module.in_features))
