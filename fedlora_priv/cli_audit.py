"""``fedlora audit``: of a run's files, of private files, or by an attack."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedlora_priv.cli_base import AsJson, Debug, Overrides, console, one_line_errors
from fedlora_priv.errors import AuditFailed, ConfigError


@one_line_errors
def audit(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_FOLDER|report.json|TOML",
            help="A run folder, or a report.json with its ledger.jsonl; with --empirical an experiment's TOML file.",
        ),
    ],
    ledger: Annotated[
        Path | None, typer.Option(help="Ledger export, if it is not beside the report.")
    ] = None,
    roster: Annotated[
        Path | None, typer.Option(help="roster.json with the clients' keys, as *you* know them.")
    ] = None,
    private: Annotated[
        list[Path] | None,
        typer.Option(help="A client's private audit file, or a folder of them; the answer is private too."),
    ] = None,
    empirical: Annotated[
        bool,
        typer.Option("--empirical", help="Train once more with canaries and attack: a lower bound on ε."),
    ] = False,
    canaries: Annotated[
        int | None,
        typer.Option(help="With --empirical: random rows, each in by a coin.", show_default="500"),
    ] = None,
    client: Annotated[
        str | None, typer.Option(help="With --empirical: who holds them.", show_default="the first")
    ] = None,
    overrides: Overrides = None,
    members: Annotated[
        Path | None,
        typer.Option(help="Public rows that the run was trained on: attack its adapter, with --non-members."),
    ] = None,
    non_members: Annotated[Path | None, typer.Option(help="Public rows that it was not trained on.")] = None,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Re-derive a report and answer sixteen questions about it; exit code 1 on any FAIL."""
    of_files: dict[str, object] = {"--ledger": ledger, "--roster": roster, "--private": private}
    of_adapters = {"--members": members, "--non-members": non_members}
    if empirical:
        _refuse_options("--empirical", {**of_files, **of_adapters})
        from fedlora_priv.reports.empirical import audit_empirically

        audit_empirically(
            console, target, overrides or [], canaries=canaries, client_id=client, as_json=as_json
        )
        return
    if canaries is not None or client is not None or overrides:
        raise ConfigError("--canaries, --client and --set go with --empirical", "add it")
    if members or non_members:
        _refuse_options("--members", of_files)
        from fedlora_priv.reports.empirical import audit_membership

        audit_membership(console, target, members, non_members, as_json=as_json)
        return
    _audit_files(target, ledger, roster, private or [], as_json=as_json)


def _audit_files(
    target: Path, ledger: Path | None, roster: Path | None, private: Sequence[Path], *, as_json: bool
) -> None:
    """Audit a run's files, print the verdicts, and raise on any FAIL."""
    from fedlora_priv.reports.auditing import audit_files
    from fedlora_priv.reports.tables import print_verdicts

    verdicts = audit_files(target, ledger=ledger, roster=roster, private=private)
    if as_json:
        console.print_json(json.dumps([verdict.to_json() for verdict in verdicts]))
    else:
        print_verdicts(console, verdicts, private=bool(private))
    failed = [f"{verdict.check} {verdict.name}" for verdict in verdicts if verdict.status == "FAIL"]
    if failed:
        raise AuditFailed(f"FAIL in check {', '.join(failed)}", "do not rely on this report")


def _refuse_options(mode: str, options: Mapping[str, object]) -> None:
    """Raise for options that a mode of `audit` would ignore."""
    if given := [name for name, value in options.items() if value]:
        raise ConfigError(f"{', '.join(given)} and {mode} do not go together", "ask for one after the other")
