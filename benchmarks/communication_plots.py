"""The communication study's plots: test accuracy against bytes uploaded by a client and round, one SVG a budget."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from benchmarks.communication_cells import DENSE, Line, Runs, shown
from benchmarks.communication_order import BUDGETS, CORNERS, OTHERS, TELLING, Cell
from benchmarks.communication_tables import plot_file
from benchmarks.methods_task import Budget
from benchmarks.study_tables import title
from fedlora_priv.reports import svg
from fedlora_priv.reports.markup import Markup, element
from fedlora_priv.reports.svg import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Scale

TOP = 34
"""Room for the legend."""

KINDS = ("dense", "server-topk", "seeded-random-k", "voted-topk", "flasc")

STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; }
text { fill: #5a6675; } .end { text-anchor: end; } .middle { text-anchor: middle; } .title { font-weight: 600; }
.grid { stroke: #e9edf2; } .level { stroke: #5a6675; stroke-dasharray: 4 3; } .span { stroke-width: 1.2; }
.dense { fill: #5a6675; stroke: #5a6675; } .server-topk { fill: #2459c9; stroke: #2459c9; }
.seeded-random-k { fill: #2f8a5b; stroke: #2f8a5b; } .voted-topk { fill: #7a3fb5; stroke: #7a3fb5; }
.flasc { fill: #c0261b; stroke: #c0261b; } .name { stroke: none; fill: #5a6675; }
"""
"""Light on purpose: an image cannot ask the page around it."""


def plots(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """Yield the path, from the page, and the SVG of every plot that there are runs for."""
    runs = Runs(lines)
    for budget in BUDGETS:
        if runs.of(budget, DENSE):
            yield plot_file(budget), _plot(runs, budget)


def _plot(runs: Runs, budget: Budget) -> Markup:
    """Return one plot: a dot for each cell, with a span from the smallest to the largest seed."""
    points = list(_points(runs, budget))
    marks = svg.ticks(min(min(found) for *_, found in points), max(max(found) for *_, found in points))
    logs = [math.log10(size) for _, size, _ in points]
    powers = svg.ticks(min(logs), max(logs), 4)
    x = Scale(powers[0], powers[-1], LEFT + 14, WIDTH - RIGHT - 14)
    y = Scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    parts: list[Markup] = [
        element("style", Markup(STYLE)),
        svg.text(f"{title(budget)}: accuracy against bytes up, a client and round", LEFT, 10, "title"),
        *_legend(),
    ]
    parts += svg.y_axis(marks, [f"{mark:g} %" for mark in marks], y)
    parts += [
        svg.text(f"{10**power / 1000:,.0f} kB", x(power), HEIGHT - BOTTOM + 16, "tick middle")
        for power in powers
    ]
    dense = statistics.mean(runs.accuracies(budget, DENSE).values())
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(dense), y2=y(dense), class_="level"))
    for cell, uploaded, found in points:
        at = x(math.log10(uploaded))
        parts.append(
            element("line", x1=at, x2=at, y1=y(min(found)), y2=y(max(found)), class_=f"span {_kind(cell)}")
        )
        mean = statistics.mean(found)
        parts += svg.dots(
            [(at, y(mean))], _kind(cell), [f"{shown(cell)}: {mean:.1f} %, {uploaded:,.0f} bytes"]
        )
    return svg.figure(
        f"{title(budget)}: accuracy against bytes",
        "Test accuracy by bytes uploaded by a client and round.",
        *parts,
    )


def _points(runs: Runs, budget: Budget) -> Iterator[tuple[Cell, float, list[float]]]:
    """Yield every cell that has runs, its uploaded bytes and its accuracies."""
    for cell in (*CORNERS, *TELLING, *OTHERS):
        sizes = runs.sizes(budget, cell)
        if sizes is not None:
            yield cell, sizes.uploaded, list(runs.accuracies(budget, cell).values())


def _kind(cell: Cell) -> str:
    """Return what a cell's colour stands for."""
    return "flasc" if cell.family == "flasc" else str(cell.changes.get("support", "dense"))


def _legend() -> Iterator[Markup]:
    """Yield a dot and a name for each support, at the upper right."""
    left = WIDTH - RIGHT - 400.0
    for kind in KINDS:
        yield element("circle", cx=left, cy=24, r=3.2, class_=kind)
        yield svg.text(kind, left + 6, 28, "name")
        left += 6.8 * len(kind) + 20
