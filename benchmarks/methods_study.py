"""All aggregation methods on SST-2 and TREC: five clients, i.i.d. and skewed, without DP, ε = 8 and ε = 3.

::

    python benchmarks/methods_study.py run --data DIR      what is not there yet: rates first, then the compared runs
    python benchmarks/methods_study.py page                the tables and plots of what is there

DIR has the folders sst2_glue (GLUE's train.tsv, dev.tsv) and trec (TREC.train, TREC.test). Every finished run is a line
of RESULTS/methods.jsonl and is not run again. Stop the command at any time and start it again; start it twice for two
cores: a process takes what no other one is at (a locked file in RESULTS/methods.locks), with one thread each.

The order is: a grid of learning rates for each main method, data set and ε, on held-out training rows, one seed; the
main methods at their best rates, three seeds, both partitions (after the first seed some again with sums as they travel
masked); the other methods, one seed. A grid whose best rate is at its edge is extended there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.methods_runs import Setting
    from benchmarks.methods_task import StudyTask

FOLDERS = {"trec": "trec", "sst2": "sst2_glue"}
"""Where each data set is under --data; the cheaper one first."""


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, or write the page."""
    from benchmarks.study_command import Command, command_line

    parser = command_line(__doc__, FOLDERS)
    parser.add_argument(
        "--methods", nargs="*", help="these only; a main method's rates are found all the same"
    )
    Command("methods", FOLDERS, _wanted, _run, _files).main(parser.parse_args(arguments))


def _wanted(
    lines: Sequence[Any], options: argparse.Namespace, changes: Mapping[str, str]
) -> Sequence[tuple[str, Setting]]:
    """Return what the options ask for and is not there yet."""
    from benchmarks.methods_order import wanted

    return wanted(lines, options.datasets, options.methods, changes)


def _run(study: str, setting: Setting, task: StudyTask) -> tuple[Mapping[str, Any], str]:
    """Return what one setting gave, and a sentence on it."""
    from benchmarks.methods_runs import JUDGED, run

    outcome = run(setting, task, () if study == "grid" else JUDGED)
    shown = f"{setting.dataset} {setting.method} ε={setting.epsilon} {setting.partition} seed {setting.seed}"
    return outcome, f"{shown} rate {setting.learning_rate:g}: {outcome['validation']}"


def _files(lines: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield tables and plots of all runs there are."""
    from benchmarks.methods_plots import plots
    from benchmarks.methods_tables import page

    yield "methods.md", page(lines)
    yield from ((f"methods/{name}", drawing) for name, drawing in plots(lines))


if __name__ == "__main__":
    # As a script, this file's folder comes first: the study is a package of the project.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    main()
