"""What a method lets leave in every round of a run, as its report states it and each reservation records it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fedlora_priv.methods import Layout, Method, Role, phases
from fedlora_priv.methods.base import Shapes


def stated(method: Method, layout: Layout, rounds: int, own: Mapping[str, Layout]) -> dict[str, Any]:
    """Return the report's `method`: each contract with the rounds that it governs.

    Args:
        method: as the server has it.
        layout: the federation's.
        rounds: how many the run has.
        own: by client, the layout of its own model.
    """
    contracts = [
        {"rounds": numbers, **_contract(phase, layout, own)} for phase, numbers in phases(method, rounds)
    ]
    return {"name": method.name, "title": method.title, "contracts": contracts}


def _contract(method: Method, layout: Layout, own: Mapping[str, Layout]) -> dict[str, Any]:
    """Return one contract as the report states it, without its rounds."""
    contract = method.contract(layout)
    return {
        "name": method.name,
        "title": method.title,
        "trains": sorted(contract.trains),
        "stays_home": sorted(contract.stays_home),
        "changes_base": contract.changes_base,
        "exact": contract.exact,
        "weights": contract.weights,
        "may_stop_early": contract.may_stop_early,
        "exchanges": [
            {
                "announced": _by_kind(contract.announced(number), layout),
                "travels": _by_kind(contract.exchange(number), layout),
            }
            for number in range(contract.exchanges)
        ],
        "round_dimension": contract.round_dimension,
        "noised": {client_id: _trained(method, mine, contract.trains) for client_id, mine in own.items()},
        "noise": contract.noise,
        "leaks": contract.leaks,
        "notes": list(contract.notes),
    }


def _trained(method: Method, own: Layout, roles: frozenset[Role]) -> int:
    """Return how many coordinates a client trains, clips and noises, whether they travel or not."""
    shapes = method.at_client(own).shapes(own)
    return sum(math.prod(shape) for name, shape in shapes.items() if own.role(name) in roles)


def _by_kind(shapes: Shapes, layout: Layout) -> dict[str, int]:
    """Return how many coordinates there are of each kind of array, of all modules together."""
    counts: Counter[str] = Counter()
    for name, shape in sorted(shapes.items()):
        kind = "head" if name in layout.heads else name.rpartition(".")[2]
        counts[kind] += math.prod(shape)
    return dict(counts)
