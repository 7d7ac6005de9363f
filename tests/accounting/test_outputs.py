"""What a report says leaves is all that follows from its other parts: check 11 misses each, or one called public."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from accounting import outputs
from accounting.audit import audit
from accounting.case import Verdict

from .forging import declare_again

Edit = Callable[[dict[str, Any]], None]

ADAPTIVE = {
    "target_quantile": 0.5, "learning_rate": 0.2, "count_noise_stddev": 4.0,
    "smallest_clip_norm": 0.1, "largest_clip_norm": 10.0,
}  # fmt: skip


def covered(federation: Any) -> Verdict:
    """Check 11 alone: the others say that the ledgers have recorded another method."""
    return audit(federation.report, federation.lines, federation.roster)[10]


def contract(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report["method"]["contracts"][0]
    return found


def votes(report: dict[str, Any]) -> None:
    contract(report)["exchanges"].insert(0, {"announced": {}, "travels": {"lora_B": 128}, "carries": "votes"})


def a_band(report: dict[str, Any]) -> None:
    clients = ["client-1", "client-2", "client-3"]
    contract(report)["exchanges"].append({"announced": {}, "travels": {"lora_B": 128}, "clients": clients})


def announcements(report: dict[str, Any]) -> None:
    contract(report)["exchanges"].append({"announced": {"basis": 64}, "travels": {"range": 64}})


def feedback(report: dict[str, Any]) -> None:
    contract(report)["error_feedback"] = True


def what_stays_at_home(report: dict[str, Any]) -> None:
    contract(report)["stays_home"] = ["B"]


def a_residual(report: dict[str, Any]) -> None:
    contract(report)["changes_base"] = True


def a_certificate(report: dict[str, Any]) -> None:
    report["rounds"][0]["certificate"] = {"error": 0.0, "columns": None, "modules": {}}


def pruned_ranks(report: dict[str, Any]) -> None:
    contract(report)["allocation"] = {
        "strategy": "ranks",
        "layers": ["low"],
        "min_contributors": 3,
        "pruning": {"keep": 0.5, "least": 1, "holders": 3},
        "clients": {f"client-{k}": {"layers": [0], "rank": 2} for k in (1, 2, 3)},
    }


def no_masks(report: dict[str, Any]) -> None:
    report["secure_aggregation"] = {"mode": "insecure"}


FOLLOWS: list[tuple[Edit, str]] = [
    (votes, "how many clients voted for it"),
    (a_band, "of what only some clients send, its sum over those alone"),
    (announcements, "what the server announces between exchanges"),
    (feedback, "what earlier rounds left out"),
    (what_stays_at_home, "of what stays at each client (B), saved in its own home: its accuracy"),
    (a_residual, "with what the method has added to the base weights"),
    (a_certificate, "each round's certificate"),
    (pruned_ranks, "of each client's update one bit: whether its last components have faded"),
    (no_masks, "the clients' updates one by one, unmasked"),
]


@pytest.mark.parametrize(("edit", "words"), FOLLOWS)
def test_a_line_that_follows_is_due(finished: Any, edit: Edit, words: str) -> None:
    before = covered(finished)
    assert before.status == "PASS"
    edit(finished.report)
    left_out = covered(finished)
    assert left_out.status == "FAIL"
    assert words in left_out.evidence
    declare_again(finished)
    assert covered(finished).status == "PASS"
    (line,) = [output for output in finished.report["outputs"] if words in output["what"]]
    line["covered_by"] = outputs.PUBLIC
    called_public = covered(finished)
    assert called_public.status == "FAIL"
    assert words in called_public.evidence


def test_scores_that_a_server_has_measured_are_due_with_the_data_that_they_are_of(finished: Any) -> None:
    findings = {"scores": [0.5, 2.0], "scores_of": "a hundred public rows", "rescored_every": 9}
    clients = {f"client-{k}": {"layers": [0, 1], "rank": 2} for k in (1, 2, 3)}
    dealt = {"strategy": "s", "layers": ["low", "high"], "min_contributors": 3, "clients": clients}
    contract(finished.report)["allocation"] = dealt | {"findings": findings}
    left_out = covered(finished)
    assert left_out.status == "FAIL"
    assert (
        "scores of the layers, measured during the run on data declared public: a hundred"
        in left_out.evidence
    )
    declare_again(finished)
    assert covered(finished).status == "PASS"


def test_clip_norms_that_follow_counts_are_due(finished: Any) -> None:
    for plan in finished.report["plan"].values():
        plan["adaptive_clip"] = dict(ADAPTIVE)
    kinds = {output["covered_by"] for output in outputs.following(finished.report)}
    assert kinds == {"AdaptiveClipPoissonGaussian", "public"}
    assert "the clip norms in ledger rows" in covered(finished).evidence


def test_every_line_is_due(finished: Any) -> None:
    honest = list(finished.report["outputs"])
    assert len(honest) == 6
    for output in honest:
        finished.report["outputs"] = [other for other in honest if other is not output]
        assert (covered(finished).status == "PASS") == (output["what"] == "its number of rows"), output


def test_a_figure_that_was_measured_is_due_and_one_that_was_not_is_none(finished: Any) -> None:
    del finished.report["outputs"][-2]
    assert "the report has a figure of accuracy, and no output that says so" in covered(finished).evidence
    finished.report["metrics"].update(accuracy_before=None, accuracy_after=None)
    assert covered(finished).status == "PASS"
    assert outputs.measured(finished.report) == []
    what_stays_at_home(finished.report)
    assert "saved in its own home: nothing else" in covered(finished).evidence
