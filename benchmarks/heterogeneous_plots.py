"""The plots of the study of unequal clients: test accuracy by row, one SVG for each data set and ε."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.heterogeneous_cells import MAIN, MORE
from benchmarks.heterogeneous_order import BUDGETS, PARTITIONS
from benchmarks.heterogeneous_tables import WORDS, Line, Runs, plot_file
from benchmarks.methods_task import Budget
from benchmarks.study_tables import title
from fedlora_priv.reports import svg
from fedlora_priv.reports.markup import Markup, element
from fedlora_priv.reports.svg import RIGHT, WIDTH, Scale

LEFT, TOP, ROW = 112, 42, 22
"""Room for names and for the legend, and a row's height."""

SHOWN = (*PARTITIONS, "mixed")

STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; }
text { fill: #5a6675; } .end { text-anchor: end; } .middle { text-anchor: middle; } .title { font-weight: 600; }
.grid { stroke: #e9edf2; } .span { stroke-width: 1.2; }
.iid { fill: #2459c9; stroke: #2459c9; } .few { fill: #c0261b; stroke: #c0261b; }
.mixed { fill: #2f8a5b; stroke: #2f8a5b; }
"""
"""Light on purpose: an image cannot ask the page around it."""


def plots(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """Yield the path, from the page, and the SVG of every plot that there are runs for."""
    runs = Runs(lines)
    for budget in BUDGETS:
        if runs.any_of(budget):
            yield plot_file(budget), _plot(runs, budget)


def _plot(runs: Runs, budget: Budget) -> Markup:
    """Return one plot: a line for each row, a dot for each partition, with a span from smallest to largest seed."""
    rows = [cell for cell in (*MAIN, *MORE) if any(runs.of(budget, p, cell) for p in SHOWN)]
    every = [v for cell in rows for p in SHOWN for v in runs.accuracies(budget, p, cell).values()]
    marks = svg.ticks(min(every), max(every))
    x = Scale(marks[0], marks[-1], LEFT, WIDTH - RIGHT - 10)
    bottom = TOP + ROW * len(rows)
    parts: list[Markup] = [
        element("style", Markup(STYLE)),
        svg.text(f"{title(budget)}: test accuracy", 10, 14, "title"),
        *_legend(),
    ]
    for mark in marks:
        parts.append(element("line", x1=x(mark), x2=x(mark), y1=TOP, y2=bottom, class_="grid"))
        parts.append(svg.text(f"{mark:g} %", x(mark), bottom + 16, "tick middle"))
    for place, cell in enumerate(rows):
        parts += _row(runs, budget, cell, x, TOP + ROW * (place + 0.5))
    described = "A dot is the mean over seeds, its span the smallest and the largest."
    return svg.figure(f"{title(budget)}: accuracy by row", described, *parts, height=bottom + 24)


def _row(runs: Runs, budget: Budget, cell: str, x: Scale, y: float) -> Iterator[Markup]:
    """Yield a row's name, dots and spans."""
    yield svg.text(cell, LEFT - 8, y + 4, "end")
    for place, partition in enumerate(SHOWN):
        found = list(runs.accuracies(budget, partition, cell).values())
        if found:
            at, mean = y + 4.0 * (place - 1), statistics.mean(found)
            yield element(
                "line", x1=x(min(found)), x2=x(max(found)), y1=at, y2=at, class_=f"span {partition}"
            )
            yield from svg.dots([(x(mean), at)], partition, [f"{cell}, {WORDS[partition]}: {mean:.1f} %"])


def _legend() -> Iterator[Markup]:
    """Yield a dot and a name for each partition."""
    left = float(LEFT)
    for partition in SHOWN:
        yield element("circle", cx=left, cy=28, r=3.2, class_=partition)
        yield svg.text(WORDS[partition], left + 8, 32, "name")
        left += 7.0 * len(WORDS[partition]) + 26
