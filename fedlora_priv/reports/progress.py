"""The progress bar of a run, and one line for every round."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedlora_priv.engines.base import Step
from fedlora_priv.reports.quality import metric_of


class Bars:
    """A bar over rounds and a line per finished round; `say` prints what happens before the first round."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[doing]}"),
            console=console,
        )
        self._bar = self._progress.add_task("rounds", total=None, doing="", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(line, style="dim", markup=False, highlight=False)

    def round_started(self, number: int, rounds: int) -> None:
        """Show which round it is."""
        self._progress.update(self._bar, total=rounds, completed=number - 1, visible=True)

    def answered(self, client_id: str, step: Step) -> None:
        """Show who has just answered what."""
        self._progress.update(self._bar, doing=f"{client_id}: {step.phase}")

    def round_finished(self, row: dict[str, Any]) -> None:
        """Print the round's line."""
        self._progress.update(self._bar, completed=row["round"], doing="")
        self._progress.console.print(_line(row), highlight=False)


def _line(row: dict[str, Any]) -> str:
    """Return one round as one line."""
    parts = [f"round {row['round']:>3}"]
    metric = metric_of(row)
    value = row[metric.key]
    parts.append(" " * 14 if value is None else f"{metric.key} [bold]{metric.plain(value)}[/]")
    if row["aborted"]:
        parts.append(f"[yellow]no sum: {escape(row['aborted'])}[/]")
    else:
        parts.append(f"{len(row['survivors'])} in the sum")
    parts.append(f"ε ≤ {max(row['epsilon'].values()):.2f} with retries")
    parts += [f"[yellow]{loss['client_id']} lost before {loss['phase']}[/]" for loss in row["lost"]]
    parts += [
        f"[yellow]{refusal['client_id']} refused: {escape(refusal['code'])}[/]" for refusal in row["refused"]
    ]
    return "  ".join(parts)
