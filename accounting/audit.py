"""Derives a report again from its ledger, and says PASS, FAIL or UNVERIFIABLE to each of its claims.

Only the report and the exported ledger are read; no torch, no run folder, no trust in whoever wrote them. PASS
means consistent with signed records, not that the training happened as recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import canonical
from . import report as reports
from .case import Case, Verdict
from .chain import Chain, Row, replay
from .checks import CHECKS
from .errors import LedgerError, ReportError

UNCHECKED = {
    6: (
        "observed batch sizes plausible",
        "batch sizes are private: only the client's own auditor has them, in its private audit file",
        "have the client's auditor compare that file with Binomial(n, q)",
    ),
    7: (
        "clip norm and noise really applied",
        "only the client's private audit file could show it",
        "have the client's auditor check that file",
    ),
    8: (
        "effective noise from survivors minus colluders",
        "mode local has no noise shares: every client adds its noise in full",
        "nothing to do in mode local",
    ),
    9: (
        "sensitivity from padded dimension and scale",
        "mode local adds noise before quantisation, so quantisation is post-processing",
        "nothing to do in mode local",
    ),
    10: (
        "clients' data disjoint, contributions bounded",
        "disjointness is declared; no ledger can show it, and shared rows would compose",
        "ask the clients for evidence, or take a client's own claim for a row that others may hold too",
    ),
    12: (
        "tuning and warm starts charged",
        "runs that never touched these ledgers leave no trace here; lifetime epsilon covers those that did",
        "ask how hyperparameters and the starting weights were chosen",
    ),
    14: (
        "adaptive-clip counts charged",
        "no adaptive clipping is recorded: clip norms are constants of the plan",
        "nothing to do with constant clip norms",
    ),
    15: (
        "empirical lower bound below the claim",
        "no attack was run for this report; a low bound would be no proof in any case",
        "run an attack on public canaries",
    ),
}


def audit(
    report: Mapping[str, Any], rows: Iterable[Row | str], roster: Mapping[str, bytes] | None = None
) -> list[Verdict]:
    """The verdicts on a report, one a check, in order of their numbers.

    `rows` are the lines of the exported ledger(s). `roster` maps client ids to the Ed25519 keys (32 bytes) that
    the auditor has pinned from elsewhere; without it the signatures prove nothing, and check 1 says so.

    Raises:
        ReportError: the report does not even follow the schema.
    """
    try:
        canonical.dumps(report)  # infinities and NaN pass a schema's bounds, and every comparison
    except (ValueError, TypeError) as error:
        raise ReportError(f"the report is not JSON: {error}") from error
    reports.validate(report)
    chains, broken = _replay(rows)
    case = Case(report=report, chains=chains, broken=broken, roster=roster)
    verdicts = [check(case) for check in CHECKS]
    verdicts += [
        Verdict(number, name, "UNVERIFIABLE", why, remedy)
        for number, (name, why, remedy) in UNCHECKED.items()
    ]
    return sorted(verdicts, key=lambda verdict: verdict.check)


def audit_files(
    report: str | Path, ledger: str | Path, roster: Mapping[str, bytes] | None = None
) -> list[Verdict]:
    """`audit` of a report.json and a ledger.jsonl.

    Raises:
        ReportError: the report cannot be read or breaks the schema.
    """
    document = reports.load(report)
    # Bytes that are not text must come out as a broken row, not as a crash.
    text = Path(ledger).read_bytes().decode("utf-8", errors="replace")
    return audit(document, text.removesuffix("\n").split("\n") if text else [], roster)


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
