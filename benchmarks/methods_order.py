"""What the methods study runs, in which order; rates are chosen from the lines that are there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any, Literal, TypeVar, cast

from benchmarks.methods_list import KIN, MAIN
from benchmarks.methods_runs import Setting
from benchmarks.methods_task import Name, Partition
from benchmarks.resumable import text
from benchmarks.sst2_study import parsed
from fedlora_priv.errors import DataError
from fedlora_priv.precision import BaseDtype

K = TypeVar("K", bound=str)
S = TypeVar("S", bound=Setting)

Line = Mapping[str, Any]
Study = Literal["grid", "final", "wire"]
"""A rate on the validation rows; a compared run; a compared run whose sums are integers, as they travel masked."""

PRIVACY: tuple[float | None, ...] = (None, 8.0, 3.0)
PARTITIONS: tuple[Partition, ...] = ("iid", "skewed")
SEEDS = (0, 1, 2)
GRID_SEED = 9

OPTIMIZERS: Mapping[float | None, str] = {None: "adam", 8.0: "sgd", 3.0: "sgd"}
"""The clients' optimiser: under DP, noise makes Adam's steps as large as signal does."""

LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""The rates that may be tried, as a ladder: a grid is some neighbouring rungs."""

FIRST_RATES: Mapping[float | None, tuple[float, ...]] = {
    None: (1e-2, 3e-2, 0.1), 8.0: (1.0, 3.0, 10.0), 3.0: (1.0, 3.0, 10.0)
}  # fmt: skip
"""The rates that a main method's grid begins with."""

OWN_GRID = ("flora", "rolora", "fedsa", "fed-sb", "rac-lora")
"""Other methods with a grid of their own, of the rates around their kin's best; the rest take their kin's best."""

CHANGES_BASE = ("flora", "fedex", "rac-lora")
"""Methods that add to the base weights, which bfloat16 would round away."""

WIRE = (("ffa", 16), ("fra", 16), ("ffa", 8), ("fra", 8))
"""Methods and value bits that are run as they travel, on the first data set, ε = 8, i.i.d., first seed."""


def wanted(
    lines: Sequence[Line], datasets: Sequence[str], methods: Sequence[str] | None, changes: Mapping[str, str]
) -> list[tuple[Study, Setting]]:
    """Return what can be run now and is not there yet, most urgent first.

    Args:
        lines: what is there.
        datasets, methods: to these only; None for all methods. A kin's rates are found all the same.
        changes: texts for fields of every setting.
    """
    chosen = [m for m in (*MAIN, *KIN) if methods is None or m in methods]
    order = _Order(lines, datasets, chosen, changes)
    return missing(order.all(), lines)


class _Order:
    """All runs that the lines so far allow, in order."""

    def __init__(
        self,
        lines: Sequence[Line],
        datasets: Sequence[str],
        methods: Sequence[str],
        changes: Mapping[str, str],
    ) -> None:
        self._datasets, self._methods, self._changes = datasets, methods, changes
        self._grids = [line for line in lines if line["study"] == "grid"]

    def all(self) -> Iterator[tuple[Study, Setting]]:
        """Yield the main methods' grids and compared runs, the sums as they travel, the others'."""
        main = [m for m in MAIN if m in self._methods or any(KIN.get(other) == m for other in self._methods)]
        others = [m for m in KIN if m in self._methods]
        yield from self._grid(main)
        compared = [m for m in main if m in self._methods]
        yield from self._finals(compared, SEEDS[0])
        yield from self._wire(compared)
        for seed in SEEDS[1:]:
            yield from self._finals(compared, seed)
        yield from self._grid([m for m in others if m in OWN_GRID])
        yield from self._finals(others, SEEDS[0])

    def _grid(self, methods: Iterable[str]) -> Iterator[tuple[Study, Setting]]:
        """Yield the rates that are missing before a best one is known."""
        for name, method, epsilon in product(self._datasets, methods, PRIVACY):
            _, missing = self._state(name, method, epsilon)
            for rate in missing:
                yield "grid", self._setting(name, method, rate, epsilon, "iid", GRID_SEED)

    def _finals(self, methods: Iterable[str], seed: int) -> Iterator[tuple[Study, Setting]]:
        """Yield the compared runs of one seed whose rate is known."""
        for name, epsilon, partition, method in product(self._datasets, PRIVACY, PARTITIONS, methods):
            rate = self._best(name, method, epsilon)
            if rate is not None:
                yield "final", self._setting(name, method, rate, epsilon, partition, seed)

    def _wire(self, methods: Sequence[str]) -> Iterator[tuple[Study, Setting]]:
        """Yield the runs whose sums are integers."""
        for method, bits in WIRE:
            if method in methods and (rate := self._best(self._datasets[0], method, 8.0)) is not None:
                setting = self._setting(self._datasets[0], method, rate, 8.0, "iid", SEEDS[0])
                yield "wire", replace(setting, value_bits=bits)

    def _best(self, name: str, method: str, epsilon: float | None) -> float | None:
        """Return the rate that a method is compared at, once it is known."""
        searched = method if method in MAIN or method in OWN_GRID else KIN[method]
        return self._state(name, searched, epsilon)[0]

    def _state(self, name: str, method: str, epsilon: float | None) -> tuple[float | None, tuple[float, ...]]:
        """Return the best rate, or None and the rates to run first."""
        if method in MAIN:
            first = FIRST_RATES[epsilon]
        else:
            kin, _ = self._state(name, KIN[method], epsilon)
            if kin is None:
                return None, ()
            at = LADDER.index(kin)
            first = LADDER[max(0, at - 1) : at + 2]
        template = asdict(self._setting(name, method, 0.0, epsilon, "iid", GRID_SEED))
        return choose(found(self._grids, template), first)

    def _setting(
        self, name: str, method: str, rate: float, epsilon: float | None, partition: Partition, seed: int
    ) -> Setting:
        """Return one setting with the changes that were asked for."""
        optimizer = OPTIMIZERS[epsilon]
        dtype: BaseDtype = "float32" if method in CHANGES_BASE else "bfloat16"
        setting = Setting(
            cast(Name, name), method, rate, epsilon, partition, seed, optimizer=optimizer, base_dtype=dtype
        )
        return changed(setting, self._changes)


def missing(runs: Iterable[tuple[K, S]], lines: Iterable[Line]) -> list[tuple[K, S]]:
    """Return those runs, each once, that no line is of, in their order."""
    there = {text(line["study"], line["setting"]) for line in lines}
    return list(dict.fromkeys(run for run in runs if text(run[0], asdict(run[1])) not in there))


def changed(setting: S, changes: Mapping[str, str]) -> S:
    """Return a setting with other values of some fields, given as texts.

    Raises:
        DataError: there is no such field, or a text is no value of it.
    """
    if unknown := sorted(changes.keys() - asdict(setting).keys()):
        raise DataError(f"a setting has no {unknown[0]!r}", f"name one of {', '.join(asdict(setting))}")
    values = {name: parsed(getattr(setting, name), value, name) for name, value in changes.items()}
    return replace(setting, **values)


def found(
    grids: Iterable[Line], template: Mapping[str, Any], name: str = "learning_rate"
) -> dict[float, float]:
    """Return validation accuracy by rate, of the lines that differ from `template` in nothing but the rate.

    Args:
        name: the field that is searched for.
    """
    wanted = json.loads(json.dumps({**template, name: None}))
    return {
        line["setting"][name]: line["validation"]
        for line in grids
        if {**line["setting"], name: None} == wanted
    }


def choose(found: Mapping[float, float], first: Sequence[float]) -> tuple[float | None, tuple[float, ...]]:
    """Return the best rate, or None and the rates to run before it is known.

    The best must not be at the edge of what was tried, unless the ladder ends there. Of equals, the smallest.

    >>> choose({0.1: 0.5, 0.3: 0.7, 1.0: 0.8}, (0.1, 0.3, 1.0))
    (None, (3.0,))
    >>> choose({0.1: 0.5, 0.3: 0.7, 1.0: 0.8, 3.0: 0.6}, (0.1, 0.3, 1.0))
    (1.0, ())
    """
    missing = tuple(rate for rate in first if rate not in found)
    if missing:
        return None, missing
    best = max(sorted(found), key=lambda rate: found[rate])
    at = LADDER.index(best)
    beyond = {*LADDER[max(0, at - 1) : at + 2]} - set(found)
    return (None, tuple(sorted(beyond))) if beyond else (best, ())
