"""What check 4 asks of rounds whose clients train parts of the model: every sum is of enough of those who train it.

A contract with an `allocation` says who trains which layers at which rank. On a layer, or a component of one, the
round's sum is over those of its survivors that train it: beside the colluders at least two, or nobody is hidden by
another. That the allocation is the one that clients knew of, and that the findings stated beside it are those that they
were told, follows from the round's digest in their ledgers. How the one follows from the other an audit does not know,
only what cannot be: scores of other layers, or a client that trains components it has given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .. import contract as contracts
from ..case import Case, Findings


def check_parts(case: Case, found: Findings, entry: Mapping[str, Any]) -> None:
    """Every layer and component that a round has summed under masks has enough survivors that train it."""
    if case.secure_aggregation.get("mode") != "secure" or not any(
        one["transcript"] for one in entry["exchanges"]
    ):
        return
    for contract in contracts.by_round(case.report["method"]).get(entry["round"], []):
        dealt = contract.get("allocation")
        if dealt is None:
            continue
        where, least = f"round {entry['round']}", dealt["min_contributors"]
        if least < case.colluders + 2:
            found.problems.append(
                f"{where}: its contract lets {least} clients be summed on a layer: beside {case.colluders} colluders "
                "nobody would be hidden by another"
            )
        if nowhere := [
            c for c, part in sorted(dealt["clients"].items()) if _last(part) >= len(dealt["layers"])
        ]:
            found.problems.append(
                f"{where}: its contract has {nowhere[0]} train layer {_last(dealt['clients'][nowhere[0]])}, and names "
                f"{len(dealt['layers'])} layers: of the others nobody could count the clients"
            )
        if strangers := sorted(set(entry["survivors"]) - set(dealt["clients"])):
            found.problems.append(
                f"{where}: {strangers[0]} is in the sum, and its contract gives it nothing to train"
            )
        for problem in _beside_findings(dealt):
            found.problems.append(f"{where}: {problem}")
        for what, holders in _held(dealt):
            present = len(holders.intersection(entry["survivors"]))
            if present < least:
                found.problems.append(
                    f"{where}: the sum on {what} is of {present} clients, its contract needs {least}"
                )


def check_scored(case: Case, found: Findings) -> None:
    """Scores change after as many rounds as the contracts say, and in no other round."""
    known: dict[tuple[int, int], tuple[int, Sequence[float]]] = {}
    periods = set()
    for number, governing in sorted(contracts.by_round(case.report["method"]).items()):
        for contract in governing:
            stated = contract.get("allocation", {}).get("findings", {})
            if "scores" not in stated:
                continue
            every, scores = stated["rescored_every"], stated["scores"]
            periods.add(every)
            first, before = known.setdefault((every, (number - 1) // every), (number, scores))
            if scores != before:
                found.problems.append(
                    f"round {number} has other scores than round {first}, and layers are scored again after every "
                    f"{every} rounds"
                )
    if len(periods) > 1:
        found.problems.append(
            f"contracts say that layers are scored again after every {sorted(periods)} rounds"
        )


def _beside_findings(dealt: Mapping[str, Any]) -> Iterator[str]:
    """What an allocation cannot be that follows from the findings stated beside it."""
    stated, layers = dealt.get("findings", {}), len(dealt["layers"])
    if len(scores := stated.get("scores", ())) not in (0, layers):
        yield f"its contract states {len(scores)} scores, and names {layers} layers"
    for client_id, rank in sorted(stated.get("ranks", {}).items()):
        part = dealt["clients"].get(client_id)
        if part is None or part["rank"] > rank:
            trains = "nothing" if part is None else f"rank {part['rank']}"
            yield f"its contract has {client_id} train {trains}, and states that it has pruned itself to {rank}"


def _held(dealt: Mapping[str, Any]) -> Iterator[tuple[str, frozenset[str]]]:
    """Each layer with the clients that train it; where ranks differ, also its components from each rank's last on."""
    clients: Mapping[str, Mapping[str, Any]] = dealt["clients"]
    ranks: Sequence[int] = sorted({part["rank"] for part in clients.values()})
    for number, layer in enumerate(dealt["layers"]):
        for rank in ranks:
            held = (c for c, part in clients.items() if number in part["layers"] and part["rank"] >= rank)
            yield (layer if rank == ranks[0] else f"component {rank} of {layer}"), frozenset(held)


def _last(part: Mapping[str, Any]) -> int:
    """The highest layer, by its number, that a client trains."""
    return int(max(part["layers"]))
