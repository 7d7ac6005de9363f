"""Derives a report again from its ledger, and says PASS, FAIL or UNVERIFIABLE to each of its claims.

Only the report, the exported ledger and what evidence the auditor brings are read; no torch, no run folder, no
trust in whoever wrote them. PASS means consistent with signed records, not that the training happened as recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import canonical
from . import report as reports
from . import rows as row_lists
from .case import Case, Evidence, Verdict
from .chain import Chain, replay
from .checks import CHECKS
from .entries import Row
from .errors import LedgerError, ReportError
from .private_audit import by_client


def audit(
    report: Mapping[str, Any],
    rows: Iterable[Row | str],
    roster: Mapping[str, bytes] | None = None,
    evidence: Evidence | None = None,
) -> list[Verdict]:
    """The sixteen verdicts on a report, one a check, in order of their numbers.

    `rows` are the lines of the exported ledger(s). `roster` maps client ids to the Ed25519 keys (32 bytes) that
    the auditor has pinned from elsewhere; without it the signatures prove nothing, and check 1 says so.
    `evidence` is whatever else the auditor has; where it holds private audit files, the verdicts are private.

    Raises:
        ReportError: the report does not even follow the schema.
    """
    try:
        canonical.dumps(report)  # infinities and NaN pass a schema's bounds, and every comparison
    except (ValueError, TypeError, RecursionError) as error:
        raise ReportError(f"the report is not JSON: {error}") from error
    reports.validate(report)
    chains, broken = _replay(rows)
    case = Case(report, chains, broken, roster, evidence or Evidence())
    return [check(case) for check in CHECKS]


def audit_files(
    report: str | Path,
    ledger: str | Path,
    roster: Mapping[str, bytes] | None = None,
    private: Sequence[str | Path] = (),
) -> list[Verdict]:
    """`audit` of a report.json and a ledger.jsonl, with what lies beside the report, and private audit files.

    Raises:
        ReportError: the report or partition.json cannot be read or breaks the schema.
        EmpiricalError: the record of an attack beside the report is damaged.
        PrivateAuditError: a private audit file is damaged.
    """
    document = reports.load(report)
    evidence = evidence_beside(report, private)
    # Bytes that are not text must come out as a broken row, not as a crash.
    text = Path(ledger).read_bytes().decode("utf-8", errors="replace")
    return audit(document, text.removesuffix("\n").split("\n") if text else [], roster, evidence)


def evidence_beside(report: str | Path, private: Sequence[str | Path] = ()) -> Evidence:
    """The evidence in the folder of a report, and in the private audit files that are named.

    Raises:
        ReportError, EmpiricalError, PrivateAuditError: a file is damaged.
    """
    from . import empirical  # imports scipy

    partition = Path(report).with_name(row_lists.PARTITION_FILE)
    attack = Path(report).with_name(empirical.EMPIRICAL_FILE)
    return Evidence(
        private=by_client(private),
        empirical=empirical.load(attack) if attack.exists() else None,
        partition=row_lists.load(partition) if partition.exists() else None,
    )


def _replay(rows: Iterable[Row | str]) -> tuple[dict[str, Chain], str | None]:
    """The chains by client, and what is wrong with the rows, if anything is."""
    try:
        chains = replay(rows)
    except LedgerError as error:
        return {}, str(error)
    by_client = {chain.client_id: chain for chain in chains.values()}
    if len(by_client) < len(chains):
        return {}, "a client has chains over several data sets: export the one that the report is about"
    return by_client, None
