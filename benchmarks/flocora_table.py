"""The table of FLoCoRA's setting in small."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.flocora_net import read
from benchmarks.flocora_setting import WAYS, Setting
from benchmarks.flocora_ways import session_bytes, value_bytes

NAMES = {
    "full": "all weights",
    "lora": "LoRA",
    "masked": "LoRA, masked",
    "feedback": "LoRA, masked, with error feedback",
    "flocora": "LoRA, FLoCoRA's rounding (not maskable)",
}

INTRODUCTION = """# LoRA on convolutions, MNIST

FLoCoRA's setting in small, without DP. Made by `python benchmarks/flocora_mnist.py page` from `flocora.jsonl`, where
every line is a run; `... run --data DIR` runs what is missing. What follows from it is in
[docs/communication-study.md](../../docs/communication-study.md).
"""

NOTES = """
*Bytes* are of a client's values (for FLoCoRA of its scales, too) in one round, and *times less* against all weights in
float32. *With keys* is everything that it uploads to a masked session: keys, shares and framing, for one colluder and a
ring of 4 neighbours. Those are as many whatever the model: at 4 bits almost half of what this small net sends, and
nothing beside a large one. Masked sums hold four bits more than a value, for ten clients. Accuracy: after the last
round, mean ± deviation over seeds; *below* is against all weights with the same seeds. For 10,000 images alone a
run's standard error is about .2. Rates were chosen by hand, see there.
"""


def text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the page: a table for every setting that has runs, those with the most first."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault(_common(Setting(**line["setting"])), []).append(line)
    parts = [INTRODUCTION]
    for common, runs in sorted(groups.items(), key=lambda group: -len(group[1])):
        parts.append(f"\n{common}\n\n{_table(runs)}\n")
    spent = sum(line["seconds"] for line in lines) / 60
    return "".join(parts) + NOTES + f"\nRuns: {len(lines)}, {spent:.1f} CPU minutes.\n"


def _common(setting: Setting) -> str:
    """Return what the rows of one table share, in words."""
    return (
        f"Rank {setting.rank}, α = 16 × rank. {setting.images} images over {setting.clients} clients, which\n"
        f"all take part, in Dirichlet({setting.skew:g}) shares of each label; {setting.rounds} rounds, each\n"
        f"{setting.epochs} × through its rows in batches of {setting.batch}. SGD with momentum .9,\n"
        f"rates along a cosine: {setting.full_rate:g} for all weights; {setting.learning_rate:g} for LoRA and\n"
        f"{setting.rest_rate:g} for what is trained beside it. {setting.test_images} test images."
    )


def _table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of one table."""
    reached: dict[tuple[str, int], dict[int, float]] = {}
    for line in runs:
        setting = Setting(**line["setting"])
        reached.setdefault((setting.way, setting.bits), {})[setting.seed] = line["accuracy"]
    whole = reached.get(("full", 32), {})
    rows = [
        "| sent | bits | bytes | times less | with keys | times less | accuracy % | below, points | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    some = Setting(**runs[0]["setting"])
    for way, bits in sorted(WAYS, key=lambda row: (list(NAMES).index(row[0]), -row[1])):
        found = reached.get((way, bits))
        if found is None:
            continue
        less = [100 * (whole[seed] - value) for seed, value in found.items() if seed in whole]
        below = "" if way == "full" or not less else _spread(less)
        points = _spread([100 * value for value in found.values()])
        rows.append(
            f"| {NAMES[way]} | {bits} | {_bytes(way, bits, some)} | {points} | {below} | {len(found)} |"
        )
    return "\n".join(rows)


def _bytes(way: str, bits: int, some: Setting) -> str:
    """Return the four columns about bytes."""
    net = Setting(way, bits, some.seed, rank=some.rank).net()
    values = value_bytes(way, net, bits, some.clients)
    whole = 4 * read(Setting("full", 32, some.seed).net()).size
    cells = f"{values:,} | {whole / values:.1f}"
    if way not in ("masked", "feedback"):
        return f"{cells} | |"
    everything = session_bytes(net, bits, some.clients)
    return f"{cells} | {everything:,} | {whole / everything:.1f}"


def _spread(values: Sequence[float]) -> str:
    """Return mean ± deviation, or the one value."""
    mean = statistics.fmean(values)
    return f"{mean:.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"
