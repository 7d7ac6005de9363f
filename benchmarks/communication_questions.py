"""What one choice changes, all else being the same: differences of test accuracy, seed by seed, over all cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.common import markdown
from benchmarks.communication_cells import Runs
from benchmarks.communication_order import BUDGETS, CORNERS, OTHERS, TELLING, Cell
from benchmarks.methods_task import Budget
from benchmarks.study_tables import header, mean_gap, shown_gap, title

Changes = Mapping[str, Any]
Question = Callable[[Changes], Changes | None]
"""From a cell to the one that it is held against; None where the question is not about it."""


def _without(name: str) -> Question:
    """Return the question what a field does that is only there where it is set."""
    return lambda changes: {k: v for k, v in changes.items() if k != name} if name in changes else None


def _instead(name: str, value: object, other: object) -> Question:
    """Return the question what one value of a field does, held against another."""
    return lambda changes: {**changes, name: other} if changes.get(name, other) == value else None


def _flasc(changes: Changes) -> Changes | None:
    """Hold FLASC against a masked support of the same density."""
    if changes.get("method") != "flasc":
        return None
    support = "dense" if changes["density"] == 1 else "server-topk"
    return {"support": support, "density": changes["density"], "value_bits": 4}


QUESTIONS: Mapping[str, Question] = {
    "4 bits, against 32": _instead("value_bits", 4, None),
    "8 bits, against 32": _instead("value_bits", 8, None),
    "`seeded-random-k`, against `server-topk`": _instead("support", "seeded-random-k", "server-topk"),
    "`voted-topk`, against `server-topk`": _instead("support", "voted-topk", "server-topk"),
    "feedback, against none": _without("feedback"),
    "training the support, against all": _without("train"),
    "a sparse download, against a whole one": _without("download_density"),
    "FLASC, against `server-topk` at 4 bits": _flasc,
}


def answers(runs: Runs) -> Iterator[str]:
    """Yield a table of what each choice changes, a column for each data set and ε."""
    rows = {
        name: [_difference(runs, budget, question) for budget in BUDGETS]
        for name, question in QUESTIONS.items()
    }
    if not any(any(cells) for cells in rows.values()):
        return
    yield "## What each choice changes\n"
    yield (
        "Points of test accuracy, all else being the same: mean over cells and seeds ± standard error over them (how "
        "many pairs). Pairs share test rows and some runs, so the error is a guide.\n"
    )
    yield from header("choice", *(title(budget) for budget in BUDGETS))
    yield from (markdown((name, *cells)) for name, cells in rows.items() if any(cells))
    yield ""


def _difference(runs: Runs, budget: Budget, question: Question) -> str:
    """Return the mean difference over all pairs of cells and seeds."""
    gaps = []
    for cell in (*CORNERS, *TELLING, *OTHERS):
        other = question(cell.changes)
        if other is not None:
            own, theirs = runs.accuracies(budget, cell), runs.accuracies(budget, Cell("", other))
            gaps += [own[seed] - theirs[seed] for seed in sorted(own.keys() & theirs.keys())]
    return f"{shown_gap(mean_gap(gaps))} ({len(gaps)})" if gaps else ""
