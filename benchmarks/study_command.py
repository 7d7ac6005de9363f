"""A study of several data sets as a command: `run` what is not there yet, or write its `page`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from benchmarks.methods_runs import Setting
    from benchmarks.methods_task import StudyTask
    from benchmarks.sst2_study import Lines

S = TypeVar("S", bound="Setting")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does


@dataclass(frozen=True)
class Command(Generic[S]):
    """What a study's `run` and `page` do. Its lines are NAME.jsonl in the folder of results, its claims NAME.locks.

    Args:
        folders: where each data set is under --data.
        wanted: of the lines, the options and what --set changes: what can be run and is not there, most urgent first.
        run: runs one; returns what it gave and a sentence on it.
        files: of the lines: names of files, from the folder of results, and their text.
        attended: keep what the last layer's attention gives too; see `methods_task.load`.
    """

    name: str
    folders: Mapping[str, str]
    wanted: Callable[[Sequence[Any], argparse.Namespace, Mapping[str, str]], Sequence[tuple[str, S]]]
    run: Callable[[str, S, StudyTask], tuple[Mapping[str, Any], str]]
    files: Callable[[Sequence[Any]], Iterable[tuple[str, str]]]
    attended: bool = False

    def main(self, options: argparse.Namespace) -> None:
        """Run what is not there yet, if that was asked for, and write the page; bad input is one line on stderr."""
        from benchmarks.resumable import write_whole
        from benchmarks.sst2_study import Lines
        from fedlora_priv.errors import DataError

        lines = Lines(options.results / f"{self.name}.jsonl")
        if options.action == "run":
            if options.data is None:
                raise SystemExit(f"error: run needs --data, {_where(self.folders)}")
            try:
                self._work(options, lines)
            except DataError as error:
                raise SystemExit(f"error: {error}") from error
        for name, text in self.files(list(lines)):
            write_whole(options.results, name, text)

    def _work(self, options: argparse.Namespace, lines: Lines) -> None:
        """Run settings until none is left that the options ask for, or as many as they allow."""
        import torch

        from benchmarks.resumable import key, work

        torch.set_num_threads(1)
        changes = dict(options.set)
        tasks: dict[str, StudyTask] = {}

        def run(study: str, setting: S) -> None:
            if setting.dataset not in tasks:
                tasks[setting.dataset] = self._task(options, setting)
            outcome, sentence = self.run(study, setting, tasks[setting.dataset])
            lines.add(key(study, setting), outcome)
            print(f"{study} {sentence} in {60 * outcome['cpu_minutes']:.0f} s", flush=True)

        work(
            lambda: self.wanted(list(lines), options, changes),
            run,
            lines,
            options.results / f"{self.name}.locks",
            options.most,
        )

    def _task(self, options: argparse.Namespace, setting: S) -> StudyTask:
        """Return a setting's data set."""
        from benchmarks.methods_task import load

        return load(
            setting.dataset,
            options.data / self.folders[setting.dataset],
            setting.upper_layers,
            attended=self.attended,
            encoder=options.encoder,
            cache=options.cache or options.results / "methods.cache",
        )


def command_line(what: str | None, folders: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the options that every study of several data sets has.

    Args:
        what: the study's own description.
        folders: where each data set is under --data.
    """
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "page"))
    parser.add_argument("--data", type=Path, help=f"for run: {_where(folders)}")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--cache", type=Path, help="where lower layers' outputs are kept; RESULTS/methods.cache"
    )
    parser.add_argument("--datasets", nargs="*", choices=folders, default=list(folders))
    parser.add_argument("--encoder", type=Path, help="a local folder instead of MiniLM, to try the command")
    parser.add_argument(
        "--set", nargs="*", default=[], type=change, metavar="NAME=VALUE", help="change every run, to try"
    )
    parser.add_argument("--most", type=int, help="stop after so many runs")
    return parser


def change(text: str) -> tuple[str, str]:
    """Return the name and the value that an option says.

    Raises:
        argparse.ArgumentTypeError: there is no "=" in it.

    >>> change("rounds=2")
    ('rounds', '2')
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _where(folders: Mapping[str, str]) -> str:
    """Return what --data is to name."""
    return f"a folder with {' and '.join(sorted(folders.values()))}"
