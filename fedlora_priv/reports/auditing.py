"""An audit of files: a run folder, or a report with its ledger export, wherever they came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accounting import audit as auditor
from accounting import report as reports
from accounting.case import Verdict
from accounting.ledger_file import stored_lines
from fedlora_priv.errors import ConfigError, RunFolderError
from protocols.errors import ProtocolError
from protocols.secagg.identity import Roster


def audit_files(
    target: Path, *, ledger: Path | None = None, roster: Path | None = None, private: Sequence[Path] = ()
) -> list[Verdict]:
    """Return the verdicts on a run folder or a report.json, with what lies beside it.

    Args:
        target: a run folder, or a report.json.
        ledger: the export to audit with; by default the ledger.jsonl beside the report. Where the clients of
            a simulation keep their ledger.sqlite there too, it must say the same.
        roster: a roster.json that pins the clients' keys.
        private: clients' private audit files, or folders to search for those of the report's run.

    Raises:
        RunFolderError: there is no report, no ledger or no private file where one is named.
        ConfigError: the roster cannot be read.
        AccountingError: the report breaks its schema, or a file of evidence is damaged.
    """
    report = target / "report.json" if target.is_dir() else target
    if report.suffix == ".toml":
        raise ConfigError(
            f"{report} is an experiment, not a report", "name its run folder, or say --empirical"
        )
    if not report.is_file():
        hint = "the run has not finished: 'fedlora run' resumes it" if target.is_dir() else "check the path"
        raise RunFolderError(f"there is no {report}", hint)
    export = ledger or report.with_name("ledger.jsonl")
    if not export.is_file():
        raise RunFolderError(f"there is no {export}", "name the ledger export with --ledger")
    pinned = _pinned(roster)
    files = _private_files(private, report)
    verdicts = auditor.audit_files(report, export, pinned, files)
    database = report.with_name("ledger.sqlite")
    if ledger is None and database.is_file():
        evidence = auditor.evidence_beside(report, files)
        stored = auditor.audit(reports.load(report), stored_lines(database), pinned, evidence)
        verdicts = _worse(verdicts, stored)
    return verdicts


def _private_files(named: Sequence[Path], report: Path) -> list[Path]:
    """Return the private audit files that are named, of a folder those of the report's run."""
    found: list[Path] = []
    for path in named:
        if path.is_dir():
            name = f"private-audit-{reports.load(report)['run']}.jsonl"
            files = sorted(path.rglob(name))
        else:
            files = [path] if path.is_file() else []
        if not files:
            raise RunFolderError(f"there is no private audit file of this run at {path}", "check the path")
        found += [file.resolve() for file in files]
    return list(dict.fromkeys(found))


def _pinned(path: Path | None) -> dict[str, bytes] | None:
    """Return the keys of a roster file."""
    if path is None:
        return None
    try:
        return dict(Roster.load(path))
    except OSError as error:
        raise ConfigError(f"the roster {path} cannot be read: {error.strerror}", "check --roster") from error
    except ProtocolError as error:
        raise ConfigError(str(error), "name a roster.json, of client ids and public keys in hex") from error


def _worse(first: list[Verdict], second: list[Verdict]) -> list[Verdict]:
    """Return of each check the graver verdict."""
    gravity = {"PASS": 0, "UNVERIFIABLE": 1, "FAIL": 2}
    return [max(pair, key=lambda v: gravity[v.status]) for pair in zip(first, second, strict=True)]
