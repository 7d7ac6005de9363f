"""The methods study's plots: test accuracy by round of the main methods, one SVG for each data set, partition and ε."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from benchmarks.methods_list import MAIN
from benchmarks.methods_order import PARTITIONS, PRIVACY
from benchmarks.methods_runs import JUDGED
from benchmarks.methods_tables import DATASETS, SHOWN, Line, by_method, mean_at, plot_file
from benchmarks.study_tables import ROWS, TITLES
from fedlora_priv.reports import svg
from fedlora_priv.reports.markup import Markup, element
from fedlora_priv.reports.svg import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Scale

TOP = 34
"""Room for the legend."""

STYLE = """
svg { background: #fff; font: 12px system-ui, sans-serif; }
text { fill: #5a6675; } .end { text-anchor: end; } .middle { text-anchor: middle; } .title { font-weight: 600; }
.grid { stroke: #e9edf2; } .line { fill: none; stroke-width: 2; stroke-linejoin: round; } .span { stroke-width: 1.2; }
.fedit { stroke: #5a6675; } .ffa { stroke: #2459c9; } .fra { stroke: #c0261b; } .hybrid { stroke: #7a3fb5; }
.fedsvd { stroke: #2f8a5b; } .hybrid.line { stroke-dasharray: 6 3; } .fedsvd.line { stroke-dasharray: 2 3; }
circle.fedit { fill: #5a6675; } circle.ffa { fill: #2459c9; } circle.fra { fill: #c0261b; }
circle.hybrid { fill: #7a3fb5; } circle.fedsvd { fill: #2f8a5b; }
"""
"""Light on purpose: an image cannot ask the page around it."""

APART = 2.5
"""Pixels by which the methods' points of one round stand apart, so that their spans can be told."""


def plots(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """Yield the file name and the SVG of every plot that there are runs for."""
    finals = [line for line in lines if line["study"] == "final"]
    for name, partition, epsilon in product(DATASETS, PARTITIONS, PRIVACY):
        group = by_method(finals, name, partition)
        runs = {method: group[SHOWN[epsilon], method] for method in MAIN if (SHOWN[epsilon], method) in group}
        if runs:
            words = {"iid": "i.i.d.", "skewed": "skewed"}[partition]
            title = f"{TITLES[name]}, {words}, {SHOWN[epsilon]}"
            yield plot_file(name, partition, epsilon).removeprefix("methods/"), _plot(title, name, runs)


def _plot(title: str, name: str, runs: Mapping[str, Sequence[Line]]) -> Markup:
    """Return one plot: the mean over seeds as a line, smallest and largest seed as a span."""
    values = [float(v) for found in runs.values() for line in found for v in line["accuracy"].values()]
    marks = svg.ticks(min(values, default=0.0), max(values, default=1.0))
    x = Scale(1, JUDGED[-1], LEFT + 14, WIDTH - RIGHT - 14)
    y = Scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    parts: list[Markup] = [element("style", Markup(STYLE)), svg.text(title, LEFT, 14, "title")]
    parts += _legend(list(runs))
    parts += svg.y_axis(marks, [f"{100 * mark:g} %" for mark in marks], y)
    parts += svg.x_axis(JUDGED[-1], x, HEIGHT - BOTTOM)
    for place, (method, found) in enumerate(runs.items()):
        parts += _curve(method, found, x, y, APART * (place - (len(runs) - 1) / 2))
    seeds = max(len(found) for found in runs.values())
    described = f"Accuracy on {ROWS[name]} test rows by round, {seeds} seeds: mean, smallest and largest."
    return svg.figure(title, described, *parts)


def _legend(methods: Sequence[str]) -> Iterator[Markup]:
    """Yield a stroke and a name for each method, at the upper right."""
    left = WIDTH - RIGHT - 58 * len(methods)
    for place, method in enumerate(methods):
        at = left + 58.0 * place
        yield svg.line([(at, 10), (at + 14, 10)], method)
        yield svg.text(method, at + 18, 14, "name")


def _curve(method: str, found: Sequence[Line], x: Scale, y: Scale, shift: float) -> Iterator[Markup]:
    """Yield a method's line, dots and spans."""
    points, tips = [], []
    for number in JUDGED:
        mean = mean_at(found, number)
        if mean is None:
            continue
        seeds = [float(line["accuracy"][str(number)]) for line in found]
        points.append((x(number) + shift, y(mean)))
        tips.append(f"{method}, round {number}: {100 * mean:.1f} %")
        ends = [(points[-1][0], y(min(seeds))), (points[-1][0], y(max(seeds)))]
        yield element(
            "line", x1=ends[0][0], y1=ends[0][1], x2=ends[1][0], y2=ends[1][1], class_=f"span {method}"
        )
    yield svg.line(points, method)
    yield from svg.dots(points, method, tips)
