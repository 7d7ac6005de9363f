"""What a method lets leave in every round of a run, as its report states it and each reservation records it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fedlora_priv.allocation import Allocation, Part
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.communication.choices import REVEALS
from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import CommunicationSection
from fedlora_priv.federation.allocating import allocation, holders, pruning
from fedlora_priv.federation.course import Leg, courses
from fedlora_priv.federation.session import min_contributors
from fedlora_priv.federation.trained import sends, trained_size
from fedlora_priv.methods import Contract, Layout, Method
from fedlora_priv.methods.layout import Shapes


def stated(
    experiment: Experiment, method: Method, layout: Layout, found: Mapping[int, Findings]
) -> dict[str, Any]:
    """Return the report's `method`, for some rounds of a run: each contract with the rounds that it governs.

    Args:
        experiment: what says which coordinates travel, and at which ranks.
        method: as the server has it, or a client.
        layout: the federation's.
        found: for every one of these rounds, what its allocation follows from beside the file.

    Raises:
        CommunicationError: two densities leave as many coordinates.
    """
    contracts = [
        {"rounds": alike, **_contract(phase, legs, experiment, layout, alike[0], found[alike[0]])}
        for phase, legs, numbers in courses(experiment, method, layout, found)
        for alike in _dealt_alike(experiment, layout, numbers, found)
    ]
    contracts.sort(key=lambda contract: contract["rounds"])
    return {"name": method.name, "title": method.title, "contracts": contracts}


def _dealt_alike(
    experiment: Experiment, layout: Layout, numbers: list[int], found: Mapping[int, Findings]
) -> list[list[int]]:
    """Return the rounds in lists of those in which everybody trains the same, for the same findings."""
    lists: dict[tuple[Findings, frozenset[tuple[str, Part]] | None], list[int]] = {}
    for number in numbers:
        dealt = allocation(experiment, layout, number, found[number])
        parts = None if dealt is None else frozenset(dealt.parts.items())
        lists.setdefault((found[number], parts), []).append(number)
    return list(lists.values())


def _contract(
    method: Method,
    legs: tuple[Leg, ...],
    experiment: Experiment,
    layout: Layout,
    round: int,
    findings: Findings,
) -> dict[str, Any]:
    """Return one contract as the report states it, without its rounds, of which one is given."""
    contract, communication = method.contract(layout), experiment.communication
    alone, dealt = communication.train == "support", allocation(experiment, layout, round, findings)
    owed = {"error_feedback": True} if communication.error_feedback else {}
    trained = {
        client_id: _sent(legs, client_id)
        if alone
        else trained_size(method, mine, contract.trains, dealt.trains(client_id) if dealt else None)
        for client_id, mine in _own(experiment, layout, dealt).items()
    }
    stated: dict[str, Any] = {}
    if dealt is not None:
        stated["allocation"] = _allocation(experiment, dealt, findings) | _pruning(experiment, layout)
    return stated | {
        "name": method.name,
        "title": method.title,
        "trains": sorted(contract.trains),
        "stays_home": sorted(contract.stays_home),
        "changes_base": contract.changes_base,
        "exact": contract.exact,
        "weights": contract.weights,
        "may_stop_early": contract.may_stop_early,
        **owed,
        "exchanges": [_exchange(contract, leg, layout) for leg in legs],
        "round_dimension": sum(leg.coordinates for leg in legs),
        "noised": trained,
        "noise": contract.noise,
        "leaks": "; ".join([contract.leaks, *_also_leaks(legs, experiment)]),
        "notes": [*contract.notes, *_of_training(communication)],
    }


def _own(experiment: Experiment, layout: Layout, dealt: Allocation | None) -> dict[str, Layout]:
    """Return by client a layout with the shapes of its own model in a round."""
    clients, ranks = experiment.client_ids, experiment.lora.ranks
    if dealt is not None:
        return {client_id: dealt.own(layout, client_id) or layout for client_id in clients}
    if not ranks:
        return dict.fromkeys(clients, layout)
    return {client_id: layout.cut(rank) for client_id, rank in zip(clients, ranks, strict=True)}


def _allocation(experiment: Experiment, dealt: Allocation, findings: Findings) -> dict[str, Any]:
    """Return who trains what as the report states it, by the numbers of `layers`, and how many a sum must be of."""
    found = findings.to_json()
    if findings.scores:
        found["scores_of"] = experiment.allocation.scores_of
        found["rescored_every"] = experiment.allocation.rescore_every
    return ({"findings": found} if found else {}) | {
        "strategy": dealt.strategy,
        "layers": [layer.name for layer in dealt.layers],
        "min_contributors": min_contributors(experiment),
        "clients": dealt.record()["parts"],
    }


def _pruning(experiment: Experiment, layout: Layout) -> dict[str, Any]:
    """Return by which rule ranks fall, and how many clients every component keeps; nothing where nobody prunes."""
    rule = pruning(experiment)
    if rule is None:
        return {}
    needed = holders(experiment, layout)
    return {"pruning": {"keep": rule.keep, "least": rule.least, "holders": needed}}


def _also_leaks(legs: tuple[Leg, ...], experiment: Experiment) -> Iterator[str]:
    """Yield what the server learns of how uploads travel, and of who trains what, beyond their sum."""
    if any(leg.carries == "votes" for leg in legs):
        yield REVEALS[experiment.communication.support]
    if any(leg.is_band for leg in legs):
        yield "of what only some clients send, the sum over those alone"
    if experiment.allocation.pruning is not None:
        yield "of each client whether its last components have faded in the round, one bit of its noised state"


def _of_training(communication: CommunicationSection) -> Iterator[str]:
    """Yield what is trained if not everything, and what ties a round to the ones before it besides the global state."""
    if communication.train == "support":
        yield "clients train, clip and noise only the coordinates that they send"
    if communication.error_feedback:
        yield "what a client sends is its update and what earlier rounds of the run left out of its updates"
    if communication.download_density < 1:
        yield (
            f"clients start from the {communication.download_density:.4g} of the coordinates that have moved most, "
            "the others being as they were before the first round"
        )


def _exchange(contract: Contract, leg: Leg, layout: Layout) -> dict[str, Any]:
    """Return one exchange as the report states it: what is not said travels whole, as values, from everybody."""
    travels = _by_kind(contract.exchange(leg.upload), layout)
    stated: dict[str, Any] = {
        "announced": _by_kind(contract.announced(leg.upload), layout),
        "travels": travels,
    }
    if leg.carries == "votes":
        stated["carries"] = leg.carries
    if leg.coordinates < leg.dimension:
        stated["coordinates"] = leg.coordinates
    if leg.senders is not None:
        stated["clients"] = list(leg.senders)
    return stated


def _sent(legs: tuple[Leg, ...], client_id: str) -> int:
    """Return how many coordinates a client sends in a round, which are then all that it clips and noises."""
    return sum(leg.coordinates for leg in legs if sends(leg, client_id))


def _by_kind(shapes: Shapes, layout: Layout) -> dict[str, int]:
    """Return how many coordinates there are of each kind of array, of all modules together."""
    counts: Counter[str] = Counter()
    for name, shape in sorted(shapes.items()):
        kind = "head" if name in layout.heads else name.rpartition(".")[2]
        counts[kind] += math.prod(shape)
    return dict(counts)
