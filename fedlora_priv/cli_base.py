"""What every command shares: its console, its common options, and how errors become one line and an exit code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.console import Console

from accounting.errors import AccountingError, BudgetExceeded
from fedlora_priv.errors import (
    INTERRUPTED_EXIT_CODE,
    UNEXPECTED_EXIT_CODE,
    BudgetError,
    EnvironmentProblem,
    FedloraError,
    RunFolderError,
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
