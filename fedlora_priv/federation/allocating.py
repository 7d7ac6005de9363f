"""Who trains what in a round of an experiment: one pure function, which server, clients, plan and report all ask.

    allocation(experiment, layout, round, findings)  ->  Allocation, or None where everybody trains everything

It follows from the experiment file, the model's layout and what was found on the way (`allocation.findings`), which
everybody is told. Nobody takes the allocation itself from anybody: a client makes it, trains its own part of it, and
holds the server's coordinate groups to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    RankPruning,
    holders_needed,
)
from fedlora_priv.allocation.findings import PREFIX, Findings
from fedlora_priv.allocation.layers import layers_of
from fedlora_priv.config import Experiment
from fedlora_priv.config_allocation import AllocationSection
from fedlora_priv.errors import FederationError
from fedlora_priv.federation.session import min_contributors
from fedlora_priv.methods.base import Method
from fedlora_priv.methods.layout import Layout, LoraModule
from fedlora_priv.methods.partial import Partial

MOST_ALLOCATIONS = 1000
"""As in accounting/report.schema.json: a report states so many contracts, and each allocation makes one."""


def allocation(experiment: Experiment, layout: Layout, round: int, findings: Findings) -> Allocation | None:
    """Return who trains what in a round (1-based), the same for everybody; None where everybody trains everything.

    Args:
        findings: up to that round.

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
        findings,
    )


def allocations(experiment: Experiment, layout: Layout, found: Mapping[int, Findings]) -> list[Allocation]:
    """Return the allocations of some rounds, in order; none where everybody trains everything.

    Args:
        found: by round.

    Raises:
        AllocationError: a round has none.
    """
    dealt = (allocation(experiment, layout, number, found[number]) for number in sorted(found))
    return [one for one in dealt if one is not None]


def all_rounds(experiment: Experiment, findings: Findings) -> dict[int, Findings]:
    """Return the findings of every round of a run in which nothing more is found."""
    return dict.fromkeys(range(1, experiment.federation.rounds + 1), findings)


def presumed(experiment: Experiment, layout: Layout) -> Findings:
    """Return findings to deal by before anything is found: where layers are yet to be scored, all are worth the same.

    Which budgets fit, how many layers each client trains and whether all can be given out does not depend on scores
    where layers are drawn; where layers of the largest score are taken, it may.
    """
    if not experiment.allocation.scored(1):
        return Findings()
    return Findings((1.0,) * len(layers_of(layout)))


def told(experiment: Experiment, layout: Layout, round: int, blobs: Mapping[str, bytes]) -> Findings:
    """Return what a server says was found before a round, by which the round has an allocation.

    Args:
        blobs: of its message, those of findings.

    Raises:
        FederationError: they are garbled; nothing of that kind is looked for; nobody could train by them.
    """
    kinds = {name.removeprefix(PREFIX) for name in blobs}
    if odd := kinds - experiment.allocation.finds:
        raise FederationError(
            f"the server has found {min(odd)!r}, from which nothing follows in this experiment"
        )
    if ("scores" in kinds) != experiment.allocation.scored(round):
        has = "has measured scores" if "scores" in kinds else "has not measured scores"
        raise FederationError(f"the server {has} before round {round}, and here it is the other way about")
    if not blobs:
        return Findings()
    findings = Findings.from_blobs(blobs, len(layers_of(layout)))
    try:
        plain = allocation(experiment, layout, round, replace(findings, ranks=()))
        # Before anything is dealt by them, and so remembered: there may be any number of clients in a message.
        for client_id, rank in findings.ranks:
            most = 0 if plain is None or client_id not in plain.parts else plain.parts[client_id].rank
            if rank > most:
                raise FederationError(
                    f"the server has found rank {rank} at {client_id}, whose rank is {most}"
                )
        allocation(experiment, layout, round, findings)
    except AllocationError as error:
        raise FederationError(f"what the server has found makes no allocation: {error}") from None
    return findings


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
    findings: Findings,
) -> Allocation:
    """Return a round's allocation."""
    costs = _cost_model(asked, steps, Layout(modules, dict(heads)))
    values = findings.scores or asked.scores
    scores = LayerScores.of_public_data(values, asked.scores_of) if values and asked.scores_of else None
    allocator = _allocator(asked, _holders(asked, least, len(costs.layers)))
    public = Public(seed, costs, scores, ranks=dict(findings.ranks))
    return allocator.allocate(round, _profiles(asked, clients), public)


def require_allocations(experiment: Experiment, layout: Layout) -> None:
    """Return if every round of an experiment has an allocation, and a report can state them all.

    Rounds that follow from what is yet to be found are dealt by what is presumed, and each counted as one of its own.

    Raises:
        AllocationError: a round has none: says what is missing.
    """
    dealt = allocations(experiment, layout, all_rounds(experiment, presumed(experiment, layout)))
    known, rule = experiment.allocation.known_rounds(len(dealt)), pruning(experiment)
    different = len({frozenset(one.parts.items()) for one in dealt[:known]}) + len(dealt) - known
    if rule is not None:  # it is another one each time that a client gives components up
        times = sum(len(rule.ranks(part.rank)) - 1 for part in dealt[0].parts.values())
        different = min(different, 1 + times)
    if different > MOST_ALLOCATIONS:
        raise AllocationError(
            f"{different} rounds have allocations of their own, and a report states at most {MOST_ALLOCATIONS}",
            "lower federation.rounds, or choose a strategy that deals once, such as 'geometric'",
        )


def pruning(experiment: Experiment) -> RankPruning | None:
    """Return how clients prune their ranks; None where they do not."""
    return _rule(experiment.allocation)


def client_method(method: Method, layout: Layout, own: Layout) -> Method:
    """Return a method as a client has it whose own model has the layout `own`."""
    return method if own == layout else method.at_client(own)


def method_in_round(
    experiment: Experiment, method: Method, layout: Layout, client_id: str, round: int, findings: Findings
) -> Method:
    """Return the method of a round as a client has it: over what that client trains in it, at its rank.

    Args:
        method: as `client_method` gives it.
    """
    phase, dealt = method.at(round), allocation(experiment, layout, round, findings)
    if dealt is None:
        return phase
    if isinstance(phase, Partial):
        return Partial(phase.method, phase.own, dealt.trains(client_id))
    return phase.at_client(of_rank(experiment, layout, dealt.parts[client_id].rank))


def of_rank(experiment: Experiment, layout: Layout, rank: int) -> Layout:
    """Return the layout of a model of a rank: what `modeling.with_rank` makes of the federation's."""
    scaling = experiment.lora.scaling(rank)
    modules = (replace(module, scaling=scaling) for module in layout.cut(rank).modules)
    return replace(layout, modules=tuple(modules))


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


def spare(
    experiment: Experiment, layout: Layout, found: Mapping[int, Findings], *, foreseen: bool = False
) -> int | None:
    """Return how many more clients than it needs the part has that the fewest train, over the rounds of `found`.

    None where everybody trains everything, and without masks.

    Args:
        foreseen: these are no findings of rounds that were: what is found in a run may be other than these.
    """
    if not experiment.allocation.in_parts or experiment.secure_aggregation.mode == "insecure":
        return None
    dealt = allocations(experiment, layout, found)
    fewest = min(place.clients for one in dealt for place in one.places())
    if foreseen and experiment.allocation.known_rounds(len(found)) < len(found):
        fewest = min(fewest, holders(experiment, layout))  # no allocation has fewer
    return fewest - min_contributors(experiment)


def _holders(asked: AllocationSection, least: int, layers: int) -> int:
    """Return how many clients a layer is given to, of which `least` must be left."""
    if asked.holders is not None:
        return asked.holders
    rule, ranks = _rule(asked), set(asked.ranks)
    if rule is not None:
        ranks.update(*map(rule.ranks, asked.ranks))
    groups = len(ranks) if asked.strategy == "ranks" else layers  # what is lost together counts once
    return holders_needed(least, asked.dropout_rate, asked.failure_probability, groups)


def _rule(asked: AllocationSection) -> RankPruning | None:
    """Return how clients prune their ranks; None where they do not."""
    rule = asked.pruning
    return None if rule is None else RankPruning(rule.keep, rule.penalty, rule.least)


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
