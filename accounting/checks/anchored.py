"""Check 1: every chain whole and signed, every round listed."""

from __future__ import annotations

from .. import report as reports
from ..anchor import Anchor, ledger_head
from ..case import Case, Findings
from ..errors import LedgerError


def chain_whole_and_anchored(case: Case, found: Findings) -> None:
    """Every planned client's chain replays, ends where its signed anchor says, and no round is left out."""
    if case.broken:
        found.problems.append(case.broken)
        return
    anchors = [Anchor.from_json(value) for value in case.report["anchors"]]
    by_client = {anchor.client_id: anchor for anchor in anchors}
    if len(by_client) < len(anchors):
        found.problems.append("a client has more than one anchor")
    if ledger_head(anchors) != case.report["ledger_head"]:
        found.problems.append("ledger_head is not the hash of the anchored heads")
    for client_id in sorted({*case.plans, *case.chains, *by_client}):
        _check_anchor(case, found, client_id, by_client.get(client_id))
    if case.roster is None:
        found.doubts.append("the signatures fit keys that the report itself names; no roster pins them")
    else:
        for client_id in sorted(case.roster.keys() - case.plans.keys()):
            found.problems.append(f"{client_id} is in the roster, but the report leaves it out")
    if case.chains and reports.is_simulation(case.chains.values()) != case.report["simulation"]:
        found.problems.append("the report and the ledgers disagree on whether the data is public")
    _check_rounds_complete(case, found)


def _check_anchor(case: Case, found: Findings, client_id: str, anchor: Anchor | None) -> None:
    """One client's chain against its anchor."""
    chain = case.chains.get(client_id)
    if client_id not in case.plans:
        found.problems.append(f"{client_id} has records but no plan")
    if anchor is None:
        found.doubts.append(f"{client_id} has no signed anchor" + ("" if chain else " and no rows"))
        return
    try:
        anchor.verify(case.roster[client_id] if case.roster and client_id in case.roster else None)
    except LedgerError as error:
        found.problems.append(str(error))
    if case.roster is not None and client_id not in case.roster:
        found.problems.append(f"{client_id} is not in the roster")
    rows = chain.rows if chain else []
    if not rows and case.rests_on_plan(client_id):
        found.doubts.append(f"{client_id} is anchored but its rows are not here; its claim rests on its plan")
    elif len(rows) < anchor.rows:
        found.problems.append(
            f"{client_id}: row {len(rows)} is missing, the signed ledger has {anchor.rows} rows"
        )
    elif rows[anchor.rows - 1].digest != anchor.head or rows[0].dataset_id != anchor.dataset_id:
        found.problems.append(f"{client_id}: row {anchor.rows - 1} is not the one that was signed")
    elif len(rows) > anchor.rows:
        found.doubts.append(f"{client_id}: rows from {anchor.rows} on are not signed")
    else:
        found.facts.append(f"{client_id}: {anchor.rows} rows, signed")


def _check_rounds_complete(case: Case, found: Findings) -> None:
    """The report lists rounds 1, 2, ... without a gap, as many as planned and as any ledger released."""
    numbers = [entry["round"] for entry in case.report["rounds"]]
    if numbers != list(range(1, len(numbers) + 1)):
        found.problems.append(f"the report's rounds are not 1 to {len(numbers)} in order")
    planned = max(plan["rounds"] for plan in case.plans.values())
    if len(numbers) < planned:
        found.doubts.append(
            f"{len(numbers)} of {planned} planned rounds are listed: the run may have ended early, or the report "
            "and its anchors are older than the end; nothing signed says which"
        )
    for client_id in case.chains:
        charges = case.charges(client_id)
        for charge in charges:
            if charge.releases and charge.round not in numbers:
                found.problems.append(f"{client_id} released in round {charge.round}, which the report omits")
        last = max((charge.round for charge in charges), default=0)
        if last < len(numbers):
            found.doubts.append(
                f"{client_id}: the signed rows end at round {last} of {len(numbers)}: it may have taken no part "
                "after that, or its anchor is an older one"
            )
