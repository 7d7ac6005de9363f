"""An audit of files: a run folder, or a report with its ledger export, wherever they came from."""

from __future__ import annotations

from pathlib import Path

from accounting import audit as auditor
from accounting import report as reports
from accounting.checks import Verdict
from accounting.ledger import stored_lines
from fedlora_priv.errors import ConfigError, RunFolderError
from protocols.errors import ProtocolError
from protocols.secagg.identity import Roster


def audit_files(target: Path, *, ledger: Path | None = None, roster: Path | None = None) -> list[Verdict]:
    """Return the verdicts on a run folder or a report.json.

    Args:
        target: a run folder, or a report.json.
        ledger: the export to audit with; by default the ledger.jsonl beside the report. Where the clients of
            a simulation keep their ledger.sqlite there too, it must say the same.
        roster: a roster.json that pins the clients' keys.

    Raises:
        RunFolderError: there is no report or no ledger, or export and ledger differ.
        ConfigError: the roster cannot be read.
        ReportError: the report breaks its schema.
    """
    report = target / "report.json" if target.is_dir() else target
    if not report.is_file():
        hint = "the run has not finished: 'fedlora run' resumes it" if target.is_dir() else "check the path"
        raise RunFolderError(f"there is no {report}", hint)
    export = ledger or report.with_name("ledger.jsonl")
    if not export.is_file():
        raise RunFolderError(f"there is no {export}", "name the ledger export with --ledger")
    pinned = _pinned(roster)
    verdicts = auditor.audit_files(report, export, pinned)
    database = report.with_name("ledger.sqlite")
    if ledger is None and database.is_file():
        stored = auditor.audit(reports.load(report), stored_lines(database), pinned)
        verdicts = _worse(verdicts, stored)
    return verdicts


def _pinned(path: Path | None) -> dict[str, bytes] | None:
    """Return the keys of a roster file."""
    if path is None:
        return None
    try:
        return dict(Roster.load(path))
    except (OSError, ProtocolError) as error:
        raise ConfigError(f"{path} is no roster: {error}") from error


def _worse(first: list[Verdict], second: list[Verdict]) -> list[Verdict]:
    """Return of each check the graver verdict."""
    gravity = {"PASS": 0, "UNVERIFIABLE": 1, "FAIL": 2}
    return [max(pair, key=lambda v: gravity[v.status]) for pair in zip(first, second, strict=True)]
