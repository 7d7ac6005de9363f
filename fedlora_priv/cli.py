"""The command line: ``fedlora run | plan | audit | budget | report | methods | doctor``.

Across machines: ``fedlora keys | deploy | node | server`` (`fedlora_priv.cli_deploy`).

Errors are one line on stderr and an exit code (docs/configuration.md lists them); ``--debug`` shows the
trace.
torch is imported only by the commands that train or load a model.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora_priv import __version__
from fedlora_priv.cli_audit import audit
from fedlora_priv.cli_base import AsJson, Debug, ExperimentFile, Overrides, console, one_line_errors
from fedlora_priv.cli_deploy import deploy, keys, node, server
from fedlora_priv.errors import ConfigError, EnvironmentProblem, RunFolderError

if TYPE_CHECKING:
    from fedlora_priv.config import Experiment

app = typer.Typer(
    help="Federated LoRA with DP-SGD and secure aggregation: the server only ever sees a sum.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
@one_line_errors
def run(
    file: ExperimentFile,
    overrides: Overrides = None,
    again: Annotated[
        bool, typer.Option("--again", help="If this run has finished, set it aside and run once more.")
    ] = False,
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Train; resumes by itself if the run folder is unfinished."""
    from fedlora_priv.config import Experiment

    experiment = Experiment.load(file, overrides or [])  # before torch is imported, which takes seconds
    from fedlora_priv.federation.run import run as run_experiment
    from fedlora_priv.reports.progress import Bars
    from fedlora_priv.reports.terminal import print_summary

    with Bars(console) as bars:
        outcome = run_experiment(experiment, again=again, progress=bars)
    print_summary(console, outcome.report, outcome.metrics)
    console.print(f"\nrun folder  {outcome.folder}   audit it: fedlora audit {outcome.folder}", markup=False)
    if outcome.problem is not None:
        raise outcome.problem


@app.command()
@one_line_errors
def plan(
    file: ExperimentFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    what_if: Annotated[
        bool,
        typer.Option(
            "--what-if", help="Show other rounds, batches, participation and targets, and plot them."
        ),
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Where --what-if writes its page.", show_default="what-if.html")
    ] = None,
    upload_budget: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Propose density and bits with which no client uploads more in a round: 50kB, 1MiB, ...",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Show noise, rounds, bytes and guarantee, before anything is spent."""
    from fedlora_priv.config import Experiment

    experiment = Experiment.load(file, overrides or [])
    if upload_budget is not None:
        if what_if or plot is not None:
            raise ConfigError("--upload-budget goes without --what-if and --plot", "ask one thing at a time")
        _propose(experiment, upload_budget, as_json)
        return
    if what_if:
        _what_if(experiment, plot or Path("what-if.html"), as_json)
        return
    if plot is not None:
        raise ConfigError("--plot goes with --what-if", "add it")
    from fedlora_priv.federation.preview import preview
    from fedlora_priv.reports.tables import print_plan

    planned = preview(experiment)
    if as_json:
        console.print_json(json.dumps(planned))
    else:
        print_plan(console, planned)


def _propose(experiment: Experiment, upload_budget: str, as_json: bool) -> None:
    """Print the density and bits for a budget of bytes."""
    from fedlora_priv.communication.budget import parse_bytes
    from fedlora_priv.communication.errors import CommunicationError
    from fedlora_priv.federation.proposal import proposed
    from fedlora_priv.reports.traffic import print_proposal

    try:
        found = proposed(experiment, parse_bytes(upload_budget))
    except CommunicationError as problem:  # of an option: no federation has stopped, none was begun
        raise ConfigError(f"--upload-budget: {problem}") from None
    if as_json:
        console.print_json(json.dumps(found))
    else:
        print_proposal(console, found)


def _what_if(experiment: Experiment, plot: Path, as_json: bool) -> None:
    """Print alternatives to the noisiest client's plan, and write them with plots to a page."""
    from accounting.what_if import around
    from fedlora_priv.federation.files import write_atomically
    from fedlora_priv.federation.preview import noisiest
    from fedlora_priv.reports.what_if import page, print_rows

    plan = noisiest(experiment)
    rows = around(plan)
    write_atomically(plot, page(experiment.experiment.name, plan, rows).encode())
    if as_json:
        shown = {"client": plan.to_json(), "rows": [row.to_json() for row in rows], "page": str(plot)}
        console.print_json(json.dumps(shown))
    else:
        print_rows(console, plan, rows)
        console.print(f"\n{plot}", markup=False)


app.command()(audit)
app.command()(deploy)
app.add_typer(keys, name="keys")
app.add_typer(node, name="node")
app.add_typer(server, name="server")


@app.command()
@one_line_errors
def budget(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="LEDGERS...|EXPERIMENT.toml",
            help="Ledger files (.sqlite or .jsonl), clients' homes, run folders; or one experiment's TOML file.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    delta: Annotated[
        float | None, typer.Option(help="Delta.", show_default="the experiment's, or 1e-5")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(help="Lifetime limit on epsilon.", show_default="the experiment's, if named"),
    ] = None,
    overlapping: Annotated[
        bool, typer.Option("--overlapping", help="A row may be in several of these ledgers.")
    ] = False,
    rows_each: Annotated[
        int | None, typer.Option(help="Price this many rows of one person together.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Show what ledgers have spent, what is left, and what their clients may claim together."""
    from fedlora_priv.federation.standings import answer, ask, ask_experiment
    from fedlora_priv.reports.budgets import print_standings

    if targets[0].suffix == ".toml":
        from fedlora_priv.config import Experiment

        if len(targets) > 1:
            raise ConfigError("an experiment is asked about alone", "name either it, or ledgers")
        question = ask_experiment(Experiment.load(targets[0], overrides or []), delta, limit)
    else:
        if overrides:
            raise ConfigError("--set goes with an experiment's TOML file, not with ledgers", "leave it out")
        question = ask(targets, delta, limit)
    if rows_each is not None and rows_each < 1:
        raise ConfigError(f"--rows-each must be 1 or more, not {rows_each}", "count the rows of one person")
    answered = answer(question, overlapping=overlapping, rows_each=rows_each)
    if as_json:
        console.print_json(json.dumps(answered))
    else:
        print_standings(console, answered)


@app.command()
@one_line_errors
def report(
    run_folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Write the HTML report again and print the closing table."""
    from accounting.report import load
    from fedlora_priv.federation.files import read_metrics, write_atomically
    from fedlora_priv.reports.html import render
    from fedlora_priv.reports.terminal import print_summary

    if not (run_folder / "report.json").is_file():
        raise RunFolderError(f"there is no report in {run_folder}", "'fedlora run' resumes an unfinished run")
    document, metrics = load(run_folder / "report.json"), read_metrics(run_folder)
    path = run_folder / "report.html"
    write_atomically(path, render(document, metrics).encode())
    print_summary(console, document, metrics)
    console.print(f"\n{path}", markup=False)


@app.command()
@one_line_errors
def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Show this one in full.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """List the aggregation methods with their contracts, or show one with its equations and options."""
    from fedlora_priv.reports.methods import described, print_method, print_methods

    rows = described(name)
    if as_json:
        console.print_json(json.dumps(rows if name is None else rows[0]))
    elif name is None:
        print_methods(console, rows)
    else:
        print_method(console, rows[0])


@app.command()
@one_line_errors
def doctor(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[EXPERIMENT.toml]", help="Rehearse this experiment's own steps.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Report what this machine can do, and rehearse private steps: of a small model, or of an experiment."""
    from fedlora_priv.doctor import examine, examine_experiment

    if file is None:
        if overrides:
            raise ConfigError("--set goes with an experiment's TOML file", "name one, or leave it out")
        findings = examine()
    else:
        from fedlora_priv.config import Experiment

        experiment = Experiment.load(file, overrides or [])
        findings = examine_experiment(experiment)
    from fedlora_priv.reports.tables import print_findings

    if as_json:
        console.print_json(json.dumps([finding.to_json() for finding in findings]))
    else:
        print_findings(console, findings)
    failed = [finding.what for finding in findings if finding.status == "FAIL"]
    if failed:
        raise EnvironmentProblem(f"this machine cannot run federations: {', '.join(failed)}", "see above")


def _version(asked: bool) -> None:
    """Print the version and leave, if asked to."""
    if asked:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated LoRA with DP-SGD and secure aggregation: the server only ever sees a sum."""


def main() -> None:
    """Run the command line."""
    # OpenMP threads that spin while they wait starve each other on a machine that is shared: with one of two
    # cores taken by somebody else, training was seen to slow down six times. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(prog_name="fedlora", args=sys.argv[1:])


if __name__ == "__main__":
    main()
