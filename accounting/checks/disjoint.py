"""Check 10: whether a row may count at more than one client."""

from __future__ import annotations

from collections.abc import Mapping

from ..case import Case, Findings, needs_rows
from ..rows import RECORDED_AS, Partition


@needs_rows
def data_disjoint(case: Case, found: Findings) -> None:
    """The clients' parts are of one split and, where the lists of public rows are here, share no row.

    Of private data nothing can be shown without comparing rows, and even a digest of rows would tell whoever
    can guess them.
    """
    _check_one_split(case, found)
    digests = _recorded_digests(case, found)
    partition = case.evidence.partition
    if partition is None:
        found.doubts.append("no list of rows is here: that no row is held by two clients is declared only")
    elif not case.report["simulation"]:
        found.problems.append("the rows of private data are listed, which tells who holds what")
    else:
        _check_lists(case, found, partition, digests)
    found.facts.append("the unit is a row: whoever has k rows is protected at k times the distance")


def _check_one_split(case: Case, found: Findings) -> None:
    """Parts of different splits of one data set overlap, unless somebody saw to it; then no maximum holds."""
    splits: dict[str, dict[str, str]] = {}
    for client_id, chain in case.chains.items():
        split = splits.setdefault(chain.dataset_id, {})
        first = split.setdefault(chain.opening.partition_id, client_id)
        if len(split) > 1:
            other = next(name for name in split.values() if name != first)
            found.problems.append(
                f"{other} and {client_id} hold parts of different splits of {chain.dataset_id!r}, which overlap"
            )
    if len(splits) > 1:
        found.doubts.append(f"{len(splits)} data sets by name; whether they share rows is declared only")
    for dataset_id, split in splits.items():
        found.facts.append(f"all of {dataset_id!r} by the split {next(iter(split))!r}")


def _recorded_digests(case: Case, found: Findings) -> Mapping[str, str]:
    """What each client's reservations record of its rows: one digest a client, none of two clients' alike."""
    digests: dict[str, str] = {}
    for client_id in case.chains:
        values = {
            recorded[RECORDED_AS] for _, recorded in case.recorded(client_id) if RECORDED_AS in recorded
        }
        if len(values) > 1:
            found.problems.append(f"{client_id} trained on other rows in some rounds than in others")
        if values:
            digests[client_id] = min(values)
    owners: dict[str, str] = {}
    for client_id, digest in digests.items():
        first = owners.setdefault(digest, client_id)
        if first != client_id:
            found.problems.append(
                f"{first} and {client_id} record the same rows, which are claimed to be disjoint"
            )
    return digests


def _check_lists(case: Case, found: Findings, partition: Partition, digests: Mapping[str, str]) -> None:
    """The lists are those that the signed rows record, of the declared lengths, and no row is in two."""
    owners: dict[int, str] = {}
    for client_id, plan in case.plans.items():
        rows = partition.rows.get(client_id)
        if rows is None:
            found.doubts.append(f"{client_id}: no list of its rows")
            continue
        if client_id not in digests:
            found.doubts.append(f"{client_id}: no ledger row records which rows it holds")
        elif partition.digest(client_id) != digests[client_id]:
            found.problems.append(f"{client_id}: the list of its rows is not the one that its ledger records")
        if len(set(rows)) < len(rows):
            found.problems.append(f"{client_id}: a row is in its list twice")
        if len(rows) != plan["declared_examples"]:
            found.doubts.append(
                f"{client_id}: {len(rows)} rows are listed, {plan['declared_examples']} declared"
            )
        for row in rows:
            first = owners.setdefault(row, client_id)
            if first != client_id:
                found.problems.append(f"row {row} is held by {first} and {client_id}, claimed to be disjoint")
                break
    found.facts.insert(0, f"{len(owners)} public rows listed, none of them twice")
