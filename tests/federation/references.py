"""Every method's equations once more, in the plainest numpy: dense matrices, one module at a time, no sketch library.

`expected` takes what a round began with and what its survivors trained, and says what the global state must be:
arrays by name, and under ``map/<module>`` the whole of what a module adds to its first base weights. Only public
randomness is the package's own, for everybody has to draw the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from fedlora_priv.methods import public
from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.layout import Layout, LoraModule

Arrays = Mapping[str, np.ndarray]
BLOCK_ROUNDS = 2
"""Of RAC-LoRA."""
LARGEST_NORM = 2.0
"""Of HetLoRA."""


@dataclass(frozen=True)
class Seen:
    """A round: the global state before it, each survivor's own layout, start and result, and who draws what."""

    layout: Layout
    state: Arrays
    clients: Sequence[tuple[Layout, Arrays, Arrays]]
    shared: Shared

    def mean_change(self, name: str) -> np.ndarray:
        return np.mean(
            [after[name].astype(float) - before[name] for _, before, after in self.clients], axis=0
        )

    def moved(self, *roles: str) -> dict[str, np.ndarray]:
        """Arrays of these roles, moved by their mean change."""
        names = [name for name in self.state if self.layout.role(name) in roles]
        return {name: self.state[name] + self.mean_change(name) for name in names}

    def mean_product(self, m: LoraModule) -> np.ndarray:
        """ΔW, the mean of the clients' own sBA (sBRA where there is an R)."""
        return np.mean([product(layout_module(own, m), after) for own, _, after in self.clients], axis=0)


def layout_module(layout: Layout, m: LoraModule) -> LoraModule:
    return next(own for own in layout.modules if own.name == m.name)


def product(m: LoraModule, state: Arrays) -> np.ndarray:
    """sBA, or sBRA."""
    b, a = state[m.b_name].astype(float), state[m.a_name].astype(float)
    return m.scaling * (b @ state[m.r_name] @ a if m.r_name in state else b @ a)


def residual(m: LoraModule, state: Arrays) -> np.ndarray:
    """What the base weights have gained."""
    if f"{m.name}.base" in state:
        return state[f"{m.name}.base"].astype(float)
    if f"{m.name}.base_B" in state:
        return state[f"{m.name}.base_B"].astype(float) @ state[f"{m.name}.base_A"]
    return np.zeros((m.out_features, m.in_features))


def whole(m: LoraModule, state: Arrays) -> np.ndarray:
    return product(m, state) + residual(m, state)


def cut(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix)
    return u[:, :rank] @ np.diag(s[:rank]) @ vt[:rank]


def known_product(seen: Seen, m: LoraModule, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """(what the server knows of ΔW, s·(what it knows of C)), with C = mean(ΔBΔA) − mean(ΔB)·mean(ΔA)."""
    drifts = [common_drift(m, layout_module(own, m), before, after) for own, before, after in seen.clients]
    c = np.mean([db @ da for db, da in drifts], axis=0)
    c = c - np.mean([db for db, _ in drifts], axis=0) @ np.mean([da for _, da in drifts], axis=0)
    found = c if mode == "exact" else found_of(seen, m, c, mode)
    return seen.mean_product(m) - m.scaling * (c - found), m.scaling * found


def common_drift(
    m: LoraModule, own: LoraModule, before: Arrays, after: Arrays
) -> tuple[np.ndarray, np.ndarray]:
    """A client's changes of B and A, in the federation's scaling and padded to its rank."""
    b, a = np.zeros((m.out_features, m.rank)), np.zeros((m.rank, m.in_features))
    b[:, : own.rank] = (after[m.b_name].astype(float) - before[m.b_name]) * own.scaling / m.scaling
    a[: own.rank] = after[m.a_name].astype(float) - before[m.a_name]
    return b, a


def found_of(seen: Seen, m: LoraModule, c: np.ndarray, mode: str) -> np.ndarray:
    """What a sketch or two passes find of C."""

    def drawn(kind: str, shape: tuple[int, int]) -> np.ndarray:
        return public.gaussian(Shared(seen.shared.seed, seen.shared.round), f"{kind}/{m.name}", shape)

    out, inn = c.shape
    k = min(m.rank, out, inn)
    q = np.linalg.qr(c @ drawn("range", (inn, k)))[0]
    if mode == "two-pass":
        return q @ (q.T @ c)
    psi = drawn("corange", (min(2 * k + 1, out), out))
    qx = q @ np.linalg.lstsq(psi @ q, psi @ c, rcond=None)[0]
    held_out = drawn("held_out", (inn, min(48, max(4, -(-144 // len(seen.layout.modules))))))
    wanted, got = c @ held_out, qx @ held_out
    return float(np.clip((wanted * got).sum() / (got**2).sum(), 0, 1)) * qx


def expected(name: str, seen: Seen, mode: str = "sketch") -> dict[str, np.ndarray]:
    """What the global state must be after the round, under the method of that name in that round."""
    modules = seen.layout.modules
    if name == "fedit":
        return seen.moved("A", "B", "head")
    if name == "ffa":
        return seen.moved("B", "head")
    if name == "rolora":
        return seen.moved("B" if seen.shared.round % 2 else "A", "head")
    if name == "fedsa":
        return seen.moved("A")
    if name == "fed-sb":
        return seen.moved("R", "head")
    if name == "hetlora":
        means = [padded_mean(seen, m) for m in modules]
        return seen.moved("head") | {what: array for mean in means for what, array in mean.items()}
    if name in ("fedsvd", "fedask"):
        return seen.moved("head") | {f"map/{m.name}": seen.mean_product(m) for m in modules}
    if name in ("fra", "flexlora"):
        maps = {f"map/{m.name}": cut(known_product(seen, m, mode)[0], m.rank) for m in modules}
        return seen.moved("head") | maps
    before = {m.name: residual(m, seen.state) for m in modules}
    nothing = {m.b_name: np.zeros((m.out_features, m.rank)) for m in modules}
    if name == "flora":
        maps = {f"map/{m.name}": before[m.name] + known_product(seen, m, mode)[0] for m in modules}
        return seen.moved("head") | nothing | maps
    if name == "rac-lora" and seen.shared.round % BLOCK_ROUNDS:
        return seen.moved("B", "head")
    if name == "rac-lora":
        maps = {f"map/{m.name}": before[m.name] + seen.mean_product(m) for m in modules}
        return seen.moved("head") | nothing | maps
    if name == "fedex":
        means = seen.moved("A", "B", "head")
        maps = {
            f"map/{m.name}": before[m.name] + product(m, means) + known_product(seen, m, mode)[1]
            for m in modules
        }
        return means | maps
    assert name == "lora-fair", name
    return seen.moved("A", "head") | {m.b_name: refined(seen, m) for m in modules}


def padded_mean(seen: Seen, m: LoraModule) -> dict[str, np.ndarray]:
    """HetLoRA's A and B: of factors padded with zeros, weighed by the norms of their products."""
    a, b, total = np.zeros((m.rank, m.in_features)), np.zeros((m.out_features, m.rank)), 0.0
    for layout, _, after in seen.clients:
        own = layout_module(layout, m)
        weight = min(max(np.linalg.norm(product(own, after)) / LARGEST_NORM, 1 / 16), 1.0)
        a[: own.rank] += weight * after[m.a_name]
        b[:, : own.rank] += weight * after[m.b_name] * own.scaling / m.scaling
        total += weight
    return {m.a_name: a / total, m.b_name: b / total}


def refined(seen: Seen, m: LoraModule, weight: float = 0.01) -> np.ndarray:
    """LoRA-FAIR's B: the one that minimises 1 − cos(ΔW, BĀ) + λ‖B − B̄‖, the norm of ΔW taken within Ā's rows."""
    means, delta_w = seen.moved("A", "B"), seen.mean_product(m)
    b_bar, a_bar = means[m.b_name], means[m.a_name]
    norm = np.linalg.norm(delta_w @ np.linalg.pinv(a_bar) @ a_bar)

    def objective(flat: np.ndarray) -> float:
        b = flat.reshape(b_bar.shape)
        cosine = np.sum(delta_w * (b @ a_bar)) / norm / np.linalg.norm(b @ a_bar)
        return float(1 - cosine + weight * np.linalg.norm(b - b_bar))

    start = b_bar.ravel()
    nudged = start + 1e-3 * np.random.default_rng(0).normal(size=start.size)
    best = minimize(objective, nudged, options={"gtol": 1e-9})
    return best.x.reshape(b_bar.shape) if best.fun < objective(start) else b_bar
