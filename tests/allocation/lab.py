"""Layouts of many layers, and clients in tiers, for tests of allocations."""

from __future__ import annotations

from fedlora_priv.allocation import Cost, CostModel, Profile, Public
from fedlora_priv.methods.layout import Layout, LoraModule

SEED = 11


def layout(layers: int, rank: int = 4, *, uneven: bool = False) -> Layout:
    """Query and value of each layer, m = 6 and n = 5; with `uneven`, every third layer has a wide module too."""
    modules = []
    for i in range(layers):
        modules += [LoraModule(f"encoder.layer.{i}.{what}", 6, 5, rank, 2.0) for what in ("query", "value")]
        if uneven and i % 3 == 0:
            modules.append(LoraModule(f"encoder.layer.{i}.up", 9, 5, rank, 2.0))
    return Layout(tuple(sorted(modules, key=lambda m: m.name)), {"classifier.weight": (2, 3)})


def tiers(*budgets: int) -> dict[str, Profile]:
    """Clients client-1, client-2, ... that declare how many layers they train."""
    return {f"client-{i + 1}": Profile(max_layers=budget) for i, budget in enumerate(budgets)}


def public(layers: int, rank: int = 4, **known: object) -> Public:
    return Public(SEED, CostModel.declared(layout(layers, rank)), **known)


def bytes_of(fixed: float, crossed: float, trained: float) -> Cost:
    return Cost(fixed, crossed, trained)
