"""What check 4 says of rounds whose clients train parts: a layer's sum is of enough of those who train it."""

from __future__ import annotations

from typing import Any

import pytest

from accounting.case import Case, Findings
from accounting.checks.parts import check_parts, check_scored

SIX = [f"client-{k}" for k in range(1, 7)]


def round_of(survivors: list[str], *, summed: bool = True) -> dict[str, Any]:
    exchange = {"session_id": "ab", "transcript": "cd" if summed else None, "announced": None}
    return {"round": 1, "survivors": survivors, "exchanges": [exchange]}


def case(entry: dict[str, Any], *, least: int = 3, mode: str = "secure", **parts: dict[str, Any]) -> Case:
    """Layer 0 is trained by the last three of six, layer 1 by all; the last two have rank 4, the others 2."""
    clients = {c: {"layers": [0, 1] if i > 2 else [1], "rank": 4 if i > 3 else 2} for i, c in enumerate(SIX)}
    dealt = {
        "strategy": "s",
        "layers": ["low", "high"],
        "min_contributors": least,
        "clients": clients | parts,
    }
    report = {
        "rounds": [entry],
        "method": {"contracts": [{"rounds": [1], "allocation": dealt}]},
        "secure_aggregation": {"mode": mode, "max_colluders": 1},
    }
    return Case(report, {}, None, None)


def problems(of: Case) -> list[str]:
    found = Findings()
    check_parts(of, found, of.report["rounds"][0])
    return found.problems


def same_rank(rank: int) -> dict[str, dict[str, Any]]:
    return {c: {"layers": [0, 1] if i > 2 else [1], "rank": rank} for i, c in enumerate(SIX)}


def test_a_layer_of_just_enough_passes() -> None:
    assert problems(case(round_of(SIX), **same_rank(2))) == []
    assert problems(case(round_of(SIX[1:]), **same_rank(2))) == [], "who does not train it may be lost"


@pytest.mark.parametrize("gone", SIX[3:])
def test_a_layer_whose_holders_were_lost_fails(gone: str) -> None:
    left = [client_id for client_id in SIX if client_id != gone]
    assert problems(case(round_of(left), **same_rank(2))) == [
        "round 1: the sum on low is of 2 clients, its contract needs 3"
    ]


def test_components_of_few_fail() -> None:
    assert problems(case(round_of(SIX))) == [
        "round 1: the sum on component 4 of low is of 2 clients, its contract needs 3",
        "round 1: the sum on component 4 of high is of 2 clients, its contract needs 3",
    ]


def test_a_contract_that_asks_for_too_few_fails() -> None:
    (problem,) = problems(case(round_of(SIX), least=2))
    assert "lets 2 clients be summed on a layer: beside 1 colluders" in problem


def test_a_layer_that_the_contract_does_not_name_fails() -> None:
    """Its clients would be counted nowhere."""
    beyond = same_rank(2) | {"client-6": {"layers": [0, 2], "rank": 2}}
    (problem,) = problems(case(round_of(SIX), **beyond))
    assert problem.startswith("round 1: its contract has client-6 train layer 2, and names 2 layers")


def test_a_survivor_with_nothing_to_train_fails() -> None:
    (problem,) = problems(case(round_of([*SIX, "client-7"]), **same_rank(2)))
    assert "client-7 is in the sum, and its contract gives it nothing to train" in problem


def test_nothing_is_asked_where_nothing_was_summed_under_masks() -> None:
    assert problems(case(round_of(SIX[:3], summed=False))) == []
    assert problems(case(round_of(SIX[:3]), mode="insecure")) == []


@pytest.mark.parametrize(
    ("findings", "problem"),
    [
        ({"scores": [0.5, 2.0]}, None),
        ({"scores": [0.5]}, "its contract states 1 scores, and names 2 layers"),
        ({"ranks": {"client-1": 2}}, None),
        ({"ranks": {"client-1": 1}}, "has client-1 train rank 2, and states that it has pruned itself to 1"),
        ({"ranks": {"client-7": 1}}, "has client-7 train nothing"),
    ],
)
def test_an_allocation_that_does_not_follow_from_its_findings_fails(
    findings: dict[str, Any], problem: str | None
) -> None:
    asked = case(round_of(SIX), **same_rank(2))
    asked.report["method"]["contracts"][0]["allocation"]["findings"] = findings
    found = problems(asked)
    assert found == [] if problem is None else problem in found[0]


def scored(*rounds: tuple[list[float], int] | None) -> list[str]:
    """What is wrong with the scores of these rounds, each with the period that its contract states."""
    asked = case(round_of(SIX))
    dealt = asked.report["method"]["contracts"][0]["allocation"]
    asked.report["method"]["contracts"][:] = [
        {"rounds": [number], "allocation": dealt if told is None else dealt | {"findings": found_of(*told)}}
        for number, told in enumerate(rounds, 1)
    ]
    found = Findings()
    check_scored(asked, found)
    return found.problems


def found_of(scores: list[float], every: int) -> dict[str, Any]:
    return {"scores": scores, "scores_of": "rows", "rescored_every": every}


A, B = [0.5, 2.0], [2.0, 0.5]


@pytest.mark.parametrize(
    "rounds",
    [
        [(A, 2), (A, 2), (B, 2), (B, 2), (A, 2)],
        [None, None, (B, 2), (B, 2)],  # the file's hold at first
        [(A, 1), (B, 1), (A, 1)],
        [None, None],
    ],
)
def test_scores_may_change_when_layers_are_scored_again(rounds: list[Any]) -> None:
    assert scored(*rounds) == []


@pytest.mark.parametrize(
    ("rounds", "problem"),
    [
        (
            [(A, 2), (B, 2)],
            "round 2 has other scores than round 1, and layers are scored again after every 2",
        ),
        ([(A, 2), (A, 2), (A, 2), (B, 2)], "round 4 has other scores than round 3"),
        ([(A, 2), (A, 2), (B, 1)], "contracts say that layers are scored again after every [1, 2] rounds"),
    ],
)
def test_scores_that_change_in_between_fail(rounds: list[Any], problem: str) -> None:
    (found,) = scored(*rounds)
    assert found.startswith(problem)
