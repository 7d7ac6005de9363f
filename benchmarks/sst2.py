"""SST-2 by one party at ε = 3, ε = 1 and without DP, beside the frozen probe; and a grid around a setting.

::

    python benchmarks/sst2.py final --data DIR                          three seeds of every preset, and the probe
    python benchmarks/sst2.py final --data DIR --presets 3 --seeds 0    one run
    python benchmarks/sst2.py grid --data DIR --preset 3                each axis by itself around a preset
    python benchmarks/sst2.py grid --data DIR --vary learning_rate=1e-3,4e-3 --set steps=50

DIR has GLUE's train.tsv and dev.tsv. Every finished run is a line of RESULTS/sst2.jsonl and is not run again, so an
interrupted study goes on where it was; several commands at once may share the file if they run different settings.
After each run RESULTS/sst2.md is written anew. One thread; run two commands for two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.sst2_study import Lines, Setting, Task

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

SHARED: dict[str, Any] = {
    "targets": ("query", "key", "value", "output.dense", "intermediate.dense"),
    "roles": ("A", "B", "head"),
    "upper_layers": 3,
    "base_dtype": "bfloat16",
    "average": 0.9,
    "max_tokens": 1024,
}
"""What all presets have in common: all linear maps of the upper half, its lower half computed once."""

PRESETS: dict[str, dict[str, Any]] = {
    "3": {"epsilon": 3.0, "steps": 64, "batch": 4096, "learning_rate": 0.006, "clip_norm": 0.5, **SHARED},
    "1": {"epsilon": 1.0, "steps": 64, "batch": 4096, "learning_rate": 0.004, "clip_norm": 0.5, **SHARED},
    "none": {"epsilon": None, "steps": 64, "batch": 4096, "learning_rate": 0.006, "clip_norm": 1e6, **SHARED},
}
"""The chosen settings, by the name that --presets takes; what is not named is `Setting`'s default."""

AXES: dict[str, tuple[str, ...]] = {
    "learning_rate": ("1e-3", "2e-3", "5e-3", "1e-2"),
    "batch": ("512", "1024", "2048", "4096"),
    "steps": ("20", "35", "70", "140"),
    "rank": ("4", "8", "16"),
    "clip_norm": ("0.1", "0.3", "1", "3"),
}
"""The values of each axis of the grid."""


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, and print each line."""
    options = _parser().parse_args(arguments)
    import torch

    from benchmarks.sst2_study import Lines, load_task

    torch.set_num_threads(1)
    lines = Lines(options.results / "sst2.jsonl")
    keys = _finals(options) if options.study == "final" else _grid(options)
    chosen = [{**key, "limit": options.limit} for key in keys]
    todo = [key for key in chosen if not lines.have(key)]
    print(f"{len(todo)} of {len(chosen)} runs to do", flush=True)
    if todo:
        task = load_task(
            options.data, max_length=options.max_length, encoder=options.encoder, limit=options.limit
        )
        for key in todo:
            _run(key, task, lines)
            _write_page(options.results, lines)
    _write_page(options.results, lines)


def _parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=("final", "grid"))
    parser.add_argument("--data", type=Path, required=True, help="a folder with train.tsv and dev.tsv")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--presets", nargs="*", choices=(*PRESETS, "probe"), default=[*PRESETS, "probe"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--preset", choices=PRESETS, default="3", help="the middle of the grid")
    parser.add_argument(
        "--vary", nargs="*", metavar="NAME=A,B", help="axes of the grid instead of the usual ones"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="change every setting")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a row that are kept")
    parser.add_argument("--encoder", type=Path, help="a local folder instead of MiniLM")
    parser.add_argument("--limit", type=int, help="use only so many rows, to try the command")
    return parser


def _preset(name: str, options: argparse.Namespace) -> Setting:
    """Return a preset with what ``--set`` and ``--max-length`` change."""
    from benchmarks.sst2_study import Setting

    setting = replace(Setting(**PRESETS[name]), max_length=options.max_length)
    for change in options.set:
        setting = setting.changed(*change.split("=", 1))
    return setting


def _finals(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the key of every final run: all presets of one seed before the next seed."""
    if "probe" in options.presets:
        yield {"study": "probe"}
    for seed in options.seeds:
        for name in options.presets:
            if name != "probe":
                yield {"study": "final", "setting": asdict(replace(_preset(name, options), seed=seed))}


def _grid(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the key of the middle and of every value of every axis, the others as in the middle."""
    middle = _preset(options.preset, options)
    axes = {name: values.split(",") for name, values in (axis.split("=", 1) for axis in options.vary or ())}
    settings = [middle]
    for name, values in (axes or AXES).items():
        settings += [middle.changed(name, value) for value in values]
    for setting in dict.fromkeys(settings):
        yield {"study": "grid", "setting": asdict(setting)}


def _run(key: dict[str, Any], task: Task, lines: Lines) -> None:
    """Run one setting, or the probe, and keep its line."""
    from benchmarks.sst2_study import Setting, probe, run

    outcome = run(Setting.from_json(key["setting"]), task) if "setting" in key else probe(task)
    lines.add(key, outcome)
    shown = {name: round(value, 4) for name, value in outcome.items() if value is not None}
    print(key.get("setting", "frozen probe"), shown, flush=True)


def _write_page(results: Path, lines: Lines) -> None:
    """Write the tables of all runs there are."""
    from benchmarks.sst2_tables import page

    results.mkdir(parents=True, exist_ok=True)
    fresh = results / f".sst2.{os.getpid()}"
    fresh.write_text(page(lines), encoding="utf-8")
    fresh.replace(results / "sst2.md")


if __name__ == "__main__":
    # As a script, this file's folder comes first: the study is a package of the project.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    main()
