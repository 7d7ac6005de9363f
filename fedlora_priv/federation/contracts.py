"""What a method lets leave in every round of a run, as its report states it and each reservation records it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fedlora_priv.allocation import Allocation, Part
from fedlora_priv.communication.choices import REVEALS
from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import CommunicationSection
from fedlora_priv.federation.allocating import allocation
from fedlora_priv.federation.course import Leg, courses
from fedlora_priv.federation.session import min_contributors
from fedlora_priv.federation.trained import sends, trained_size
from fedlora_priv.methods import Contract, Layout, Method
from fedlora_priv.methods.layout import Shapes


def stated(
    experiment: Experiment, method: Method, layout: Layout, own: Mapping[str, Layout]
) -> dict[str, Any]:
    """Return the report's `method`: each contract with the rounds that it governs.

    Args:
        experiment: what says which coordinates travel, and in how many rounds.
        method: as the server has it.
        layout: the federation's.
        own: by client, the layout of its own model.

    Raises:
        CommunicationError: two densities leave as many coordinates.
    """
    contracts = [
        {"rounds": alike, **_contract(phase, legs, experiment, layout, own, alike[0])}
        for phase, legs, numbers in courses(experiment, method, layout)
        for alike in _dealt_alike(experiment, layout, numbers)
    ]
    contracts.sort(key=lambda contract: contract["rounds"])
    return {"name": method.name, "title": method.title, "contracts": contracts}


def _dealt_alike(experiment: Experiment, layout: Layout, numbers: list[int]) -> list[list[int]]:
    """Return the rounds in lists of those in which everybody trains the same."""
    lists: dict[frozenset[tuple[str, Part]] | None, list[int]] = {}
    for number in numbers:
        dealt = allocation(experiment, layout, number)
        lists.setdefault(None if dealt is None else frozenset(dealt.parts.items()), []).append(number)
    return list(lists.values())


def _contract(
    method: Method,
    legs: tuple[Leg, ...],
    experiment: Experiment,
    layout: Layout,
    own: Mapping[str, Layout],
    round: int,
) -> dict[str, Any]:
    """Return one contract as the report states it, without its rounds, of which one is given."""
    contract, communication = method.contract(layout), experiment.communication
    alone, dealt = communication.train == "support", allocation(experiment, layout, round)
    owed = {"error_feedback": True} if communication.error_feedback else {}
    trained = {
        client_id: _sent(legs, client_id)
        if alone
        else trained_size(method, mine, contract.trains, dealt.trains(client_id) if dealt else None)
        for client_id, mine in own.items()
    }
    stated: dict[str, Any] = {} if dealt is None else {"allocation": _allocation(experiment, dealt)}
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
        "leaks": "; ".join([contract.leaks, *_also_leaks(legs, communication)]),
        "notes": [*contract.notes, *_of_training(communication)],
    }


def _allocation(experiment: Experiment, dealt: Allocation) -> dict[str, Any]:
    """Return who trains what as the report states it, by the numbers of `layers`, and how many a sum must be of."""
    return {
        "strategy": dealt.strategy,
        "layers": [layer.name for layer in dealt.layers],
        "min_contributors": min_contributors(experiment),
        "clients": dealt.record()["parts"],
    }


def _also_leaks(legs: tuple[Leg, ...], communication: CommunicationSection) -> Iterator[str]:
    """Yield what the server learns of how uploads travel, beyond their sum."""
    if any(leg.carries == "votes" for leg in legs):
        yield REVEALS[communication.support]
    if any(leg.is_band for leg in legs):
        yield "of what only some clients send, the sum over those alone"


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
