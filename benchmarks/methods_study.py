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
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.methods_runs import Setting
    from benchmarks.methods_task import StudyTask
    from benchmarks.sst2_study import Lines

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

FOLDERS = {"trec": "trec", "sst2": "sst2_glue"}
"""Where each data set is under --data; the cheaper one first."""


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, or write the page."""
    options = _parser().parse_args(arguments)
    from benchmarks.sst2_study import Lines

    lines = Lines(options.results / "methods.jsonl")
    if options.action == "run":
        _work(options, lines)
    _write_page(options.results, lines)


def _parser() -> argparse.ArgumentParser:
    """Return the command line."""
    from benchmarks.resumable import command_line

    parser = command_line(__doc__, FOLDERS)
    parser.add_argument(
        "--methods", nargs="*", help="these only; a main method's rates are found all the same"
    )
    return parser


def _work(options: argparse.Namespace, lines: Lines) -> None:
    """Run settings until none is left that the options ask for, or as many as they allow."""
    import torch

    from benchmarks.methods_order import wanted
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
                setting.dataset, folder, setting.upper_layers, encoder=options.encoder, cache=cache
            )
        _run(study, setting, tasks[setting.dataset], lines)

    work(
        lambda: wanted(list(lines), options.datasets, options.methods, changes),
        run,
        lines,
        options.results / "methods.locks",
        options.most,
    )


def _run(study: str, setting: Setting, task: StudyTask, lines: Lines) -> None:
    """Run one setting and keep its line; one that diverges is kept as such."""
    from benchmarks.methods_runs import JUDGED, run
    from benchmarks.resumable import key

    outcome = run(setting, task, () if study == "grid" else JUDGED)
    lines.add(key(study, setting), outcome)
    shown = f"{setting.dataset} {setting.method} ε={setting.epsilon} {setting.partition} seed {setting.seed}"
    rate, minutes = setting.learning_rate, outcome["cpu_minutes"]
    print(f"{study} {shown} rate {rate:g}: {outcome['validation']} in {60 * minutes:.0f} s", flush=True)


def _write_page(results: Path, lines: Lines) -> None:
    """Write tables and plots of all runs there are."""
    from benchmarks.methods_plots import plots
    from benchmarks.methods_tables import page
    from benchmarks.resumable import write_whole

    kept = list(lines)
    for name, text in (("methods.md", page(kept)), *((f"methods/{n}", svg) for n, svg in plots(kept))):
        write_whole(results, name, text)


if __name__ == "__main__":
    # As a script, this file's folder comes first: the study is a package of the project.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    main()
