"""What the communication study runs, in which order; rates are chosen from the lines that are there.

A *family* is what shares its rates: dense changes, a `server-topk` support, training on the support alone, and so on.
A *cell* is a row of the tables: a family, and what travels. Corner cells have three seeds, the others one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Literal

from benchmarks.communication_setting import Setting
from benchmarks.methods_order import Line, changed, choose, found, missing
from benchmarks.methods_task import Budget

Study = Literal["grid", "final"]

BUDGETS: tuple[Budget, ...] = (("sst2", 8.0), ("sst2", None), ("banking77", None), ("banking77", 8.0))
"""In the order in which they are run."""

OWN: Mapping[Budget, Mapping[str, Any]] = {("banking77", 8.0): {"batch": 128}}
"""What differs from the other runs: with 900 rows a client the noise is twice as much, and larger batches bear it."""

SEEDS = (0, 1, 2)
GRID_SEED = 9

DENSITIES = (1 / 4, 1 / 16, 1 / 64)
SUPPORTS = ("server-topk", "seeded-random-k", "voted-topk")
BITS = (None, 8, 4)

SPARSE: Mapping[str, Any] = {"support": "server-topk", "density": 1 / 16, "value_bits": 4}
"""What rates of sparse families are chosen at."""

DP_RATES, PLAIN_RATES = (1.0, 3.0, 10.0), (3e-3, 1e-2, 3e-2)
"""The learning rates that grids begin with: of SGD under DP, and of Adam without."""

SERVER_RATES = (3e-3, 1e-2, 3e-2)
POWERS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Family:
    """Runs that share what is searched for them.

    Args:
        changes: of the setting, in its grid.
        field: what is searched; None takes all of `after`'s.
        after: the family whose best rates it starts from.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    field: str | None = "learning_rate"
    after: str | None = None


FAMILIES: Mapping[str, Family] = {
    "dense": Family(),
    "topk": Family(SPARSE),
    "flasc": Family({"method": "flasc", "density": 1 / 16}, "server_rate", "dense"),
    "random": Family({**SPARSE, "support": "seeded-random-k"}, "server_power", "dense"),
    "support": Family({**SPARSE, "train": "support"}),
    "ffa": Family({"method": "ffa"}),
    "feedback": Family({}, None, "topk"),
}


@dataclass(frozen=True)
class Cell:
    """One row of the tables."""

    family: str
    changes: Mapping[str, Any]


def _cell(
    family: str, support: str = "dense", density: float = 1.0, bits: int | None = 4, **more: Any
) -> Cell:
    return Cell(family, {"support": support, "density": density, "value_bits": bits, **more})


def _shared(support: str, density: float, bits: int | None = 4) -> Cell:
    """Return a cell of a shared support, without feedback, all of it trained."""
    return _cell("random" if support == "seeded-random-k" else "topk", support, density, bits)


def _flasc(density: float) -> Cell:
    return Cell("flasc", {"method": "flasc", "density": density})


CORNERS: tuple[Cell, ...] = (
    _cell("dense", bits=None),
    _shared("server-topk", 1 / 16),
    _shared("server-topk", 1 / 4),
    _cell("dense"),
    _flasc(1 / 16),
    _shared("voted-topk", 1 / 16),
    _shared("server-topk", 1 / 64),
    _cell("support", "server-topk", 1 / 16, train="support"),
)
"""Three seeds each."""


TELLING: tuple[Cell, ...] = (
    _cell("feedback", "server-topk", 1 / 16, feedback=True),
    _cell("feedback", "seeded-random-k", 1 / 16, feedback=True),
    _cell("feedback", "voted-topk", 1 / 16, feedback=True),
    _shared("seeded-random-k", 1 / 16),
    _cell("support", "server-topk", 1 / 64, train="support"),
    _cell("support", "seeded-random-k", 1 / 16, train="support"),
    _shared("seeded-random-k", 1 / 4),
    _flasc(1 / 4),
    _flasc(1 / 64),
)
"""One seed each, right after a budget's corners."""


def _table() -> Iterator[Cell]:
    """Yield all supports, densities and bits."""
    yield _cell("dense", bits=8)
    yield _flasc(1.0)
    for density, support, bits in product((1 / 16, 1 / 64, 1 / 4), SUPPORTS, (4, 8, None)):
        yield _shared(support, density, bits)


def _extras() -> Iterator[Cell]:
    """Yield what else there is to choose, the most telling first."""
    yield from (_cell("topk", "server-topk", 1 / 16, download_density=down) for down in (1 / 4, 1 / 16))
    for density, support in product((1 / 64, 1 / 4), SUPPORTS):
        yield _cell("feedback", support, density, feedback=True)
        if support != "voted-topk":
            yield _cell("support", support, density, train="support")
    yield _cell("ffa", bits=None, method="ffa")
    yield from (_cell("ffa", "server-topk", density, method="ffa") for density in (1 / 4, 1 / 16))


TABLE: tuple[Cell, ...] = tuple(cell for cell in _table() if cell not in (*CORNERS, *TELLING))
"""One seed each, once all budgets have theirs."""

EXTRAS: tuple[Cell, ...] = tuple(cell for cell in _extras() if cell not in (*CORNERS, *TELLING))
"""One seed each, last."""

OTHERS = (*TABLE, *EXTRAS)


def wanted(
    lines: Sequence[Line],
    datasets: Sequence[str],
    skipped: Sequence[str] = (),
    changes: Mapping[str, str] | None = None,
) -> list[tuple[Study, Setting]]:
    """Return what can be run now and is not there yet, most urgent first.

    Args:
        lines: what is there.
        datasets: of these only.
        skipped: families that are left out.
        changes: texts for fields of every setting.
    """
    order = _Order(lines, changes or {})
    return missing(order.all([b for b in BUDGETS if b[0] in datasets], skipped), lines)


class _Order:
    """All runs that the lines so far allow, in order."""

    def __init__(self, lines: Sequence[Line], changes: Mapping[str, str]) -> None:
        self._grids = [line for line in lines if line["study"] == "grid"]
        self._changes = changes

    def all(self, budgets: Sequence[Budget], skipped: Sequence[str]) -> Iterator[tuple[Study, Setting]]:
        """Yield each budget's corners and telling cells with the rates they need, then the table, then extras."""
        for budget in budgets:
            yield from self._cells(budget, CORNERS, SEEDS, skipped)
            yield from self._cells(budget, TELLING, SEEDS[:1], skipped)
        for cells, budget in product((TABLE, EXTRAS), budgets):
            yield from self._cells(budget, cells, SEEDS[:1], skipped)

    def _cells(
        self, budget: Budget, cells: Iterable[Cell], seeds: Sequence[int], skipped: Sequence[str]
    ) -> Iterator[tuple[Study, Setting]]:
        """Yield the rates that are missing, and the compared runs whose rates are known, seed by seed."""
        mine = [cell for cell in cells if cell.family not in skipped]
        for family in dict.fromkeys(cell.family for cell in mine):
            yield from (("grid", setting) for setting in self._searched(budget, family)[1])
        for seed, cell in product(seeds, mine):
            best, _ = self._searched(budget, cell.family)
            if best is not None:
                yield "final", replace(best, seed=seed, **cell.changes)

    def _searched(self, budget: Budget, name: str) -> tuple[Setting | None, list[Setting]]:
        """Return a setting with the family's best rates, otherwise plain; or None, and what to run before."""
        family = FAMILIES[name]
        base, missing = (
            (self._plain(budget), []) if family.after is None else self._searched(budget, family.after)
        )
        if base is None or family.field is None:
            return base, missing
        template = replace(base, seed=GRID_SEED, **family.changes)
        best, values = _best(self._grids, template, family.field)
        runs = [_with(template, family.field, value) for value in values]
        return (None, runs) if best is None else (_with(base, family.field, best), [])

    def _plain(self, budget: Budget) -> Setting:
        """Return a dense run of a budget whose rates are not chosen yet, with the changes that were asked for."""
        dataset, epsilon = budget
        optimizer = "adam" if epsilon is None else "sgd"
        setting = Setting(dataset, "fedit", 0.0, epsilon, "iid", GRID_SEED, optimizer=optimizer)
        setting = replace(setting, **OWN.get(budget, {}))
        return changed(setting, self._changes)


def _with(setting: Setting, name: str, value: float) -> Setting:
    """Return a setting with another value of one field."""
    change: dict[str, Any] = {name: value}
    return replace(setting, **change)


def _best(grids: Iterable[Line], template: Setting, name: str) -> tuple[float | None, tuple[float, ...]]:
    """Return the best value of the field that is searched, or None and the values to run first."""
    there = found(grids, asdict(template), name)
    if name == "server_power":
        missing = tuple(value for value in POWERS if value not in there)
        return (None, missing) if missing else (max(sorted(there), key=lambda value: there[value]), ())
    plain = DP_RATES if template.epsilon is not None else PLAIN_RATES
    return choose(there, SERVER_RATES if name == "server_rate" else plain)
