"""Ranks by capability: every client trains all layers, at the largest of the offered ranks that it has room for.

This is how HetLoRA, FediLoRA and FlexLoRA have their clients: their difference is in what is made of the sums
(`fedlora_priv.methods.hetlora`, `.fedilora`, `.flexlora`). A client that has pruned its rank by itself (`pruning`)
announces the new one and is never given more.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedlora_priv.allocation.base import Allocator, Part, Setting
from fedlora_priv.allocation.errors import AllocationError


class RankByCapability(Allocator):
    """All layers, each client at its own rank.

    Args:
        ranks: on offer; each at least 1.
        holders: see `Allocator`.

    Raises:
        AllocationError: no rank is offered, or one of zero.
    """

    name = "ranks"
    title = "Ranks by capability"
    source = "HetLoRA, FlexLoRA, FediLoRA"

    def __init__(self, ranks: Sequence[int], holders: int = 1) -> None:
        super().__init__(holders)
        if not ranks or min(ranks) < 1:
            raise AllocationError(f"a rank cannot be {min(ranks, default=0)}", "offer ranks of at least 1")
        self.ranks = tuple(sorted(set(ranks)))

    def _parts(self, setting: Setting) -> dict[str, Part]:
        """Return all layers at each client's rank."""
        cost, announced = setting.cost, setting.public.ranks
        if self.ranks[-1] > cost.rank:
            raise AllocationError(
                f"rank {self.ranks[-1]} is offered, and the federation's is {cost.rank}",
                "offer no more than that",
            )
        every, parts = tuple(range(len(cost.layers))), {}
        for client_id, profile in setting.profiles.items():
            rank = cost.largest_rank(profile, self.ranks, client_id)
            rank = min(rank, announced.get(client_id, rank))
            if rank < 1:
                raise AllocationError(
                    f"{client_id} has announced a rank of {rank}", "prune no further than 1"
                )
            parts[client_id] = Part(every, rank)
        return parts
