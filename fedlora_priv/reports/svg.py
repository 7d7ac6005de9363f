"""The few pieces of a plot: scales, ticks, axes, lines and dots, as SVG that takes its colours from CSS.

Every figure has a title and a description for screen readers and scales to its container.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedlora_priv.reports.markup import Markup, element

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 36


@dataclass(frozen=True)
class Scale:
    """A linear map from data [low, high] to pixels [start, stop]."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


SMALLEST_SPAN = 1e-9
"""Data that differ by less than this are one value to a reader."""


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers that cover [low, high]; the first is at most `low`, the last at least `high`.

    >>> ticks(0.53, 0.76)
    [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8]
    >>> ticks(0, 0)
    [0.0, 1.0]
    """
    if high - low < SMALLEST_SPAN:
        high = low + 1
        wanted = 1
    power = 10.0 ** math.floor(math.log10((high - low) / wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * wanted >= (high - low) * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def round_ticks(rounds: int) -> list[int]:
    """Return the rounds to label, about ten: the first, the last and evenly spaced ones between.

    >>> round_ticks(12), round_ticks(60)
    ([1, 2, 4, 6, 8, 10, 12], [1, 10, 20, 30, 40, 50, 60])
    """
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, rounds) if rounds / s <= 10)
    spaced = (number for number in range(step, rounds, step) if rounds - number >= 0.6 * step)
    return sorted({1, *spaced, rounds})


def figure(title: str, description: str, *children: str, height: int = HEIGHT) -> Markup:
    """Return a whole SVG; its title, unique on the page, and description are for screen readers."""
    key = title.lower().replace(" ", "-")
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-desc"),
        *children,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        xmlns="http://www.w3.org/2000/svg",
    )


def y_axis(values: Sequence[float], labels: Sequence[str], scale: Scale) -> list[Markup]:
    """Return horizontal grid lines with their labels on the left."""
    parts = []
    for value, label in zip(values, labels, strict=True):
        y = scale(value)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(text(label, LEFT - 8, y + 4, "tick end"))
    return parts


def x_axis(rounds: int, scale: Scale, bottom: float) -> list[Markup]:
    """Return the round numbers under a plot and the axis' name."""
    parts = [text(str(number), scale(number), bottom + 16, "tick middle") for number in round_ticks(rounds)]
    return [*parts, text("round", WIDTH - RIGHT, bottom + 31, "tick end")]


def line(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Return a line through pixel points."""
    path = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))
    return element("path", d=path, class_=f"line {class_}")


def level(y: float, class_: str, label: str) -> list[Markup]:
    """Return a dashed horizontal line with its label at the right end."""
    rule = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_=f"level {class_}")
    return [rule, text(label, WIDTH - RIGHT - 2, y - 6, f"note end {class_}-text")]


def dots(points: Sequence[tuple[float, float]], class_: str, tips: Sequence[str]) -> list[Markup]:
    """Return dots that show their values when pointed at; many are small."""
    radius = 3.2 if len(points) <= 40 else 1.4
    return [
        element("circle", element("title", tip), cx=x, cy=y, r=radius, class_=class_)
        for (x, y), tip in zip(points, tips, strict=True)
    ]


def box(x: float, y: float, width: float, height: float, class_: str, tip: str, radius: float = 2) -> Markup:
    """Return a rectangle that shows its value when pointed at."""
    return element(
        "rect", element("title", tip), x=x, y=y, width=width, height=height, rx=radius, class_=class_
    )


def text(content: str, x: float, y: float, class_: str) -> Markup:
    """Return a piece of text."""
    return element("text", content, x=x, y=y, class_=class_)
