"""Reports forged with more care: genuine rows and anchors, and something else than the claims edited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from accounting import report as reports
from accounting.anchor import Anchor, ledger_head
from accounting.audit import audit
from accounting.case import Verdict
from accounting.entries import Commit, Entry, Release, Reserve
from accounting.errors import ReportError

from .forging import claim_again, declare_again, record_masks


def verdicts(federation: Any) -> dict[int, Verdict]:
    found = audit(federation.report, federation.lines, federation.roster)
    return {verdict.check: verdict for verdict in found}


def statuses(federation: Any, status: str) -> set[int]:
    real = {1, 2, 3, 4, 5, 11, 13, 16}
    return {number for number, verdict in verdicts(federation).items() if verdict.status == status} & real


def record(federation: Any, **changes: str | None) -> None:
    """Every client's reservations made to record other things (None: nothing), and signed by the client."""
    for client_id, rows in federation.rows.items():
        edited: list[Entry] = []
        for row in rows:
            entry = row.entry
            if isinstance(entry, Reserve):
                versions = {**entry.versions, **changes}
                entry = replace(entry, versions={k: v for k, v in versions.items() if v is not None})
            edited.append(entry)
        federation.rebuild(client_id, edited)
        federation.anchor_again(client_id)


# --- who and which rounds ---


def test_a_client_dropped_whole(finished: Any) -> None:
    report = finished.report
    del report["plan"]["client-3"], finished.rows["client-3"]
    for entry in report["rounds"]:
        entry["survivors"].remove("client-3")
        entry["remasked"] = []
    report["non_private"] = []
    report["outputs"].pop()
    report["secure_aggregation"]["min_survivors"] = 1
    report["anchors"] = [value for value in report["anchors"] if value["client_id"] != "client-3"]
    report["ledger_head"] = ledger_head(map(Anchor.from_json, report["anchors"]))
    claim_again(finished)
    assert statuses(finished, "FAIL") == {1, 4}, "and a round of one is left"
    assert "client-3 is in the roster" in verdicts(finished)[1].evidence


def go_back_to_round(federation: Any, number: int) -> None:
    """Rows and genuine anchors as they were after an earlier round."""
    for client_id, rows in federation.rows.items():
        kept = []
        for row in rows:
            if isinstance(row.entry, Reserve) and row.entry.round > number:
                break
            kept.append(row)
        federation.rows[client_id] = kept
        federation.anchor_again(client_id)
    federation.report["non_private"] = []
    federation.report["outputs"].pop()
    claim_again(federation)


def test_an_earlier_state_of_the_run(finished: Any) -> None:
    go_back_to_round(finished, 1)
    del finished.report["rounds"][1:]
    finished.report["method"]["contracts"][0]["rounds"] = [1]
    assert statuses(finished, "FAIL") == set()
    assert statuses(finished, "UNVERIFIABLE") == {1}
    assert "1 of 3 planned rounds" in verdicts(finished)[1].evidence


def test_an_earlier_state_with_the_later_rounds_passed_off_as_lost(finished: Any) -> None:
    go_back_to_round(finished, 1)
    for entry in finished.report["rounds"][1:]:
        entry.update(survivors=[], exchanges=[], remasked=[])
    assert statuses(finished, "FAIL") == set()
    assert statuses(finished, "UNVERIFIABLE") == {1}
    assert "end at round 1 of 3" in verdicts(finished)[1].evidence


# --- claims ---


@pytest.mark.parametrize("who", ["client-2", reports.FEDERATION])
def test_a_lifetime_that_is_not_told(finished: Any, who: str) -> None:
    for claim in finished.report["claims"]:
        if claim["who"] == who:
            claim["lifetime_epsilon"] = None
    assert statuses(finished, "FAIL") == {2}


def test_a_client_called_like_the_federation(finished: Any) -> None:
    finished.report["plan"][reports.FEDERATION] = finished.report["plan"].pop("client-1")
    assert 2 in statuses(finished, "FAIL")


# --- secure aggregation ---


@pytest.mark.parametrize("name", ["session_id", "transcript"])
def test_a_secure_sum_without_a_session_or_transcript(finished: Any, name: str) -> None:
    finished.report["rounds"][0]["exchanges"][0][name] = None
    assert statuses(finished, "FAIL") == {4}


def test_unmasked_uploads_passed_off_as_masked(finished: Any) -> None:
    """As the rows of an insecure run have them; the report states sessions that never were."""
    for client_id, rows in finished.rows.items():
        entries = [row.entry for row in rows]
        unmasked = [replace(e, session=None) if isinstance(e, Release) else e for e in entries]
        finished.rebuild(client_id, unmasked)
        finished.anchor_again(client_id)
    for entry in finished.report["rounds"]:
        entry.update(exchanges=[dict.fromkeys(entry["exchanges"][0])], remasked=[])
    assert statuses(finished, "FAIL") == {4}
    assert "though 'secure'" in verdicts(finished)[4].evidence
    finished.report["secure_aggregation"] = {"mode": "insecure"}
    assert "masks_sha256" in verdicts(finished)[4].evidence, "which the clients do not know of"
    record_masks(finished)
    declare_again(finished)
    assert statuses(finished, "FAIL") == set()


def test_an_unmasked_upload_beside_the_masked_one(finished: Any) -> None:
    finished.rebuild("client-1", [*(row.entry for row in finished.rows["client-1"]), Release(1, None, None)])
    finished.anchor_again("client-1")
    finished.report["rounds"][0]["remasked"] = [{"client_id": "client-1", "times": 1}]
    assert statuses(finished, "FAIL") == {4}
    assert "client-1 released its update of round 1 unmasked" in verdicts(finished)[4].evidence


def _twice(remasked: list[Any]) -> list[Any]:
    return [{**remasked[0], "times": 2}]


def _by_another(remasked: list[Any]) -> list[Any]:
    return [{**remasked[0], "client_id": "client-1"}]


@pytest.mark.parametrize("edit", [lambda remasked: [], _twice, _by_another, lambda remasked: 2 * remasked])
def test_repeated_maskings_edited(finished: Any, edit: Callable[[list[Any]], list[Any]]) -> None:
    entry = finished.report["rounds"][2]
    entry["remasked"] = edit(entry["remasked"])
    assert statuses(finished, "FAIL") == {4}


def test_a_sum_of_fewer_than_the_report_allows(finished: Any) -> None:
    finished.report["secure_aggregation"]["min_survivors"] = 3
    record_masks(finished)
    assert statuses(finished, "FAIL") == {4}
    lost = finished.report["rounds"][1]
    lost["survivors"] = []
    assert statuses(finished, "FAIL") == {4}, "somebody is in the sum that it lists"
    lost["exchanges"][0]["transcript"] = None
    assert statuses(finished, "FAIL") == set(), "a lost round is no sum"
    for least, colluders in ((1, 0), (2, 1)):
        finished.report["secure_aggregation"] |= {"min_survivors": least, "max_colluders": colluders}
        record_masks(finished)
        assert 4 in statuses(finished, "FAIL"), "one alone is hidden by nobody"
    del finished.report["secure_aggregation"]["min_survivors"]
    record_masks(finished)
    assert statuses(finished, "FAIL") == {4}


def test_a_ring_that_colluders_can_fill(finished: Any) -> None:
    stated = finished.report["secure_aggregation"]
    for colluders, neighbours, problem in ((0, 2, False), (1, 2, False), (2, 2, True), (2, 4, False)):
        stated |= {"max_colluders": colluders, "neighbours": neighbours}
        assert ("colluders could be all" in verdicts(finished)[4].evidence) is problem


@pytest.mark.parametrize(
    "claimed",
    [{"max_colluders": 0}, {"neighbours": 8}, {"threshold": 2}, {"min_survivors": 1}, {"clients": 30}],
)
def test_masks_other_than_the_clients_agreed_to(finished: Any, claimed: dict[str, int]) -> None:
    """No row of a round says how many each client masked with, or how many may collude: reservations do."""
    finished.report["secure_aggregation"] |= {"losses_survived": 1, "abort_bounds": {"2": 0.5}}
    assert statuses(finished, "FAIL") == set(), "what is derived is not recorded"
    finished.report["secure_aggregation"] |= claimed
    assert statuses(finished, "FAIL") == {4}
    assert "masks_sha256" in verdicts(finished)[4].evidence


def test_masks_that_the_report_does_not_mention(finished: Any) -> None:
    del finished.report["secure_aggregation"]
    assert statuses(finished, "FAIL") == {4, 11}
    record(finished, masks_sha256=None)
    assert statuses(finished, "FAIL") == {11}, "what it declares is still a sum"
    declare_again(finished)
    assert statuses(finished, "FAIL") == set(), "a report that claims no masks, over rows that record none"


# --- what the rows record of plan, noise and code ---


def _divide_sizes(plan: dict[str, Any]) -> None:
    plan["declared_examples"] //= 10
    plan["planned_batch_size"] /= 10


def _raise_target(plan: dict[str, Any]) -> None:
    plan["target_epsilon"] += 1


def _one_more_retry(plan: dict[str, Any]) -> None:
    plan["retry_rounds"] += 1
    plan["planned_steps"] += plan["steps_per_round"]
    plan["target_epsilon"] += 1


@pytest.mark.parametrize("edit", [_divide_sizes, _raise_target, _one_more_retry])
def test_a_plan_edited_with_everything_that_follows(finished: Any, edit: Callable[[Any], None]) -> None:
    for plan in finished.report["plan"].values():
        edit(plan)
    claim_again(finished)
    assert statuses(finished, "FAIL") == {4}
    assert "plan_sha256" in verdicts(finished)[4].evidence


def test_the_plan_of_another_client(finished: Any) -> None:
    plans = finished.report["plan"]
    plans["client-1"], plans["client-2"] = plans["client-2"], plans["client-1"]
    assert statuses(finished, "FAIL") == {4}


def test_deterministic_noise_denied(finished: Any) -> None:
    record(finished, noise_source="reproducible, from the public seed")
    assert statuses(finished, "FAIL") == {13}
    for name in ("noise_source", "sampling_source"):
        finished.report["randomness"][name] = "reproducible, from the public seed"
    assert statuses(finished, "FAIL") == {13}, "what the rows record, but still no secret"


def test_code_other_than_the_rows_record(finished: Any) -> None:
    finished.report["versions"]["code_sha256"] = "0" * 64
    assert statuses(finished, "FAIL") == {16}


@pytest.mark.parametrize(
    ("name", "check"), [("code_sha256", 16), ("noise_source", 13), ("plan_sha256", 4), ("masks_sha256", 4)]
)
def test_what_no_row_records_is_on_the_reports_word(finished: Any, name: str, check: int) -> None:
    record(finished, **{name: None})
    assert statuses(finished, "FAIL") == set()
    assert statuses(finished, "UNVERIFIABLE") == {check}
    assert f"does not record {name}" in verdicts(finished)[check].evidence


def test_rows_may_record_more_than_the_report_states(finished: Any) -> None:
    record(finished, compiler="some")
    assert statuses(finished, "PASS") == {1, 2, 3, 4, 5, 11, 13, 16}


def test_public_outputs_are_said_to_be_the_reports_word(finished: Any) -> None:
    assert "3 outputs are declared public: taken on the report's word" in verdicts(finished)[11].evidence


# --- neither crash nor hang ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("delta", 1e-12), ("noise_multiplier", 1e-9), ("noise_multiplier", 1e300), ("rounds", 10**9),
        ("planned_steps", 10**9), ("retry_rounds", 10**9), ("steps_per_round", 10**9), ("sample_rate", 5e-324),
        ("clip_norm", float("inf")), ("target_epsilon", float("nan")), ("declared_examples", 10**400),
    ],
)  # fmt: skip
def test_a_plan_beyond_all_bounds_breaks_the_schema(finished: Any, name: str, value: float) -> None:
    finished.report["plan"]["client-1"][name] = value
    with pytest.raises(ReportError):
        audit(finished.report, finished.lines)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.01, "sample_rate": 1e-12}, {"noise_multiplier": 1e6}, {"planned_steps": 16.0},
        {"noise_multiplier": 0.01, "rounds": 10**5, "planned_steps": 10**6}, {"delta": 0.999999},
        {"clip_norm": 5e-324}, {"delta": 1e-9, "sample_rate": 1},
    ],
)  # fmt: skip
def test_a_plan_at_the_bounds_fails_and_ends(finished: Any, changes: dict[str, float]) -> None:
    finished.report["plan"]["client-1"].update(changes)
    assert 4 in statuses(finished, "FAIL")


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 1e-9}, {"noise_multiplier": 1e300}, {"steps": 10**15}, {"sample_rate": 5e-324},
        {"noise_multiplier": 0.01, "steps": 10**6},
    ],
)  # fmt: skip
def test_signed_rows_beyond_all_bounds_fail_and_end(finished: Any, changes: dict[str, float]) -> None:
    edited: list[Entry] = []
    for row in finished.rows["client-1"]:
        entry = row.entry
        if isinstance(entry, Reserve | Commit):
            entry = replace(entry, event=replace(entry.event, **changes))
        edited.append(entry)
    finished.rebuild("client-1", edited)
    finished.anchor_again("client-1")
    assert statuses(finished, "FAIL") >= {2, 4}


@pytest.mark.parametrize(("steps", "status"), [(0, "FAIL"), (1, "UNVERIFIABLE")])
def test_a_release_whose_steps_were_refunded(finished: Any, steps: int, status: str) -> None:
    """The client trains and sends its update, then commits that little or nothing ran."""

    def refund(entry: Any) -> Any:
        return replace(entry, event=replace(entry.event, steps=steps)) if isinstance(entry, Commit) else entry

    finished.rebuild("client-1", [refund(row.entry) for row in finished.rows["client-1"]])
    finished.anchor_again("client-1")
    found = audit(finished.report, finished.lines, finished.roster)[3]
    assert found.status == status
    assert "released" in found.evidence


@pytest.mark.parametrize(("run", "attempt"), [("ab" * 16, 2), ("cd" * 16, 1)])
def test_two_vectors_in_one_session(finished: Any, run: str, attempt: int) -> None:
    """A second update in the reported session, charged to this run or to another one."""
    entries: list[Any] = [row.entry for row in finished.rows["client-1"]]
    again = replace(entries[1], run=run, attempt=attempt)
    session = finished.report["rounds"][0]["exchanges"][0]["session_id"]
    more = [again, Commit(len(entries), again.event), Release(len(entries), session, None)]
    finished.rebuild("client-1", entries + more)
    finished.anchor_again("client-1")
    found = audit(finished.report, finished.lines, finished.roster)[3]
    assert found.status == "FAIL"
    assert "one session" in found.evidence


def test_a_claim_that_names_another_accountant(finished: Any) -> None:
    for claim in finished.report["claims"]:
        claim["accountant"] = "rdp"
    found = audit(finished.report, finished.lines, finished.roster)[1]
    assert found.status == "FAIL"
    assert "PLD prices its rows" in found.evidence


@pytest.mark.parametrize("name", ["generator_state", "aes_key", "Nonce"])
def test_what_is_as_good_as_a_seed_published(finished: Any, name: str) -> None:
    finished.report["randomness"][name] = "00" * 32
    found = audit(finished.report, finished.lines, finished.roster)[12]
    assert found.status == "FAIL"
    assert name in found.evidence
