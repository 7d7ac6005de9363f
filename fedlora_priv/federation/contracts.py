"""What a method lets leave in every round of a run, as its report states it and each reservation records it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from fedlora_priv.methods.base import Contract, Layout, Method, Shapes


def stated(method: Method, layout: Layout, rounds: int) -> dict[str, Any]:
    """Return the report's `method`: each contract once, with the rounds that it governs."""
    contracts: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        governing = method.at(number)
        entry = _contract(governing, governing.contract(layout), layout)
        same = next((known for known in contracts if known == {**entry, "rounds": known["rounds"]}), None)
        if same is None:
            contracts.append({**entry, "rounds": [number]})
        else:
            same["rounds"].append(number)
    return {"name": method.name, "title": method.title, "contracts": contracts}


def _contract(method: Method, contract: Contract, layout: Layout) -> dict[str, Any]:
    """Return one contract as the report states it, without its rounds."""
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
        "noise": contract.noise,
        "leaks": contract.leaks,
        "notes": list(contract.notes),
    }


def _by_kind(shapes: Shapes, layout: Layout) -> dict[str, int]:
    """Return how many coordinates there are of each kind of array, of all modules together."""
    counts: Counter[str] = Counter()
    for name, shape in sorted(shapes.items()):
        kind = "head" if name in layout.heads else name.rpartition(".")[2]
        counts[kind] += math.prod(shape)
    return dict(counts)
