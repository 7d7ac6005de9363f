"""Clients that are not equal: who trains which layers, at which rank, on Banking77 and SST-2, without DP and at ε = 8.

::

    python benchmarks/heterogeneous_study.py run --data DIR      what is not there yet: rates, then what is compared
    python benchmarks/heterogeneous_study.py page                the tables and plots of what is there

DIR has the folders sst2_glue (GLUE's train.tsv, dev.tsv) and banking77 (train.csv, test.csv). Every finished run is a
line of RESULTS/heterogeneous.jsonl and is not run again. Stop the command at any time and start it again; start it
twice for two cores.

The order is: for each data set and ε the rates and the first seed of the rows that have three, i.i.d. and with few
labels a client; their other seeds; then the other rows, and the partition between, one seed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.heterogeneous_setting import Setting
    from benchmarks.methods_task import StudyTask

FOLDERS = {"banking77": "banking77", "sst2": "sst2_glue"}
"""Where each data set is under --data."""

EPSILONS = {"none": None, "8": 8.0}
"""As --epsilon names them."""


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, or write the page."""
    from benchmarks.study_command import Command, command_line

    parser = command_line(__doc__, FOLDERS)
    parser.add_argument("--cells", nargs="*", help="these rows only, such as whole and fedra")
    parser.add_argument("--epsilon", nargs="*", choices=EPSILONS, default=list(EPSILONS), help="these only")
    parser.add_argument(
        "--rates", type=Path, help="take the rates of these lines, for runs that differ by --set"
    )
    options = parser.parse_args(arguments)
    if options.rates is not None and not options.rates.exists():
        parser.error(f"--rates: there is no {options.rates}")
    Command("heterogeneous", FOLDERS, _wanted, _run, _files).main(options)


def _wanted(
    lines: Sequence[Any], options: argparse.Namespace, changes: Mapping[str, str]
) -> Sequence[tuple[str, Setting]]:
    """Return what the options ask for and is not there yet."""
    from benchmarks.heterogeneous_order import wanted
    from benchmarks.sst2_study import Lines

    rates = None if options.rates is None else list(Lines(options.rates))
    epsilons = [EPSILONS[text] for text in options.epsilon]
    return wanted(lines, options.datasets, options.cells, changes, epsilons, rates)


def _run(study: str, setting: Setting, task: StudyTask) -> tuple[Mapping[str, Any], str]:
    """Return what one setting gave, and a sentence on it."""
    from benchmarks.heterogeneous_runs import run

    outcome = run(setting, task, test=study == "final")
    shown = f"{setting.dataset} ε={setting.epsilon} {setting.partition} {setting.method}, seed {setting.seed}"
    found = outcome["accuracy"] if study == "final" else outcome["validation"]
    return outcome, f"{shown}, rate {setting.learning_rate:g}: {found:.4f}"


def _files(lines: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield tables and plots of all runs there are."""
    from benchmarks.heterogeneous_plots import plots
    from benchmarks.heterogeneous_tables import page

    yield "heterogeneous.md", page(lines)
    yield from plots(lines)


if __name__ == "__main__":
    # As a script, this file's folder comes first: the study is a package of the project.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    main()
