"""Fed-piLot: to each client the layers of the largest summed score that its memory and its time have room for.

Source: "Fed-piLot: Optimizing LoRA Assignment for Efficient Federated Foundation Model Fine-Tuning", from its
abstract: a knapsack over layers under each client's memory limit, with a local-global information gain score as the
value. Its formula for the score and its spatial-temporal aggregation are not in the abstract. So the score here is
whatever is given, (1 − λ)·global + λ·local, and the sum is the mean over holders, as everywhere
(`fedlora_priv.methods.partial`).

Global scores come from public data or earlier sums. Local ones tell of a client's data: only charged ones are taken.

A knapsack over layers is not plain: a layer costs more the lower it is, because the backward pass goes through all
that is above it. So it is solved once for each lowest layer, exactly, and the best is taken.

Alike clients take alike layers, so many layers would have no client. Layers are then exchanged (`cover.covered`) as
far as memory and time allow.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedlora_priv.allocation.base import Allocator, Part, Public, Setting
from fedlora_priv.allocation.cost import CostModel, Profile
from fedlora_priv.allocation.cover import covered
from fedlora_priv.allocation.errors import AllocationError, NothingFits, PrivateScores
from fedlora_priv.allocation.scores import require_scores


class FedPilot(Allocator):
    """Layers by knapsack.

    Args:
        local_weight: λ, how much a client's own scores count where there are any.
        holders: see `Allocator`.

    Raises:
        AllocationError: λ is not between 0 and 1.
    """

    name = "fed-pilot"
    title = "Fed-piLot (layers by knapsack)"
    source = "Fed-piLot, abstract"

    def __init__(self, local_weight: float = 0.5, holders: int = 1) -> None:
        super().__init__(holders)
        if not 0.0 <= local_weight <= 1.0:
            raise AllocationError(f"local scores cannot have the weight {local_weight}", "choose 0 to 1")
        self.local_weight = local_weight

    def _parts(self, setting: Setting) -> dict[str, Part]:
        """Return the most valuable layers that fit, exchanged where a layer has too few clients."""
        cost, profiles, chosen = setting.cost, setting.profiles, {}
        for client_id, profile in profiles.items():
            chosen[client_id] = most_valuable(self._values(client_id, setting.public), profile, cost)
            if not chosen[client_id]:
                raise NothingFits(f"{client_id} has no room for any layer", "leave it out")

        def fits(client_id: str, layers: Sequence[int]) -> bool:
            return cost.fits(profiles[client_id], layers, cost.rank_of(profiles[client_id]))

        return setting.parts(covered(chosen, len(cost.layers), self.needed, fits, setting.draw))

    def _values(self, client_id: str, public: Public) -> list[float]:
        """Return what each layer is worth to a client."""
        count = len(public.cost.layers)
        everywhere = require_scores(public.scores, count, self.name).values
        if client_id not in public.local_scores:
            return list(everywhere)
        own = require_scores(public.local_scores[client_id], count, self.name)
        if not own.is_charged:
            raise PrivateScores(
                f"the scores of {client_id}'s own data are not charged", "charge them, or leave them out"
            )
        share = self.local_weight
        return [
            (1 - share) * there + share * here for there, here in zip(everywhere, own.values, strict=True)
        ]


def most_valuable(values: Sequence[float], profile: Profile, cost: CostModel) -> list[int]:
    """Return the layers of the largest summed value that fit, exactly; none if none fits."""
    best: tuple[float, list[int]] = (-1.0, [])
    for lowest in reversed(range(len(values))):
        room = cost.room(profile, len(values) - lowest) - cost.head
        found = _knapsack(values, lowest, room, cost.most_layers(profile), cost, cost.rank_of(profile))
        if found is not None and found[0] > best[0]:
            best = found
    return best[1]


def _knapsack(
    values: Sequence[float], lowest: int, room: float, most: int, cost: CostModel, rank: int
) -> tuple[float, list[int]] | None:
    """Return the best value and its layers among sets that have `lowest` and none below it; None if none fits."""
    size = cost.layers[lowest].coordinates(rank)
    if size > room or most < 1:
        return None
    # By how many layers and coordinates are taken: the best value so far. Layers of a model have few different sizes.
    table: dict[tuple[int, int], tuple[float, list[int]]] = {(1, size): (values[lowest], [lowest])}
    for layer in range(lowest + 1, len(values)):
        size = cost.layers[layer].coordinates(rank)
        for (count, taken), (value, chosen) in list(table.items()):
            key = (count + 1, taken + size)
            if key[0] > most or key[1] > room:
                continue
            if key not in table or table[key][0] < value + values[layer]:
                table[key] = (value + values[layer], [*chosen, layer])
    return max(table.values(), key=lambda found: found[0])
