"""The communication study's runs by row: what makes a row, its name, its accuracies and its bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from benchmarks.communication_bytes import RING, RoundBytes, dense_bytes, round_bytes
from benchmarks.communication_order import BUDGETS, Cell
from benchmarks.communication_setting import Setting
from benchmarks.methods_task import Budget
from benchmarks.study_tables import Gap, difference

Line = Mapping[str, Any]
Key = tuple[object, ...]
"""What makes a row: how changes travel and what is trained, whatever the rates and the seed."""

DENSE = Cell("dense", {"value_bits": None})
"""What everything is held against: dense LoRA, float32, in the clear."""


class Runs:
    """Compared runs by budget and row."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._by_row: dict[tuple[Budget, Key], list[tuple[Setting, Line]]] = defaultdict(list)
        for line in lines:
            if line["study"] == "final":
                setting = Setting.from_json(line["setting"])
                self._by_row[(setting.dataset, setting.epsilon), row_key(setting)].append((setting, line))

    def of(self, budget: Budget, cell: Cell) -> list[tuple[Setting, Line]]:
        """Return a cell's runs by seed."""
        found = self._by_row.get((budget, row_key(setting_of(budget, cell))), [])
        return sorted(found, key=lambda pair: pair[0].seed)

    def accuracies(self, budget: Budget, cell: Cell) -> dict[int, float]:
        """Return test accuracy in per cent by seed; a run that diverged has none, and counts as 0."""
        return {setting.seed: 100 * (line["accuracy"] or 0.0) for setting, line in self.of(budget, cell)}

    def sizes(self, budget: Budget, cell: Cell, neighbours: int | None = RING) -> RoundBytes | None:
        """Return the bytes of a cell's client and round; None without a run, which has the dimension."""
        found = self.of(budget, cell)
        return None if not found else round_bytes(found[0][0], found[0][1]["coordinates"], neighbours)

    def times_less(self, budget: Budget, cell: Cell, neighbours: int | None = RING) -> float | None:
        """Return how many times less than dense float32 LoRA is uploaded."""
        sizes, found = self.sizes(budget, cell, neighbours), self.of(budget, cell)
        return None if sizes is None else dense_bytes(found[0][1]["coordinates"]) / sizes.uploaded


def shown_density(density: float) -> str:
    """Return a density as the page names it.

    >>> shown_density(1.0), shown_density(1 / 16)
    ('1', '1/16')
    """
    return "1" if density == 1 else f"1/{1 / density:g}"


def shown(cell: Cell) -> str:
    """Return a cell in words."""
    setting = setting_of(BUDGETS[0], cell)
    density = shown_density(setting.density)
    if setting.method == "flasc":
        return f"FLASC, {density}"
    extras = [
        "FFA-LoRA" if setting.method == "ffa" else "",
        "dense" if setting.support == "dense" else f"{setting.support}, {density}",
        f"{setting.value_bits or 32} bits",
        "feedback" if setting.feedback else "",
        "trains the support" if setting.train == "support" else "",
        "" if setting.download_density == 1 else f"download {shown_density(setting.download_density)}",
    ]
    return ", ".join(filter(None, extras))


def less_dense(runs: Runs, budget: Budget, cell: Cell) -> Gap | None:
    """Return the mean of test accuracy less dense LoRA's, seed by seed, in points, and its standard error."""
    dense, own = runs.accuracies(budget, DENSE), runs.accuracies(budget, cell)
    return difference(own, dense)


def setting_of(budget: Budget, cell: Cell) -> Setting:
    """Return a cell's setting, rates and seed apart."""
    plain = Setting(budget[0], "fedit", 0.0, budget[1], "iid", 0)
    return replace(plain, **cell.changes)


def row_key(setting: Setting) -> Key:
    """Return what makes a row."""
    return (
        setting.method, setting.support, setting.density, setting.value_bits, setting.feedback, setting.train,
        setting.download_density,
    )  # fmt: skip
