"""What check 4 asks of runs whose clients prune their own ranks: ranks fall by what was announced, and by nothing else.

A contract with `pruning` says by which rule, and each round who has announced that its tail has faded. A round's ranks
then follow from those of the round before: whoever has announced keeps a share γ of its components, taken in the order
of names, as long as its last one is left with as many clients as the contract has every component given to. A round's
contract is in the ledgers of all who trained in it, so nobody was told other ranks; that a client has announced at all
is its own check, for it refuses a rank that it has not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .. import contract as contracts
from ..case import Case, Findings


def check_pruned(case: Case, found: Findings) -> None:
    """Ranks are those of the round before, less what was announced; whoever announced had reserved the round."""
    governing = contracts.by_round(case.report["method"])
    before: Mapping[str, Any] | None = None
    faded: Collection[str] = ()
    for entry in sorted(case.report["rounds"], key=lambda entry: int(entry["round"])):
        where = f"round {entry['round']}"
        stated = (contract.get("allocation") for contract in governing.get(entry["round"], []))
        dealt = next((one for one in stated if one is not None), None)
        if dealt is None or "pruning" not in dealt:
            if "faded" in entry or (dealt or {}).get("findings", {}).get("ranks"):
                found.problems.append(f"{where}: ranks were pruned, and its contract lets nobody prune")
            continue
        for problem in (*_ranks(dealt, before, faded), *_announced(case, entry, dealt)):
            found.problems.append(f"{where}: {problem}")
        before, faded = dealt, entry.get("faded", ())


def _ranks(
    dealt: Mapping[str, Any], before: Mapping[str, Any] | None, faded: Collection[str]
) -> Iterator[str]:
    """What is wrong with the ranks of a round."""
    if before is None:
        if dealt.get("findings", {}).get("ranks"):
            yield "it begins with ranks that were pruned, before anybody has announced anything"
        return
    if dealt["pruning"] != before["pruning"]:
        yield "its contract prunes by another rule than the round before"
    expected, actual = _after(before, faded), _by_client(dealt)
    for client_id in sorted(expected.keys() | actual.keys()):
        if expected.get(client_id) != actual.get(client_id):
            yield (
                f"{client_id} trains rank {actual.get(client_id)}, and by what was announced it has "
                f"{expected.get(client_id)}"
            )


def _announced(case: Case, entry: Mapping[str, Any], dealt: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with who is said to have announced in a round."""
    if "faded" not in entry:
        yield "it does not say who has announced that its tail has faded"
    unheard = {loss["client_id"] for loss in entry["lost"] if loss["phase"] == "train"}
    for client_id in entry.get("faded", ()):
        if client_id not in dealt["clients"] or client_id in unheard:
            yield f"{client_id} has announced its rank, and was not there"
        rounds = {charge.round for charge in case.charges(client_id)}
        if client_id in case.chains and entry["round"] not in rounds:
            yield f"{client_id} has announced a bit of an update that it has not reserved"


def _after(dealt: Mapping[str, Any], faded: Collection[str]) -> dict[str, int]:
    """Everybody's next rank."""
    rule, ranks = dealt["pruning"], _by_client(dealt)
    for client_id in sorted(faded):
        rank = ranks.get(client_id, 0)
        if sum(other >= rank for other in ranks.values()) > rule["holders"]:
            ranks[client_id] = min(rank, max(rule["least"], int(rule["keep"] * rank)))
    return ranks


def _by_client(dealt: Mapping[str, Any]) -> dict[str, int]:
    """Every client's rank."""
    return {client_id: part["rank"] for client_id, part in dealt["clients"].items()}
