"""What bytes by kind of many rounds come to: of one client in one round, on average and at most, and of a whole run.

The same for a plan, whose rounds are foretold, and for a report, whose rounds were counted; so the two can be compared
line by line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

from fedlora_priv.communication.meter import KINDS
from protocols.secagg.sizes import Direction

ByClient = Mapping[str, Mapping[Any, Mapping[Any, int]]]
"""Bytes by client_id, direction and kind, as `metrics.jsonl` has them of a round."""

Measure = Literal["mean", "most", "run"]
DIRECTIONS: tuple[Direction, ...] = ("up", "down")


def tally(
    rounds: Sequence[ByClient],
    counted: Sequence[Set[str]] | None = None,
    longest: Sequence[ByClient] | None = None,
) -> dict[Direction, dict[Measure, dict[str, float]]]:
    """Return bytes by direction, measure and kind; `all` is the sum of the kinds.

    Args:
        rounds: the bytes of each round.
        counted: of each round, whose bytes are whole: a client that was lost on the way has no part in `mean` and
            `most`. Everybody unless given.
        longest: of each round, what no client's bytes are above, where `rounds` are one draw of several.

    Returns:
        For each direction `mean`, of all counted clients and rounds, `most`, of the client and round with the most
        bytes, and `run`, the sum of everything.

    Example:
        >>> one = {"ada": {"up": {"keys": 10, "values": 5}, "down": {}}, "bob": {"up": {"keys": 20}, "down": {}}}
        >>> up = tally([one])["up"]
        >>> up["mean"]["keys"], up["most"]["all"], up["run"]["all"]
        (15.0, 20.0, 35.0)
    """
    found: dict[Direction, dict[Measure, dict[str, float]]] = {}
    for way in DIRECTIONS:
        every = [mine.get(way, {}) for one in rounds for mine in one.values()]
        whole = _whole(rounds, way, counted)
        bounds = whole if longest is None else _whole(longest, way, counted)
        largest = max(bounds, key=lambda sizes: sum(sizes.values()), default={})
        found[way] = {
            "mean": _with_all({kind: _sum(whole, kind) / max(1, len(whole)) for kind in KINDS}),
            "most": _with_all({kind: float(largest.get(kind, 0)) for kind in KINDS}),
            "run": _with_all({kind: _sum(every, kind) for kind in KINDS}),
        }
    return found


def _whole(
    rounds: Sequence[ByClient], way: Direction, counted: Sequence[Set[str]] | None
) -> list[Mapping[Any, int]]:
    """Return the bytes of every counted client in every round."""
    return [
        mine.get(way, {})
        for number, one in enumerate(rounds)
        for client_id, mine in one.items()
        if counted is None or client_id in counted[number]
    ]


def _sum(tables: Sequence[Mapping[Any, int]], kind: str) -> float:
    """Return the bytes of one kind."""
    return float(sum(table.get(kind, 0) for table in tables))


def _with_all(sizes: dict[str, float]) -> dict[str, float]:
    """Return the sizes with their sum."""
    return {**sizes, "all": sum(sizes.values())}
