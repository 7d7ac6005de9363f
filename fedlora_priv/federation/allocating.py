"""Who trains what in a round of an experiment: one pure function, which server, clients, plan and report all ask.

    allocation(experiment, layout, round)  ->  Allocation, or None where everybody trains everything
    allocations(experiment, layout)        ->  those of all rounds

It follows from the experiment file and the model's layout alone, so nobody takes it from anybody: a client makes it
itself, trains its own part of it, and holds the server's coordinate groups to it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from fedlora_priv.allocation import (
    Allocation,
    AllocationError,
    Allocator,
    Cost,
    CostModel,
    FedPilot,
    FedRA,
    FisherLayers,
    Geometric,
    LayerScores,
    Profile,
    Public,
    RandomGeometric,
    RankByCapability,
    holders_needed,
)
from fedlora_priv.config import Experiment
from fedlora_priv.config_allocation import AllocationSection
from fedlora_priv.federation.session import min_contributors
from fedlora_priv.methods.base import Method
from fedlora_priv.methods.layout import Layout, LoraModule
from fedlora_priv.methods.partial import Partial, PartialByRound

MOST_ALLOCATIONS = 1000
"""As in accounting/report.schema.json: a report states so many contracts, and each allocation makes one."""


def allocation(experiment: Experiment, layout: Layout, round: int) -> Allocation | None:
    """Return who trains what in a round (1-based), the same for everybody; None where everybody trains everything.

    Raises:
        AllocationError: there is none of that kind for these clients and this model.
    """
    asked = experiment.allocation
    if not asked.in_parts:
        return None
    # Only these have a say and, unlike a whole experiment or layout, an allocation can be remembered by them.
    return _allocated(
        asked,
        experiment.client_ids,
        experiment.experiment.seed,
        experiment.federation.local_steps,
        min_contributors(experiment),
        layout.modules,
        tuple(sorted(layout.heads.items())),
        round,
    )


def allocations(experiment: Experiment, layout: Layout) -> list[Allocation]:
    """Return the allocations of all rounds, in order; none where everybody trains everything.

    Raises:
        AllocationError: a round has none.
    """
    rounds = range(1, experiment.federation.rounds + 1)
    return [dealt for number in rounds if (dealt := allocation(experiment, layout, number)) is not None]


@lru_cache(maxsize=4096)
def _allocated(
    asked: AllocationSection,
    clients: tuple[str, ...],
    seed: int,
    steps: int,
    least: int,
    modules: tuple[LoraModule, ...],
    heads: tuple[tuple[str, tuple[int, ...]], ...],
    round: int,
) -> Allocation:
    """Return a round's allocation."""
    costs = _cost_model(asked, steps, Layout(modules, dict(heads)))
    scores = LayerScores.of_public_data(asked.scores, asked.scores_of) if asked.scores_of else None
    allocator = _allocator(asked, _holders(asked, least, len(costs.layers)))
    return allocator.allocate(round, _profiles(asked, clients), Public(seed, costs, scores))


def require_allocations(experiment: Experiment, layout: Layout) -> None:
    """Return if every round of an experiment has an allocation, and a report can state them all.

    Raises:
        AllocationError: a round has none: says what is missing.
    """
    different = {frozenset(dealt.parts.items()) for dealt in allocations(experiment, layout)}
    if len(different) > MOST_ALLOCATIONS:
        raise AllocationError(
            f"{len(different)} rounds have allocations of their own, and a report states at most {MOST_ALLOCATIONS}",
            "lower federation.rounds, or choose a strategy that deals once, such as 'geometric'",
        )


def client_method(
    experiment: Experiment, method: Method, layout: Layout, own: Layout, client_id: str
) -> Method:
    """Return a method as a client has it whose own model has the layout `own`: over what that client trains."""
    if not isinstance(method, Partial):
        return method.at_client(own)

    def trains(round: int) -> frozenset[str]:
        dealt = allocation(experiment, layout, round)
        return frozenset() if dealt is None else dealt.trains(client_id)

    return PartialByRound(method.method, None if own == layout else own, trains)


def holders(experiment: Experiment, layout: Layout) -> int:
    """Return how many clients every layer and component is given to at the least, in view of losses.

    Raises:
        AllocationError: no number of clients is enough.
    """
    layers = len(cost_model(experiment, layout).layers)
    return _holders(experiment.allocation, min_contributors(experiment), layers)


def cost_model(experiment: Experiment, layout: Layout) -> CostModel:
    """Return what a part of the model costs a client, as the experiment declares it.

    Raises:
        AllocationError: the layout has no layers.
    """
    return _cost_model(experiment.allocation, experiment.federation.local_steps, layout)


def profiles(experiment: Experiment) -> dict[str, Profile]:
    """Return what each client has, as the experiment declares it, in roster order."""
    return _profiles(experiment.allocation, experiment.client_ids)


def spare(experiment: Experiment, layout: Layout) -> int | None:
    """Return how many more clients than it needs the part has that the fewest train, over all rounds.

    None where everybody trains everything, and without masks.
    """
    if not experiment.allocation.in_parts or experiment.secure_aggregation.mode == "insecure":
        return None
    thinnest = min(place for dealt in allocations(experiment, layout) for place in dealt.places())
    return thinnest.clients - min_contributors(experiment)


def _holders(asked: AllocationSection, least: int, layers: int) -> int:
    """Return how many clients a layer is given to, of which `least` must be left."""
    if asked.holders is not None:
        return asked.holders
    groups = len(asked.ranks) if asked.strategy == "ranks" else layers  # what is lost together counts once
    return holders_needed(least, asked.dropout_rate, asked.failure_probability, groups)


def _allocator(asked: AllocationSection, needed: int) -> Allocator:
    """Return the strategy that an experiment asks for."""
    if asked.strategy in ("geometric", "random-geometric") and asked.shape is not None:
        return (Geometric if asked.strategy == "geometric" else RandomGeometric)(asked.shape, needed)
    match asked.strategy:
        case "fedra":
            return FedRA(needed)
        case "fisher":
            return FisherLayers(first=1, holders=needed)
        case "fedpilot":
            return FedPilot(holders=needed)
        case "ranks":
            return RankByCapability(asked.ranks, needed)
    raise AllocationError(f"{asked.strategy!r} deals out nothing", "choose another allocation.strategy")


def _profiles(asked: AllocationSection, clients: tuple[str, ...]) -> dict[str, Profile]:
    """Return what each client has; one that is in no tier has no limits."""
    found = dict.fromkeys(clients, Profile())
    for tier in asked.tiers:
        profile = Profile(
            memory_bytes=tier.memory_bytes or math.inf,
            speed=tier.speed,
            bytes_per_s=tier.bytes_per_s or math.inf,
            max_layers=tier.max_layers,
            max_rank=tier.max_rank,
        )
        found |= dict.fromkeys(tier.clients, profile)
    return found


def _cost_model(asked: AllocationSection, steps: int, layout: Layout) -> CostModel:
    """Return the declared costs of a layout's parts, in rounds of so many steps."""
    costs = asked.cost
    memory = Cost(costs.memory_fixed_bytes, costs.memory_layer_bytes, costs.memory_coordinate_bytes)
    step = Cost(costs.step_fixed_s, costs.step_layer_s, costs.step_coordinate_s)
    plain = CostModel.declared(layout, memory=memory, step=step)
    return replace(plain, steps=steps, round_s=costs.round_s or math.inf)
