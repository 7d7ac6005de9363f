"""The SST-2 study's lines as Markdown tables, and a figure of each axis of the grid."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.common import markdown
from benchmarks.sst2_study import Setting

Line = Mapping[str, Any]

SHOWN = (
    "steps",
    "batch",
    "learning_rate",
    "clip_norm",
    "rank",
    "alpha",
    "optimizer",
    "targets",
    "roles",
    "upper_layers",
    "base_dtype",
    "average",
)
"""What of a setting a table shows; the rest is told once."""

INTRODUCTION = """# SST-2, one party

MiniLM (all-MiniLM-L6-v2, mean pooling) with LoRA and a trained head, DP-SGD on GLUE's training rows (67,349),
accuracy on its development rows (872). Made by `python benchmarks/sst2.py`; every line of `sst2.jsonl` is a run.

* Noise and batches are fresh in every run (`SecretStream()`); a seed governs the initialisation of A and the head
  only. So a deviation shows noise, batches and initialisation together, and no run can be repeated to the digit.
* ε is what the ledger's accountant asks for all steps of a run (PLD, add/remove one row, δ = 1e-5). A row is a
  phrase: several rows come from one sentence, so a sentence is protected less than a row.
* "no DP" is the same code with neither noise nor a clip norm that is reached. The probe is a logistic regression on
  the frozen encoder's mean-pooled features, without LoRA and without DP.
* The settings were chosen by looking at the development rows, and that choice is not charged to ε.
* 872 rows: one standard error of an accuracy near .84 is .012, so smaller differences of single runs say nothing.
"""


def page(lines: Iterable[Line]) -> str:
    """Return the whole page; runs on some of the rows only are left out."""
    lines = [line for line in lines if line.get("limit") is None]
    parts = [INTRODUCTION, *_finals([line for line in lines if line["study"] != "grid"])]
    return "\n".join((*parts, *_grid([line for line in lines if line["study"] == "grid"]))) + "\n"


def _finals(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a table with one line per setting: mean and deviation over the seeds."""
    groups: dict[tuple[str, ...], list[Line]] = defaultdict(list)
    for line in lines:
        if line["study"] == "final":
            setting = Setting.from_json(line["setting"])
            groups[(_epsilon(setting), *_cells(setting))].append(line)
    probes = [line for line in lines if line["study"] == "probe"]
    if not (groups or probes):
        return
    yield "## Runs\n"
    header = ("ε", "accuracy", "runs", "ε spent", "noise", "CPU minutes a run", *SHOWN)
    yield markdown(header)
    yield markdown(("---",) * len(header))
    for key, members in sorted(groups.items(), key=lambda item: item[0][0]):
        epsilon, *rest = key
        yield markdown((epsilon, _spread(members), *_costs(members), *rest))
    for line in probes:
        minutes = f"{line['cpu_minutes']:.1f}"
        yield markdown(("frozen probe", f"{line['accuracy']:.4f}", "1", "", "", minutes, *("",) * len(SHOWN)))


def _spread(members: Sequence[Line]) -> str:
    """Return mean ± deviation of the accuracies, and each of them."""
    values = [line["accuracy"] for line in members]
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"**{statistics.mean(values):.4f}**{deviation} ({', '.join(f'{v:.4f}' for v in values)})"


def _costs(members: Sequence[Line]) -> tuple[str, str, str, str]:
    """Return how many runs there were, the epsilon and the noise of each, and their mean CPU minutes."""
    spent, noise = members[0]["spent"], members[0]["noise_multiplier"]
    minutes = statistics.mean(line["cpu_minutes"] for line in members)
    return str(len(members)), "" if spent is None else f"{spent:.3f}", f"{noise:.3f}", f"{minutes:.1f}"


def _grid(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a table of every run of the grid, best first, one table for each target epsilon."""
    targets = sorted({_epsilon(Setting.from_json(line["setting"])) for line in lines})
    for target in targets:
        chosen = [line for line in lines if _epsilon(Setting.from_json(line["setting"])) == target]
        yield f"\n## Grid, ε = {target}, one run each\n"
        header = ("accuracy", "last state", "noise", "clipped", "CPU minutes", *SHOWN, "note")
        yield markdown(header)
        yield markdown(("---",) * len(header))
        for line in sorted(chosen, key=lambda line: -line["accuracy"]):
            figures = (f"{line['accuracy']:.4f}", f"{line['accuracy_of_last']:.4f}")
            costs = (
                f"{line['noise_multiplier']:.3f}",
                f"{line['clipped']:.2f}",
                f"{line['cpu_minutes']:.1f}",
            )
            yield markdown(
                (*figures, *costs, *_cells(Setting.from_json(line["setting"])), line.get("note", ""))
            )


def _epsilon(setting: Setting) -> str:
    """Return a target epsilon as a table shows it."""
    return "no DP" if setting.epsilon is None else f"{setting.epsilon:g}"


def _cells(setting: Setting) -> tuple[str, ...]:
    """Return the shown part of a setting."""
    values = asdict(setting)
    return tuple(_cell(values[name]) for name in SHOWN)


def _cell(value: Any) -> str:
    """Return one value; names are separated by spaces."""
    if isinstance(value, tuple | list):
        return " ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
