"""Check 4 on runs whose clients prune their ranks: what was announced, and what was not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from accounting.case import Case, Findings
from accounting.checks.pruned import check_pruned

RULE = {"keep": 0.5, "least": 1, "holders": 2}
RANKS = [
    {"a": 4, "b": 4, "c": 4, "d": 2},
    {"a": 4, "b": 4, "c": 4, "d": 2},
    {"a": 2, "b": 4, "c": 4, "d": 1},  # b has announced too, and is held up: c alone would have component 4
    {"a": 1, "b": 4, "c": 4, "d": 1},
]
FADED: list[list[str]] = [[], ["a", "b", "d"], ["a", "d"], []]


def a_report() -> dict[str, Any]:
    contracts, rounds = [], []
    for number, ranks in enumerate(RANKS, 1):
        dealt: dict[str, Any] = {
            "layers": ["layer.0"],
            "clients": {client_id: {"layers": [0], "rank": rank} for client_id, rank in ranks.items()},
            "pruning": RULE,
        }
        changed = {client_id: rank for client_id, rank in ranks.items() if rank < RANKS[0][client_id]}
        if changed:
            dealt["findings"] = {"ranks": changed}
        contracts.append({"rounds": [number], "allocation": dealt})
        rounds.append({"round": number, "lost": [], "faded": FADED[number - 1]})
    return {"method": {"contracts": contracts}, "rounds": rounds}


def problems(report: dict[str, Any], reserved: dict[str, list[int]] | None = None) -> list[str]:
    """What the check says of a report, beside ledgers that have reserved these rounds."""
    ledgers = {**{client_id: [1, 2, 3, 4] for client_id in RANKS[0]}, **(reserved or {})}
    case = SimpleNamespace(
        report=report,
        chains=ledgers,
        charges=lambda client_id: [SimpleNamespace(round=number) for number in ledgers.get(client_id, [])],
    )
    found = Findings()
    check_pruned(cast("Case", case), found)
    return found.problems


def test_ranks_that_follow_from_what_was_announced_pass() -> None:
    assert problems(a_report()) == []


def test_a_report_without_parts_is_none_of_its_business() -> None:
    assert problems({"method": {"contracts": [{"rounds": [1]}]}, "rounds": [{"round": 1, "lost": []}]}) == []


def part(report: dict[str, Any], number: int, client_id: str) -> dict[str, Any]:
    found: dict[str, Any] = report["method"]["contracts"][number - 1]["allocation"]["clients"][client_id]
    return found


def dealt_in(report: dict[str, Any], number: int) -> dict[str, Any]:
    found: dict[str, Any] = report["method"]["contracts"][number - 1]["allocation"]
    return found


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a rank falls that nobody has announced": (
        lambda r: part(r, 3, "c").update(rank=2),
        "round 3: c trains rank 2, and by what was announced it has 4",
    ),
    "it falls further": (lambda r: part(r, 3, "a").update(rank=1), "round 3: a trains rank 1"),
    "it rises": (lambda r: part(r, 4, "d").update(rank=2), "round 4: d trains rank 2"),
    "held up for no reason": (lambda r: part(r, 3, "d").update(rank=2), "round 3: d trains rank 2"),
    "not held up": (lambda r: part(r, 3, "b").update(rank=2), "round 3: b trains rank 2"),
    "an announcement is left out": (
        lambda r: r["rounds"][1].update(faded=["b", "d"]),
        "round 3: a trains rank 2, and by what was announced it has 4",
    ),
    "announcements are not listed": (
        lambda r: r["rounds"][0].pop("faded"),
        "round 1: it does not say who has announced",
    ),
    "of somebody who was lost": (
        lambda r: r["rounds"][2].update(lost=[{"client_id": "d", "phase": "train"}]),
        "round 3: d has announced its rank, and was not there",
    ),
    "of nobody's": (
        lambda r: r["rounds"][3].update(faded=["e"]),
        "round 4: e has announced its rank, and was not there",
    ),
    "pruned from the start": (
        lambda r: dealt_in(r, 1).update(findings={"ranks": {"d": 2}}),
        "round 1: it begins with ranks that were pruned",
    ),
    "another rule": (
        lambda r: dealt_in(r, 4).update(pruning={**RULE, "least": 2}),
        "round 4: its contract prunes by another rule",
    ),
    "no rule": (
        lambda r: dealt_in(r, 3).pop("pruning"),
        "round 3: ranks were pruned, and its contract lets nobody prune",
    ),
    "a client is gone": (lambda r: dealt_in(r, 3)["clients"].pop("d"), "round 3: d trains rank None"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_ranks_that_do_not_follow_are_problems(name: str) -> None:
    forge, problem = FORGERIES[name]
    report = copy.deepcopy(a_report())
    forge(report)
    assert [one for one in problems(report) if one.startswith(problem)]


def test_a_bit_of_an_update_that_was_not_reserved_is_a_problem() -> None:
    assert problems(a_report(), {"d": [1, 2, 4]}) == [
        "round 3: d has announced a bit of an update that it has not reserved"
    ]
