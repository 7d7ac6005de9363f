"""What every section uses: a line of a table, and the best of several timings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

MILLION = 1 << 20


class Line(Protocol):
    """A line of a table; all lines of one class share its header."""

    HEADER: ClassVar[tuple[str, ...]]

    def cells(self) -> tuple[str, ...]:
        """Return the line's cells as text."""


@dataclass(frozen=True)
class Row:
    """What was measured, its cost, what it is held against, that one's cost, and the ratio to reach.

    Args:
        cost, reference: seconds of CPU time, or bytes if `unit` says so. A `reference` of None was not measured.
        target: what the ratio should be, in words such as "≤ 1/6"; empty where there is no target.
    """

    HEADER: ClassVar[tuple[str, ...]] = ("what", "cost", "against", "its cost", "ratio", "to reach")

    what: str
    cost: float
    against: str
    reference: float | None
    target: str = ""
    unit: str = "s"

    def cells(self) -> tuple[str, ...]:
        """See `Line`."""
        ours = self._shown(self.cost)
        if self.reference is None:
            return (self.what, ours, self.against, "not measured", "", self.target)
        ratio = self.cost / self.reference
        shown = f"{ratio:.2f}" if ratio > 0.5 else f"1/{1 / ratio:,.{1 if ratio > 0.05 else 0}f}"
        return (self.what, ours, self.against, self._shown(self.reference), shown, self.target)

    def _shown(self, amount: float) -> str:
        """Return an amount with its unit."""
        return f"{amount * 1000:,.1f} ms" if self.unit == "s" else f"{amount:,.0f} bytes"


def markdown(cells: tuple[str, ...]) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def best(action: Callable[[], object], repetitions: int = 5) -> float:
    """Return the least CPU seconds of one call; CPU time, because neighbours on the machine cost wall time."""
    times = []
    for _ in range(repetitions):
        began = time.process_time()
        action()
        times.append(time.process_time() - began)
    return min(times)
