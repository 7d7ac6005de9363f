"""The command line: ``fedlora run | plan | audit | budget | report | methods | doctor``.

Errors are one line on stderr and an exit code (docs/configuration.md lists them); ``--debug`` shows the
trace.
torch is imported only by the commands that train or load a model.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from rich.console import Console

from accounting.errors import AccountingError, BudgetExceeded
from fedlora_priv import __version__
from fedlora_priv.errors import (
    INTERRUPTED_EXIT_CODE,
    UNEXPECTED_EXIT_CODE,
    AuditFailed,
    BudgetError,
    ConfigError,
    EnvironmentProblem,
    FedloraError,
    RunFolderError,
)

if TYPE_CHECKING:
    from fedlora_priv.config import Experiment

app = typer.Typer(
    help="Federated LoRA with DP-SGD and secure aggregation: the server only ever sees a sum.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
P = ParamSpec("P")

# Names that explain themselves: the pinned typer does not show what an argument's help says.
ExperimentFile = Annotated[
    Path,
    typer.Argument(metavar="EXPERIMENT.toml", help="The experiment's TOML file.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value; may be repeated."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn every error of a command into one line and an exit code, unless it runs with ``--debug``."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (Exception, KeyboardInterrupt) as error:
            if kwargs.get("debug") or isinstance(error, typer.Exit):
                raise
            line, code = _described(error)
            stderr = Console(stderr=True, soft_wrap=True)
            stderr.print(f"error: {line}", style="red", markup=False, highlight=False)
            raise typer.Exit(code) from None

    return wrapped


def _described(error: BaseException) -> tuple[str, int]:
    """Return an error's line and exit code."""
    if isinstance(error, FedloraError):
        return str(error), error.exit_code
    if isinstance(error, BudgetExceeded):
        return " ".join(str(error).split()), BudgetError.exit_code
    if isinstance(error, AccountingError):
        return " ".join(str(error).split()), RunFolderError.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; a run is resumed by the same command", INTERRUPTED_EXIT_CODE
    if isinstance(error, ModuleNotFoundError):
        line = f"{error.name} is not installed; pip install 'fedlora-priv[train]'"
        return line, EnvironmentProblem.exit_code
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), RunFolderError.exit_code
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"unexpected: {text}; this is a defect, --debug shows the trace", UNEXPECTED_EXIT_CODE


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
    debug: Debug = False,  # noqa: ARG001 - read by one_line_errors
) -> None:
    """Show noise, rounds, bytes and guarantee, before anything is spent."""
    from fedlora_priv.config import Experiment

    experiment = Experiment.load(file, overrides or [])
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


@app.command()
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
    from fedlora_priv.reports.auditing import audit_files
    from fedlora_priv.reports.tables import print_verdicts

    verdicts = audit_files(target, ledger=ledger, roster=roster, private=private or ())
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
def methods(as_json: AsJson = False, debug: Debug = False) -> None:  # noqa: ARG001 - read by one_line_errors
    """List the aggregation methods with their contracts."""
    from fedlora_priv.methods import METHODS
    from fedlora_priv.methods.base import Layout, LoraModule

    example = Layout((LoraModule("module", 384, 384, 8, 2.0),), {})
    rows: list[dict[str, Any]] = []
    for method in METHODS.values():
        contract = method.contract(example)
        rows.append(
            {
                "method": method.name,
                "title": method.title,
                "trains": sorted(contract.trains),
                "uploads_vs_lora": contract.dimension * 4 / example.dense_fp32_bytes,
                "exact": contract.exact,
                "exchanges": contract.exchanges,
                "noise": contract.noise,
                "leaks": contract.leaks,
                "source": method.source,
            }
        )
    if as_json:
        console.print_json(json.dumps(rows))
        return
    for row in rows:
        exact = "exact" if row["exact"] else "inexact"
        console.print(f"[bold]{row['method']}[/]  {row['title']}, {row['source']}", highlight=False)
        console.print(
            f"    trains {', '.join(row['trains'])}; {exact} under sums; DP noise {row['noise']}\n"
            f"    uploads {row['uploads_vs_lora']:.1f} × LoRA's coordinates (one 384 × 384 module, rank 8); "
            f"leaks {row['leaks']}",
            highlight=False,
            markup=False,
        )


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
