"""What the study of unequal clients compares: who trains what, and what becomes of it.

Nine clients in three tiers, a third, two thirds and all of the model: 2, 4 and 6 of 6 layers, or ranks 2, 4 and 6 of 6,
which are as many coordinates. Every layer and component has at least three clients, as sums under masks need with one
colluder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedlora_priv.allocation import (
    Allocation,
    Allocator,
    CostModel,
    FedPilot,
    FedRA,
    FisherLayers,
    Geometric,
    Part,
    Profile,
    RandomGeometric,
    RankByCapability,
)
from fedlora_priv.allocation.shapes import Shape
from fedlora_priv.methods.base import Method
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.flexlora import FlexLoRA
from fedlora_priv.methods.hetlora import HetLoRA
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.partial import Partial

TIERS = (1 / 3, 2 / 3, 1.0)
"""What a client has room for, as a part of the model; client k is of tier k modulo 3."""

HOLDERS = 3
"""Clients that every layer and component has at the least."""

EVERY_SCORES = 3
"""Layers are scored on public rows before every third round; FIM-HLA draws all alike until then."""

Dealer = Callable[[int], Allocator]
"""Given the federation's rank, returns what deals out layers and ranks."""


@dataclass(frozen=True)
class Cell:
    """One row of the tables.

    Attributes:
        title: for people.
        dealer: makes its allocator; None where all clients train the same `part`.
        part: given layers and rank of the model, returns everybody's part.
        by_rank: whether tiers are ranks; otherwise they are layers.
        method: of a client's own layout, what is made of factors of unequal ranks; None for means over holders.
    """

    title: str
    dealer: Dealer | None = None
    part: Callable[[int, int], Part] | None = None
    by_rank: bool = False
    method: Callable[[Layout | None], Method] | None = None

    @property
    def is_scored(self) -> bool:
        """Whether layers are dealt by scores of public rows."""
        return self.dealer is not None and isinstance(self.dealer(1), FisherLayers | FedPilot)

    def profiles(self, clients: int, layers: int, rank: int) -> dict[str, Profile]:
        """Return what each client declares."""
        shares = [TIERS[k % len(TIERS)] for k in range(clients)]
        return {
            client_name(k): Profile(max_rank=max(1, round(share * rank)))
            if self.by_rank
            else Profile(max_layers=max(1, round(share * layers)))
            for k, share in enumerate(shares)
        }

    def server(self, allocation: Allocation, layout: Layout) -> Method:
        """Return the server's method."""
        return allocation.method(FedIT(), layout) if self.method is None else self.method(None)

    def client(self, allocation: Allocation, layout: Layout, client_id: str) -> Method:
        """Return a client's method.

        Where all train the same, what nobody trains stays as it is: every client holds every layer, unchanged.
        """
        if self.part is not None:
            return Partial(FedIT(), allocation.own(layout, client_id))
        if self.method is None:
            return allocation.method(FedIT(), layout, client_id)
        return self.method(allocation.own(layout, client_id))


def client_name(number: int) -> str:
    """Return the name of a client, which sorts as its number does."""
    return f"client-{number + 1:02}"


def same_for_all(part: Part, cost: CostModel, round: int, clients: int) -> Allocation:
    """Return the allocation in which all clients train the same."""
    parts = {client_name(k): part for k in range(clients)}
    return Allocation("same", round, cost.layers, cost.rank, parts)


def _fixed(shape: Shape) -> Cell:
    return Cell(f"GD-HLA, {shape}", lambda _: Geometric(shape, HOLDERS))


def _drawn(shape: Shape) -> Cell:
    return Cell(f"RGD-HLA, {shape}", lambda _: RandomGeometric(shape, HOLDERS))


def _ranked(title: str, method: Callable[[Layout | None], Method] | None) -> Cell:
    def dealer(rank: int) -> Allocator:
        return RankByCapability([max(1, round(share * rank)) for share in TIERS], HOLDERS)

    return Cell(title, dealer, by_rank=True, method=method)


def _top(layers: int, rank: int) -> Part:
    """Return what the smallest tier holds, at the top."""
    return Part(tuple(range(layers))[-max(1, round(TIERS[0] * layers)) :], rank)


def _narrow(layers: int, rank: int) -> Part:
    """Return what the smallest tier holds, in rank."""
    return Part(tuple(range(layers)), max(1, round(TIERS[0] * rank)))


CELLS: Mapping[str, Cell] = {
    "whole": Cell("all clients whole (upper bound)", part=lambda layers, rank: Part(tuple(range(layers)), rank)),
    "least-layers": Cell("all clients the top third (lower bound)", part=_top),
    "least-rank": Cell("all clients a third of the rank (lower bound)", part=_narrow),
    "gd-triangle": _fixed("triangle"),
    "gd-inverted": _fixed("inverted"),
    "gd-bottleneck": _fixed("bottleneck"),
    "gd-uniform": _fixed("uniform"),
    "rgd-bottleneck": _drawn("bottleneck"),
    "fim": Cell("FIM-HLA", lambda _: FisherLayers(EVERY_SCORES, EVERY_SCORES, HOLDERS)),
    "fedra": Cell("FedRA", lambda _: FedRA(HOLDERS)),
    "fed-pilot": Cell("Fed-piLot", lambda _: FedPilot(holders=HOLDERS)),
    "hetlora": _ranked("HetLoRA", HetLoRA),
    "fedilora": _ranked("FediLoRA", None),
    "flexlora": _ranked("FlexLoRA", FlexLoRA),
    "rgd-triangle": _drawn("triangle"),
    "rgd-inverted": _drawn("inverted"),
}  # fmt: skip
"""In the order of the tables."""

MORE = ("rgd-triangle", "rgd-inverted")
"""One seed, at the rates of RGD-HLA, bottleneck."""

MAIN = tuple(name for name in CELLS if name not in MORE)
"""A grid of rates each."""

SEEDED = (
    "whole", "least-layers", "gd-inverted", "gd-bottleneck", "rgd-bottleneck", "fim", "fedra", "hetlora", "flexlora",
)  # fmt: skip
"""Run first, and with three seeds: the bounds, and what the published order is about."""

BOUNDS = ("whole", "least-layers", "least-rank")
