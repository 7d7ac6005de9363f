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
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.heterogeneous_setting import Setting
    from benchmarks.methods_task import StudyTask
    from benchmarks.sst2_study import Lines

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

FOLDERS = {"banking77": "banking77", "sst2": "sst2_glue"}
"""Where each data set is under --data."""


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, or write the page."""
    options = _parser().parse_args(arguments)
    from benchmarks.sst2_study import Lines

    lines = Lines(options.results / "heterogeneous.jsonl")
    if options.action == "run":
        _work(options, lines)
    _write_page(options.results, lines)


def _parser() -> argparse.ArgumentParser:
    """Return the command line."""
    from benchmarks.resumable import command_line

    parser = command_line(__doc__, FOLDERS)
    parser.add_argument("--cells", nargs="*", help="these rows only, such as whole and fedra")
    return parser


def _work(options: argparse.Namespace, lines: Lines) -> None:
    """Run settings until none is left that the options ask for, or as many as they allow."""
    import torch

    from benchmarks.heterogeneous_order import wanted
    from benchmarks.methods_task import load
    from benchmarks.resumable import work

    torch.set_num_threads(1)
    changes = dict(change.split("=", 1) for change in options.set)
    tasks: dict[str, StudyTask] = {}

    def run(study: str, setting: Setting) -> None:
        if setting.dataset not in tasks:
            folder = options.data / FOLDERS[setting.dataset]
            cache = options.cache or options.results / "methods.cache"
            tasks[setting.dataset] = load(
                setting.dataset,
                folder,
                setting.upper_layers,
                encoder=options.encoder,
                cache=cache,
            )
        _run(study, setting, tasks[setting.dataset], lines)

    work(
        lambda: wanted(list(lines), options.datasets, options.cells, changes),
        run,
        lines,
        options.results / "heterogeneous.locks",
        options.most,
    )


def _run(study: str, setting: Setting, task: StudyTask, lines: Lines) -> None:
    """Run one setting and keep its line; one that diverges is kept as such."""
    from benchmarks.heterogeneous_runs import run
    from benchmarks.resumable import key

    outcome = run(setting, task, test=study == "final")
    lines.add(key(study, setting), outcome)
    shown = f"{setting.dataset} ε={setting.epsilon} {setting.partition} {setting.method}, seed {setting.seed}"
    found = outcome["accuracy"] if study == "final" else outcome["validation"]
    seconds = 60 * outcome["cpu_minutes"]
    print(f"{study} {shown}, rate {setting.learning_rate:g}: {found:.4f} in {seconds:.0f} s", flush=True)


def _write_page(results: Path, lines: Lines) -> None:
    """Write tables and plots of all runs there are."""
    from benchmarks.heterogeneous_plots import plots
    from benchmarks.heterogeneous_tables import page
    from benchmarks.resumable import write_whole

    kept = list(lines)
    for name, text in (("heterogeneous.md", page(kept)), *plots(kept)):
        write_whole(results, name, text)


if __name__ == "__main__":
    # As a script, this file's folder comes first: the study is a package of the project.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    main()
