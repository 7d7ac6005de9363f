"""Who trains what in a round: the one small interface of allocation, beside `fedlora_priv.methods`.

    allocate(round, profiles, public)  ->  Allocation: layers and a rank for each client

An allocation is public. It is a function of public things alone (profiles that clients declared, a seed, scores of
public data), so everybody can make it again and compare; it goes into the report's contracts and into the session's
coordinate groups (`fedlora_priv.allocation.groups`).

What a client trains under it becomes a sum through `fedlora_priv.methods.partial`: means over those who hold a
layer or a component. The head is everybody's.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.allocation.cost import CostModel, Profile
from fedlora_priv.allocation.errors import AllocationError, ThinLayer
from fedlora_priv.allocation.layers import Layer
from fedlora_priv.allocation.scores import LayerScores
from fedlora_priv.methods import public as public_randomness
from fedlora_priv.methods.base import Method, Shared
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.partial import Partial

Draw = Callable[[str, int], NDArray[np.float64]]
"""Given a label and a count, returns values uniform in (0, 1], the same for everybody who has the round's seed."""


@dataclass(frozen=True)
class Part:
    """What one client trains: layers by number, 0 the lowest, each at its first `rank` components."""

    layers: tuple[int, ...]
    rank: int


@dataclass(frozen=True, order=True)
class Place:
    """A component of a layer, and how many clients train it; the one of fewer comes first."""

    clients: int
    layer: int
    component: int


@dataclass(frozen=True)
class Public:
    """What everybody knows besides the profiles.

    Args:
        seed: the experiment's public seed.
        cost: what a part costs a client.
        scores: of the layers, for allocators that want them.
        local_scores: of the layers at each client, charged to its ledger.
        ranks: that clients have announced for themselves; see `pruning`.
    """

    seed: int
    cost: CostModel
    scores: LayerScores | None = None
    local_scores: Mapping[str, LayerScores] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Allocation:
    """Who trains what in one round; public.

    Args:
        strategy: the allocator's name.
        layers: of the model.
        rank: the federation's.
        parts: by client_id.
    """

    strategy: str
    round: int
    layers: tuple[Layer, ...]
    rank: int
    parts: Mapping[str, Part]

    def holders(self, layer: int, component: int = 0) -> tuple[str, ...]:
        """Return the clients that train a component of a layer, in sorted order."""
        return tuple(
            sorted(c for c, part in self.parts.items() if layer in part.layers and part.rank > component)
        )

    def counts(self) -> list[int]:
        """Return how many clients train each layer."""
        return [len(self.holders(layer)) for layer in range(len(self.layers))]

    def places(self) -> Iterator[Place]:
        """Yield of each layer the first component and the last: of those between no fewer clients train any."""
        for number, layer in enumerate(self.layers):
            for component in (0, max(module.rank for module in layer.modules) - 1):
                yield Place(len(self.holders(number, component)), number, component)

    def trains(self, client_id: str) -> frozenset[str]:
        """Return the names of the modules that a client trains."""
        held = self.parts[client_id].layers
        return frozenset(module.name for layer in held for module in self.layers[layer].modules)

    def own(self, layout: Layout, client_id: str) -> Layout | None:
        """Return a client's own layout, in the federation's scaling; None if it has all components."""
        rank = self.parts[client_id].rank
        return None if rank >= self.rank else layout.cut(rank)

    def method(self, method: Method, layout: Layout, client_id: str | None = None) -> Partial:
        """Return a method over these parts: a client's half, or the server's for None."""
        if client_id is None:
            return Partial(method)
        return Partial(method, self.own(layout, client_id), self.trains(client_id))

    def record(self) -> dict[str, Any]:
        """Return the allocation for logs and reports, as JSON has it."""
        parts = {c: {"layers": list(p.layers), "rank": p.rank} for c, p in sorted(self.parts.items())}
        return {"strategy": self.strategy, "round": self.round, "counts": self.counts(), "parts": parts}

    def digest(self) -> bytes:
        """Return 32 bytes that differ whenever somebody trains anything else."""
        names = [layer.name for layer in self.layers]
        text = json.dumps([names, self.rank, self.record()], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"fedlora-priv/v1/allocation/" + text.encode()).digest()


@dataclass(frozen=True)
class Setting:
    """What one round's parts are made of: its participants, in sorted order, and what everybody knows."""

    round: int
    profiles: Mapping[str, Profile]
    public: Public
    draw: Draw

    @property
    def cost(self) -> CostModel:
        """What a part costs a client."""
        return self.public.cost

    def budgets(self) -> dict[str, int]:
        """Return how many layers each client can train.

        Raises:
            NothingFits: one cannot train any.
        """
        return {
            client_id: self.cost.budget(profile, client_id) for client_id, profile in self.profiles.items()
        }

    def parts(self, chosen: Mapping[str, Sequence[int]]) -> dict[str, Part]:
        """Return parts of the chosen layers at each client's rank."""
        return {
            client_id: Part(tuple(sorted(layers)), self.cost.rank_of(self.profiles[client_id]))
            for client_id, layers in chosen.items()
        }


class Allocator(ABC):
    """A strategy by which layers and ranks are dealt out.

    Args:
        holders: clients that every layer, and every component of it, must have at the least. Plan for losses:
            see `fedlora_priv.allocation.cover.holders_needed`.

    Raises:
        AllocationError: fewer than one holder.
    """

    name: str
    title: str
    source: str

    def __init__(self, holders: int = 1) -> None:
        if holders < 1:
            raise AllocationError(f"a layer cannot be trained by {holders} clients", "ask for at least 1")
        self.needed = holders

    @final
    def allocate(self, round: int, profiles: Mapping[str, Profile], public: Public) -> Allocation:
        """Return who trains what in a round (1-based), the same for everybody who asks.

        Args:
            profiles: of the round's participants, by client_id.

        Raises:
            NothingFits: a client cannot train even the least part.
            ThinLayer: a layer or a component would have fewer clients than it needs.
            AllocationError: the strategy does not work with these clients or this model.
        """
        if round < 1:
            raise AllocationError(f"there is no round {round}", "rounds count from 1")
        if not profiles:
            raise AllocationError("there is no client to train anything", "wait for some")
        ordered = dict(sorted(profiles.items()))
        shared = Shared(public.seed, round)

        def draw(label: str, count: int) -> NDArray[np.float64]:
            return public_randomness.unit(shared, f"allocation/{self.name}/{label}", count)

        parts = self._parts(Setting(round, ordered, public, draw))
        allocation = Allocation(self.name, round, public.cost.layers, public.cost.rank, parts)
        self._require_held(allocation)
        return allocation

    @abstractmethod
    def _parts(self, setting: Setting) -> dict[str, Part]:
        """Return each client's part."""

    def _require_held(self, allocation: Allocation) -> None:
        """Raise ThinLayer unless every component of every layer has enough clients."""
        for place in allocation.places():
            if place.clients < self.needed:
                layer = allocation.layers[place.layer].name
                what = f"component {place.component + 1} of {layer}" if place.component else layer
                raise ThinLayer(
                    f"{what} would be trained by {place.clients} of at least {self.needed} clients",
                    "give more clients room for it, choose another shape or strategy, or smaller ranks",
                )
