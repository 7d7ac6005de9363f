"""HetLoRA's rank self-pruning: a client whose last components fade gives them up.

Source: Cho et al. 2024 (HetLoRA). With γ the share of components to keep, and the tail what is beyond the first
γ·rₖ of them,

    tail = Σ over modules of ‖B_tail‖_F·‖A_tail‖_F,    training adds λ·tail to the loss,
    rₖ ← ⌊γ·rₖ⌋ if the tail is smaller after training than it was before

The penalty is a function of the weights alone, so under DP-SGD its gradient is taken beside the noised one, neither
clipped nor noised, and costs no privacy. The decision is one bit a round that a client announces. Of a *noised*
state (mode `local`) it is post-processing; of a raw one it would be a release, so give `next_rank` nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.allocation.errors import AllocationError
from fedlora_priv.methods.layout import Layout, State


@dataclass(frozen=True)
class RankPruning:
    """How a client prunes its own rank.

    Args:
        keep: γ, the share of components that are kept, above 0 and below 1.
        penalty: λ, what the tail costs in training.
        least: the rank below which nothing is pruned.

    Raises:
        AllocationError: a value out of range.
    """

    keep: float = 0.9
    penalty: float = 1e-3
    least: int = 1

    def __post_init__(self) -> None:
        if not (0.0 < self.keep < 1.0 and self.penalty >= 0.0 and self.least >= 1):
            raise AllocationError(
                f"pruning cannot keep {self.keep} at penalty {self.penalty} down to rank {self.least}",
                "keep a share between 0 and 1, at a penalty of at least 0, down to a rank of at least 1",
            )

    def kept(self, rank: int) -> int:
        """Return the rank that is left of a rank."""
        return max(self.least, int(self.keep * rank))

    def tail(self, own: Layout, state: State) -> float:
        """Return the size of what is beyond the kept components, over all modules."""
        total = 0.0
        for module in own.modules:
            first = self.kept(module.rank)
            b, a = state[module.b_name][:, first:], state[module.a_name][first:]
            total += float(np.linalg.norm(b.astype(np.float64)) * np.linalg.norm(a.astype(np.float64)))
        return total

    def gradient(self, own: Layout, state: State) -> dict[str, NDArray[np.float64]]:
        """Return the gradient of λ·tail by every A and B, float64; zero where a factor's tail is."""
        result: dict[str, NDArray[np.float64]] = {}
        for module in own.modules:
            first = self.kept(module.rank)
            b, a = state[module.b_name].astype(np.float64), state[module.a_name].astype(np.float64)
            size_b, size_a = np.linalg.norm(b[:, first:]), np.linalg.norm(a[first:])
            for name, array, size, other in (
                (module.b_name, b, size_b, size_a),
                (module.a_name, a, size_a, size_b),
            ):
                result[name] = self.penalty * array * (other / size if size else 0.0)
            result[module.b_name][:, :first] = 0.0
            result[module.a_name][:first] = 0.0
        return result

    def next_rank(self, own: Layout, start: State, trained: State) -> int:
        """Return a client's rank for the next round, from its noised state before and after training."""
        rank = max(module.rank for module in own.modules)
        return self.kept(rank) if self.tail(own, trained) < self.tail(own, start) else rank
