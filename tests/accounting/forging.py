"""What a forger of reports and ledgers works with: everything edited, hashed, signed and claimed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accounting import contract as contracts
from accounting import masking, outputs
from accounting import report as reports
from accounting.chain import replay
from accounting.entries import Commit, Entry, Reserve
from accounting.planning import Plan
from accounting.private_audit import StepRecord

SAID_ALONE = ("accuracy", "its number of rows")
"""What the honest federation has declared besides all that follows."""


def entries(federation: Any, client_id: str) -> list[Entry]:
    return [row.entry for row in federation.rows[client_id]]


def rewrite(
    federation: Any, client_id: str, edit: Callable[[Entry], Entry | None], *, sign: bool = True
) -> None:
    """A client's rows changed one by one (None: dropped) and hashed again; signed again by the client, or not."""
    changed = [new for entry in entries(federation, client_id) if (new := edit(entry)) is not None]
    federation.rebuild(client_id, changed)
    if sign:
        federation.anchor_again(client_id)


def claim_again(federation: Any) -> None:
    """The claims that now follow from plans and rows."""
    plans = {client_id: Plan.from_json(value) for client_id, value in federation.report["plan"].items()}
    chains = {chain.client_id: chain for chain in replay(federation.lines).values()}
    federation.report["claims"] = reports.make_claims(plans, chains, federation.report["run"])


def declare_again(federation: Any) -> None:
    """The outputs that now follow from the rest of the report, before those that nothing else says."""
    told = [output for output in federation.report["outputs"] if output["what"] in SAID_ALONE]
    federation.report["outputs"] = [*outputs.following(federation.report), *told]


def edit_events(federation: Any, client_id: str, edit: Callable[[Any], Any], *, sign: bool = True) -> None:
    """All of a client's events replaced."""
    rewrite(
        federation,
        client_id,
        lambda entry: (
            replace(entry, event=edit(entry.event)) if isinstance(entry, Reserve | Commit) else entry
        ),
        sign=sign,
    )


def edit_private(federation: Any, client_id: str, edit: Callable[[StepRecord], StepRecord]) -> None:
    """A client's private records changed, and its ledger made to commit to them: its trainer really did this."""
    records = [
        replace(record, steps=tuple(edit(step) for step in record.steps))
        for record in federation.private[client_id]
    ]
    federation.private[client_id] = tuple(records)
    commit_to(federation, client_id)


def commit_to(federation: Any, client_id: str) -> None:
    """The ledger commits to the private file as it is now."""
    digests = {record.reservation: record.digest for record in federation.private[client_id]}
    rewrite(
        federation,
        client_id,
        lambda entry: (
            replace(entry, private_audit=digests[entry.reservation]) if isinstance(entry, Commit) else entry
        ),
    )


def record_other(federation: Any, client_id: str, name: str, value: str) -> None:
    """A client's reservations record something else under a name."""
    rewrite(
        federation,
        client_id,
        lambda entry: (
            replace(entry, versions={**entry.versions, name: value}) if isinstance(entry, Reserve) else entry
        ),
    )


def record_method(federation: Any) -> None:
    """Every reservation records what the report says of the method in its round as it is now."""

    def recorded(entry: Any) -> Any:
        if not isinstance(entry, Reserve):
            return entry
        digest = contracts.round_digest(federation.report["method"], entry.round)
        return replace(entry, versions={**entry.versions, contracts.RECORDED_AS: digest})

    for client_id in federation.rows:
        rewrite(federation, client_id, recorded)


def record_masks(federation: Any) -> None:
    """Every client's reservations record what the report says of masks as it is now."""
    for client_id in federation.rows:
        digest = masking.masks_digest(federation.report["secure_aggregation"])
        record_other(federation, client_id, masking.RECORDED_AS, digest)
