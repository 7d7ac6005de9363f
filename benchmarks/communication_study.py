"""Accuracy against bytes: supports, densities and bits under masks, on SST-2 and Banking77, without DP and at ε = 8.

::

    python benchmarks/communication_study.py run --data DIR      what is not there yet: rates, then what is compared
    python benchmarks/communication_study.py page                the tables and plots of what is there

DIR has the folders sst2_glue (GLUE's train.tsv, dev.tsv) and banking77 (train.csv, test.csv). Every finished run is a
line of RESULTS/communication.jsonl and is not run again. Stop the command at any time and start it again; start it
twice for two cores.

The order is: for each data set and ε the rates and corner cells, three seeds, and some telling ones; then the rest of
the table of supports, densities and bits, and last what else there is to choose, one seed each.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.communication_setting import Setting
    from benchmarks.methods_task import StudyTask

FOLDERS = {"sst2": "sst2_glue", "banking77": "banking77"}
"""Where each data set is under --data."""


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, or write the page."""
    from benchmarks.study_command import Command, command_line

    parser = command_line(__doc__, FOLDERS)
    parser.add_argument("--skip", nargs="*", default=[], help="families that are left out, such as ffa")
    Command("communication", FOLDERS, _wanted, _run, _files, attended=True).main(parser.parse_args(arguments))


def _wanted(
    lines: Sequence[Any], options: argparse.Namespace, changes: Mapping[str, str]
) -> Sequence[tuple[str, Setting]]:
    """Return what the options ask for and is not there yet."""
    from benchmarks.communication_order import wanted

    return wanted(lines, options.datasets, options.skip, changes)


def _run(study: str, setting: Setting, task: StudyTask) -> tuple[Mapping[str, Any], str]:
    """Return what one setting gave, and a sentence on it."""
    from benchmarks.communication_runs import run

    outcome = run(setting, task, test=study == "final")
    shown = (
        f"{setting.dataset} ε={setting.epsilon} {setting.method} {setting.support} 1/{1 / setting.density:g}"
    )
    how = (
        f"{setting.value_bits} bits, feedback {setting.feedback}, train {setting.train}, seed {setting.seed}"
    )
    rates = f"rates {setting.learning_rate:g} {setting.server_rate:g} {setting.server_power:g}"
    return outcome, f"{shown}, {how}, {rates}: {outcome['validation']:.4f} {outcome['accuracy']}"


def _files(lines: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield tables and plots of all runs there are."""
    from benchmarks.communication_plots import plots
    from benchmarks.communication_tables import page

    yield "communication.md", page(lines)
    yield from plots(lines)


if __name__ == "__main__":
    # As a script, this file's folder comes first: the study is a package of the project.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    main()
