"""What a model's quality is measured by, and how its values are written.

``metrics.jsonl`` has the value of a round under the metric's key, ``report.json`` the first and the last one under
``<key>_before`` and ``<key>_after``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LARGEST_IN_FULL = 1e6


@dataclass(frozen=True)
class Metric:
    """A measure of quality.

    Args:
        key: its name in files and in the terminal.
        title: its name on pages.
        decimals: of a value in the terminal.
        scale, unit, shown_decimals: a page shows the value times `scale`, so rounded, with `unit` behind it.
    """

    key: str
    title: str
    decimals: int
    scale: float
    unit: str
    shown_decimals: int

    def plain(self, value: float) -> str:
        """Return a value for the terminal.

        >>> ACCURACY.plain(0.752), PERPLEXITY.plain(21.346), PERPLEXITY.plain(2.5e40)
        ('0.752', '21.35', '2.5e+40')
        """
        return f"{value:.{self.decimals}f}" if value < _LARGEST_IN_FULL else f"{value:.3g}"

    def number(self, value: float, more: int = 0) -> str:
        """Return a value for a page, without its unit; with `more` decimals than usual.

        >>> ACCURACY.number(0.752), PERPLEXITY.number(21.346)
        ('75.2', '21.35')
        """
        shown = self.scale * value
        return f"{shown:.{self.shown_decimals + more}f}" if shown < _LARGEST_IN_FULL else f"{shown:.3g}"

    def shown(self, value: float, more: int = 0) -> str:
        """Return a value for a page, with its unit.

        >>> ACCURACY.shown(0.752), PERPLEXITY.shown(21.346)
        ('75.2 %', '21.35')
        """
        return self.number(value, more) + self.unit

    def tick(self, value: float) -> str:
        """Return a round value beside an axis."""
        return f"{self.scale * value:.3g}{self.unit}"


ACCURACY = Metric("accuracy", "Accuracy", decimals=3, scale=100.0, unit=" %", shown_decimals=1)
PERPLEXITY = Metric("perplexity", "Perplexity", decimals=2, scale=1.0, unit="", shown_decimals=2)


def metric_of(row: Mapping[str, Any]) -> Metric:
    """Return what a row of metrics.jsonl, or the metrics of a report, is measured by.

    >>> metric_of({"perplexity_before": 30.0, "perplexity_after": 20.0}).title
    'Perplexity'
    """
    return PERPLEXITY if any(key.startswith(PERPLEXITY.key) for key in row) else ACCURACY
