"""HetLoRA's rank self-pruning: a client whose last components fade gives them up.

Source: Cho et al. 2024 (HetLoRA). With γ the share of components to keep, and the tail what is beyond the first
γ·rₖ of them,

    tail = Σ over modules of ‖B_tail‖_F·‖A_tail‖_F,    training adds λ·tail to the loss,
    rₖ ← ⌊γ·rₖ⌋ if the tail is smaller after training than it was before

The penalty is a function of the weights alone, so under DP-SGD its gradient is taken beside the noised one, neither
clipped nor noised, and costs no privacy. The decision is one bit a round that a client announces. Of a *noised*
state (mode `local`) it is post-processing; of a raw one it would be a release, so give `fades` nothing else.

*Held up.* A component is never trained by fewer clients than it needs. So a client gives its tail up only while enough
others have all of it, taken in the order of names. A client that is held up goes on at its rank, and may announce
again. This is ours: in the paper the largest rank falls when all clients' do, and a client uploads what it has kept in
the very round. Here it gives up from the next round on, for who has a part in which sum is agreed before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
        """Return the rank that is left of a rank; never more than that.

        >>> [RankPruning(keep=0.7, least=3).kept(rank) for rank in (8, 4, 2)]
        [5, 3, 2]
        """
        return min(rank, max(self.least, int(self.keep * rank)))

    def ranks(self, rank: int) -> tuple[int, ...]:
        """Return the ranks that a client of that rank can come to have, its own first, falling.

        >>> RankPruning(keep=0.7).ranks(8)
        (8, 5, 3, 2, 1)
        """
        found = [rank]
        while (left := self.kept(found[-1])) < found[-1]:
            found.append(left)
        return tuple(found)

    def after(self, ranks: Mapping[str, int], faded: Collection[str], needed: int) -> dict[str, int]:
        """Return everybody's next rank where the tails of some have faded.

        Args:
            ranks: of all clients now.
            faded: whose tail has.
            needed: clients that every component must have.

        >>> RankPruning(keep=0.5).after({"a": 4, "b": 4, "c": 4, "d": 2}, {"a", "b", "d"}, needed=2)
        {'a': 2, 'b': 4, 'c': 4, 'd': 1}
        """
        left = dict(ranks)
        for client_id, mine in sorted(ranks.items()):
            # Of its last component; those before it have no fewer.
            holders = sum(rank >= mine for rank in left.values())
            if client_id in faded and holders > needed:
                left[client_id] = self.kept(mine)
        return left

    def tail(self, own: Layout, state: State) -> float:
        """Return the size of what is beyond the kept components, over all modules."""
        total = 0.0
        for module in own.modules:
            first = self.kept(module.rank)
            b, a = state[module.b_name][:, first:], state[module.a_name][first:]
            total += float(np.linalg.norm(b.astype(np.float64)) * np.linalg.norm(a.astype(np.float64)))
        return total

    def reach(self, own: Layout, state: State, rate: float, steps: int) -> float:
        """Return how far the penalty alone can move the tail of a factor in one of so many steps of SGD, at the most.

        A step takes rate·λ times the norm of the other factor's tail, whatever the size of its own: also where that is
        next to nothing.

        Args:
            rate: the learning rate.
        """
        pull, largest = rate * self.penalty, 0.0
        for module in own.modules:
            first = self.kept(module.rank)
            for tail in (state[module.b_name][:, first:], state[module.a_name][first:]):
                largest = max(largest, float(np.linalg.norm(tail.astype(np.float64))))
        # Norms grow where the penalty takes more than there is, step by step.
        with np.errstate(over="ignore"):
            return float(pull * largest * np.float64(max(1.0, pull)) ** (steps - 1))

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

    def fades(self, own: Layout, start: State, trained: State) -> bool:
        """Return what a client announces: whether its tail is smaller after training than before, both noised."""
        return self.tail(own, trained) < self.tail(own, start)
