"""The study of unequal clients as Markdown: accuracy, the published order, who trained what at which cost, rates."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any

from benchmarks.common import markdown
from benchmarks.heterogeneous_cells import BOUNDS, CELLS, HOLDERS, MAIN, MORE, TIERS
from benchmarks.heterogeneous_order import BUDGETS, PARTITIONS, SEEDS
from benchmarks.heterogeneous_setting import Setting
from benchmarks.methods_task import Budget
from benchmarks.study_tables import (
    ROWS,
    amount,
    best_in_bold,
    difference,
    header,
    in_file_name,
    mean,
    shown_gap,
    title,
)

Line = Mapping[str, Any]
Row = tuple[Budget, str, str]
"""A budget, a partition and a cell."""

WORDS: Mapping[str, str] = {"iid": "i.i.d.", "mixed": "Dirichlet(0.1)", "few": "few labels a client"}

FED_HELLO = ("gd-inverted", "gd-bottleneck", "rgd-bottleneck", "fim")
"""Those of Fed-HeLLo's strategies that have three seeds; the best on validation rows stands for it."""

PUBLISHED = ("fedra", "hetlora", "flexlora")
"""What comes after Fed-HeLLo in its own table, best first."""

INTRODUCTION = f"""# Unequal clients

What follows from these tables is in
[docs/heterogeneous.md](../../docs/heterogeneous.md#what-was-measured). They are made by
`python benchmarks/heterogeneous_study.py page` from `heterogeneous.jsonl`, where every line is a run; `... run --data
DIR` runs what is missing.

* **Model.** MiniLM (all-MiniLM-L6-v2, 6 layers), mean pooling; LoRA of rank 6, α = 12, on query and value of every
  layer, and a trained head that everybody trains.
* **Federation.** 9 clients, 8 rounds of 2 steps, Poisson batches of 16 on average; at ε = 8, 8 rounds of one step and
  batches of 48. Adam without DP, SGD with; clip norm 1, δ = 1e-5.
* **Tiers.** Three clients each have room for a third, two thirds and all of the model: 2, 4, 6 of the 6 layers at rank
  6, or all layers at rank 2, 4, 6: as many coordinates of A and B. Every layer and component has at least {HOLDERS}
  clients, as sums under masks need with one colluder.
* **What becomes of it.** The mean over holders of A and of B (FedIT in parts), for HetLoRA and FlexLoRA their own.
  Layers are scored, for FIM-HLA and Fed-piLot, by Fisher information of 100 held-out rows before every third round.
* **Partitions** have as many rows at every client, so noise and weights are alike: *i.i.d.*; *few labels a client*:
  rows in the order of their labels, cut into nine parts (SST-2: one label each, Banking77: nine or ten of 77); and
  between them labels by Dirichlet(0.1), client by client. Which tier gets which part is drawn.
* **Bounds.** All clients whole; all clients at the smallest tier: the top two layers, or rank 2.
* **Rates**: a grid for every row, data set, ε and, without DP, partition, on held-out training rows with a seed that is
  not compared. Dirichlet takes those of few labels, at ε = 8 both those of i.i.d.; the last two rows those of RGD-HLA,
  bottleneck.
"""


class Runs:
    """Compared runs by row."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._by_row: dict[Row, list[Line]] = defaultdict(list)
        for line in lines:
            if line["study"] == "final":
                setting = Setting.from_json(line["setting"])
                row = ((setting.dataset, setting.epsilon), setting.partition, setting.method)
                self._by_row[row].append(line)

    def of(self, budget: Budget, partition: str, cell: str) -> list[Line]:
        """Return a row's runs."""
        return self._by_row.get((budget, partition, cell), [])

    def accuracies(self, budget: Budget, partition: str, cell: str) -> dict[int, float]:
        """Return test accuracy in per cent by seed; a run that diverged counts as 0."""
        return {line["setting"]["seed"]: 100 * line["accuracy"] for line in self.of(budget, partition, cell)}

    def any_of(self, budget: Budget) -> bool:
        """Whether there is any run of a budget."""
        return any(found[0] == budget for found in self._by_row)


def page(lines: Sequence[Line]) -> str:
    """Return the whole page."""
    runs = Runs(lines)
    parts = [INTRODUCTION, *amount(lines)]
    for budget in BUDGETS:
        if runs.any_of(budget):
            parts += [f"## {title(budget)}\n", f"![Accuracy by row]({plot_file(budget)})\n"]
            parts += _accuracies(runs, budget)
    parts += [*_published(runs, lines), *_costs(runs), *_counts(runs), *_rates(lines)]
    return "\n".join(parts) + "\n"


def plot_file(budget: Budget) -> str:
    """Return the path of a plot, from the page."""
    dataset, epsilon = budget
    return f"heterogeneous/{dataset}-{in_file_name(epsilon)}.svg"


def _accuracies(runs: Runs, budget: Budget) -> Iterator[str]:
    """Yield test accuracy of every row, by partition, and how far it is below all clients whole."""
    rows = ROWS[budget[0]]
    yield (
        f"Test accuracy after the last round in per cent, mean ± deviation over seeds, of {rows:,} rows (one standard "
        f"error of a run near 80 %: {100 * math.sqrt(0.16 / rows):.1f}); in brackets less all clients whole, same "
        f"seeds. {len(SEEDS)} seeds where there is a deviation, else one.\n"
    )
    partitions = (*PARTITIONS, "mixed")
    yield from header("who trains what", *(WORDS[partition] for partition in partitions))
    for cell in (*MAIN, *MORE):
        cells = [_accuracy(runs, budget, partition, cell) for partition in partitions]
        if any(cells):
            yield markdown((CELLS[cell].title, *cells))
    yield ""


def _accuracy(runs: Runs, budget: Budget, partition: str, cell: str) -> str:
    """Return one cell of the table."""
    own = runs.accuracies(budget, partition, cell)
    if not own:
        return ""
    gap = difference(own, runs.accuracies(budget, partition, BOUNDS[0]))
    behind = f" ({gap[0]:+.1f})" if gap is not None and cell != BOUNDS[0] else ""
    return f"{mean(own.values())}{behind}"


def _published(runs: Runs, lines: Sequence[Line]) -> Iterator[str]:
    """Yield the differences of neighbours in Fed-HeLLo's own table."""
    rows = []
    for budget, partition in product(BUDGETS, PARTITIONS):
        best = _best_of(lines, budget, partition, FED_HELLO)
        if best is None:
            continue
        chain = [runs.accuracies(budget, partition, cell) for cell in (best, *PUBLISHED)]
        gaps = [difference(first, second) for first, second in pairwise(chain)]
        if any(gaps):
            rows.append(markdown((title(budget), WORDS[partition], CELLS[best].title, *map(shown_gap, gaps))))
    if rows:
        yield "## The published order\n"
        yield (
            "Fed-HeLLo reports itself ahead of FedRA, that ahead of HetLoRA, and that ahead of FlexLoRA. Test accuracy "
            "less that of the next, in points, mean ± standard error over seeds; for Fed-HeLLo stands the strategy "
            "that was best on validation rows.\n"
        )
        yield from header(
            "data", "partition", "Fed-HeLLo's", "less FedRA", "FedRA less HetLoRA", "HetLoRA less FlexLoRA"
        )
        yield from rows
        yield ""


def _best_of(lines: Sequence[Line], budget: Budget, partition: str, cells: Sequence[str]) -> str | None:
    """Return which of the cells was best on validation rows; None if one of them has no grid."""
    best: dict[str, float] = {}
    for line in lines:
        setting = Setting.from_json(line["setting"])
        if line["study"] == "grid" and ((setting.dataset, setting.epsilon), setting.partition) == (
            budget,
            partition,
        ):
            best[setting.method] = max(best.get(setting.method, 0.0), line["validation"])
    if not set(cells) <= set(best):
        return None
    return max(cells, key=lambda cell: best[cell])


def _costs(runs: Runs) -> Iterator[str]:
    """Yield what a client of each tier trains, and the time it takes, against a whole one."""
    rows = []
    for budget, cell in product(BUDGETS, MAIN):
        mine = runs.of(budget, PARTITIONS[0], cell)
        whole = runs.of(budget, PARTITIONS[0], BOUNDS[0])
        if mine and whole:
            times = _tiers(mine, "tier_seconds")
            reference = statistics.mean(_tiers(whole, "tier_seconds"))
            sizes = [f"{size:,.0f}" for size in _tiers(mine, "trained")]
            shares = [f"{seconds / reference:.2f}" for seconds in times]
            rows.append(markdown((title(budget), CELLS[cell].title, *sizes, *shares)))
    if rows:
        tiers = ("a third", "two thirds", "all")
        yield "## What a client of each tier does\n"
        yield (
            "Trained coordinates, the head's included, and CPU time of a round's steps as a part of what it takes the "
            f"clients of *{CELLS[BOUNDS[0]].title}*; {WORDS[PARTITIONS[0]]}, mean over rounds and seeds.\n"
        )
        yield from header(
            "data", "who trains what", *(f"trained, {t}" for t in tiers), *(f"time, {t}" for t in tiers)
        )
        yield from rows
        yield ""


def _tiers(lines: Sequence[Line], name: str) -> list[float]:
    """Return the mean over runs, tier by tier."""
    return [statistics.mean(line[name][tier] for line in lines) for tier in range(len(TIERS))]


def _counts(runs: Runs) -> Iterator[str]:
    """Yield how many clients trained each layer, mean over the rounds."""
    rows = []
    for cell in (*MAIN, *MORE):
        found = [line["counts"] for p in PARTITIONS for b in BUDGETS for line in runs.of(b, p, cell)]
        if found and not CELLS[cell].by_rank and cell not in BOUNDS:
            rounds = [counts for run in found for counts in run]
            means = [statistics.mean(column) for column in zip(*rounds, strict=True)]
            rows.append((CELLS[cell].title, [f"{mean:.1f}" for mean in means], min(map(min, rounds))))
    if rows:
        yield "## Who trained what\n"
        yield "Clients by layer, the lowest first, mean over rounds and runs; and the fewest that a layer ever had.\n"
        yield from header("who trains what", *(f"layer {i}" for i in range(len(rows[0][1]))), "fewest")
        for name, means, fewest in rows:
            yield markdown((name, *means, str(fewest)))
        yield ""


def _rates(lines: Sequence[Line]) -> Iterator[str]:
    """Yield validation accuracy by rate, the chosen in bold."""
    grids: dict[Row, dict[float, float]] = defaultdict(dict)
    for line in lines:
        if line["study"] == "grid":
            setting = Setting.from_json(line["setting"])
            row: Row = ((setting.dataset, setting.epsilon), setting.partition, setting.method)
            grids[row][setting.learning_rate] = line["validation"]
    if not grids:
        return
    yield "## Rates\n"
    yield "Validation accuracy in per cent by learning rate, one run each; the best is bold.\n"
    yield from header("data", "partition", "who trains what", "rate: accuracy")
    for budget, partition, cell in product(BUDGETS, PARTITIONS, MAIN):
        if found := grids.get((budget, partition, cell)):
            yield markdown((title(budget), WORDS[partition], CELLS[cell].title, best_in_bold(found)))
    yield ""
