"""What the study of unequal clients runs, in which order; rates are chosen from the lines that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any, Literal

from benchmarks.heterogeneous_cells import MAIN, MORE, SEEDED
from benchmarks.heterogeneous_setting import Setting
from benchmarks.methods_order import Line, changed, choose, found, missing
from benchmarks.methods_task import Budget, Partition

Study = Literal["grid", "final"]

BUDGETS: tuple[Budget, ...] = (("banking77", None), ("sst2", None), ("banking77", 8.0), ("sst2", 8.0))
"""In the order in which they are run."""

NOISED: Mapping[str, Any] = {"batch": 48, "steps": 1}
"""What differs at ε = 8: larger batches bear the noise better."""

PARTITIONS: tuple[Partition, ...] = ("iid", "few")
"""Those of the main rows: alike, and as unlike as they can be."""


KIN: Mapping[str, str] = dict.fromkeys(MORE, "rgd-bottleneck")
"""Whose best rate the cells of one seed take."""

SEEDS = (0, 1, 2)
GRID_SEED = 9

FIRST_RATES: Mapping[float | None, tuple[float, ...]] = {None: (3e-3, 1e-2), 8.0: (1.0, 3.0)}
"""The rates that a grid begins with: of Adam without DP, of SGD with."""


def wanted(
    lines: Sequence[Line],
    datasets: Sequence[str],
    cells: Sequence[str] | None = None,
    changes: Mapping[str, str] | None = None,
    epsilons: Sequence[float | None] = (None, 8.0),
    rates_of: Sequence[Line] | None = None,
) -> list[tuple[Study, Setting]]:
    """Return what can be run now and is not there yet, most urgent first.

    Args:
        lines: what is there.
        datasets: of these only.
        cells: of these only; None for all.
        changes: texts for fields of every setting.
        epsilons: of these only.
        rates_of: another study's lines, whose rates are taken; None to choose them anew.
    """
    budgets = [budget for budget in BUDGETS if budget[0] in datasets and budget[1] in epsilons]
    named = [c for c in (*MAIN, *MORE) if cells is None or c in cells]
    order = _Order(lines if rates_of is None else rates_of, changes or {}, named, chosen=rates_of is not None)
    return missing(order.all(budgets), lines)


class _Order:
    """All runs that the lines so far allow, in order."""

    def __init__(
        self, lines: Sequence[Line], changes: Mapping[str, str], cells: Sequence[str], *, chosen: bool
    ) -> None:
        self._grids = [line for line in lines if line["study"] == "grid"]
        self._changes, self._chosen = changes, chosen
        self._main = [cell for cell in MAIN if cell in cells]
        self._seeded = [cell for cell in SEEDED if cell in cells]
        self._more = [cell for cell in MORE if cell in cells]

    def all(self, budgets: Sequence[Budget]) -> Iterator[tuple[Study, Setting]]:
        """Yield rates and first seeds of the rows of three seeds, their other seeds; then the other rows and splits."""
        for budget in budgets:
            yield from self._rates(budget, self._seeded)
            yield from self._finals(budget, PARTITIONS, self._seeded, SEEDS[0])
        for budget, seed in product(budgets, SEEDS[1:]):
            yield from self._finals(budget, PARTITIONS, self._seeded, seed)
        for budget in budgets:
            yield from self._rates(budget, [*self._main, *(KIN[cell] for cell in self._more)])
            yield from self._finals(budget, PARTITIONS, self._main, SEEDS[0])
        for budget in budgets:
            yield from self._finals(budget, ("mixed",), self._main, SEEDS[0])
        for budget in budgets:
            yield from self._finals(budget, PARTITIONS, self._more, SEEDS[0])

    def _rates(self, budget: Budget, cells: Sequence[str]) -> Iterator[tuple[Study, Setting]]:
        """Yield the rates that are missing before the best ones are known; none where they are another study's."""
        if self._chosen:
            return
        searched = dict.fromkeys(_searched(budget, partition) for partition in PARTITIONS)
        for partition, cell in product(searched, cells):
            for rate in self._state(budget, partition, cell)[1]:
                yield "grid", self._setting(budget, partition, cell, rate, GRID_SEED)

    def _finals(
        self, budget: Budget, partitions: Sequence[Partition], cells: Sequence[str], seed: int
    ) -> Iterator[tuple[Study, Setting]]:
        """Yield the compared runs of one seed whose rate is known."""
        for partition, cell in product(partitions, cells):
            rate, _ = self._state(budget, _searched(budget, partition), KIN.get(cell, cell))
            if rate is not None:
                yield "final", self._setting(budget, partition, cell, rate, seed)

    def _state(
        self, budget: Budget, partition: Partition, cell: str
    ) -> tuple[float | None, tuple[float, ...]]:
        """Return the best rate, or None and the rates to run first."""
        template = self._setting(
            budget, partition, cell, 0.0, GRID_SEED, changes={} if self._chosen else None
        )
        return choose(found(self._grids, asdict(template)), FIRST_RATES[budget[1]])

    def _setting(
        self,
        budget: Budget,
        partition: Partition,
        cell: str,
        rate: float,
        seed: int,
        changes: Mapping[str, str] | None = None,
    ) -> Setting:
        """Return one setting with these changes, or those that were asked for."""
        dataset, epsilon = budget
        optimizer = "adam" if epsilon is None else "sgd"
        setting = Setting(dataset, cell, rate, epsilon, partition, seed, optimizer=optimizer)
        setting = setting if epsilon is None else replace(setting, **NOISED)
        return changed(setting, self._changes if changes is None else changes)


def _searched(budget: Budget, partition: Partition) -> Partition:
    """Return in whose grid a partition's rate is chosen: under DP it is the noise that decides, here as there."""
    return "iid" if partition == "iid" or budget[1] is not None else "few"
