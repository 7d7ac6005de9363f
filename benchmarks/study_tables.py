"""What the studies' tables share: names of data sets, means over seeds, differences seed by seed, the best rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.common import markdown
from benchmarks.methods_task import Budget

TITLES: Mapping[str, str] = {"sst2": "SST-2", "trec": "TREC", "banking77": "Banking77"}
ROWS: Mapping[str, int] = {"sst2": 872, "trec": 500, "banking77": 3080}
"""Test rows."""

Gap = tuple[float, float | None]
"""A mean difference and its standard error; None for that of a single pair."""


def title(budget: Budget) -> str:
    """Return a data set and ε as the page names them."""
    dataset, epsilon = budget
    return f"{TITLES[dataset]}, {'no DP' if epsilon is None else f'ε = {epsilon:g}'}"


def in_file_name(epsilon: float | None) -> str:
    """Return ε as the names of plots have it."""
    return "none" if epsilon is None else f"{epsilon:g}"


def header(*cells: str) -> Iterator[str]:
    """Yield a table's header; a cell may stand for several columns, with | between them."""
    line = markdown(cells)
    yield line
    yield markdown(("---",) * (line.count("|") - 1))


def amount(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line on how much was run, of a study of grids and compared runs."""
    if lines:
        hours = sum(line["cpu_minutes"] for line in lines) / 60
        grids = sum(line["study"] == "grid" for line in lines)
        yield f"Run so far: {grids} runs to choose rates, {len(lines) - grids} compared; {hours:.1f} CPU hours.\n"


def mean(values: Iterable[float]) -> str:
    """Return mean ± deviation.

    >>> mean([80.0, 82.0]), mean([80.0])
    ('81.0 ± 1.4', '80.0')
    """
    found = list(values)
    deviation = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.1f}{deviation}"


def mean_gap(gaps: Sequence[float]) -> Gap | None:
    """Return the mean of differences and its standard error; None of none."""
    if not gaps:
        return None
    return statistics.mean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Gap | None:
    """Return the mean of ours less theirs, seed by seed, and its standard error; None without a common seed."""
    return mean_gap([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def shown_gap(gap: Gap | None) -> str:
    """Return a difference and its standard error.

    >>> shown_gap((1.25, 0.5)), shown_gap((-1.0, None)), shown_gap(None)
    ('+1.2 ± 0.5', '-1.0', '')
    """
    if gap is None:
        return ""
    return f"{gap[0]:+.1f}" + ("" if gap[1] is None else f" ± {gap[1]:.1f}")


def best_in_bold(found: Mapping[float, float]) -> str:
    """Return accuracy in per cent by what was searched, the best in bold; of equals, that of the smallest value.

    >>> best_in_bold({0.1: 0.5, 0.03: 0.7})
    '**0.03: 70.0**, 0.1: 50.0'
    """
    best = max(sorted(found), key=lambda value: found[value])
    cells = ((value, f"{value:g}: {100 * found[value]:.1f}") for value in sorted(found))
    return ", ".join(f"**{cell}**" if value == best else cell for value, cell in cells)
