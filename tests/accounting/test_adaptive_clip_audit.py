"""Adaptive clipping, audited: counts in the private audit file, an honest federation, and forgeries of both."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from accounting.audit import _replay, audit
from accounting.case import Case, Evidence, Findings, Verdict
from accounting.checks import CHECKS
from accounting.errors import PrivateAuditError
from accounting.events import AdaptiveClipPoissonGaussian, PoissonGaussian
from accounting.planning import Plan
from accounting.private_audit import CountRecord, append, read

from .adaptive import RULE, rule
from .conftest import honest_record, make_federation, next_clip_norm
from .forging import claim_again, commit_to, edit_events, edit_private, record_other

# --- the private audit file ---------------------------------------------------------------------------------


def test_counts_come_back_from_the_file(original_adaptive: Any, tmp_path: Any) -> None:
    records = original_adaptive.private["client-1"]
    for record in records:
        append(tmp_path / "private.jsonl", record)
    assert read(tmp_path / "private.jsonl") == records
    assert "noised" not in repr(records[0])


def test_a_fixed_clip_norm_writes_no_count(original: Any) -> None:
    assert '"count"' not in original.private["client-1"][0].to_line()


@pytest.mark.parametrize(
    "broken", [{"clip_norm": 0.0}, {"clip_norm": 1}, {"noised": math.nan}, {"unclipped": -1}]
)
def test_a_count_that_is_none_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(PrivateAuditError):
        CountRecord(**{"clip_norm": 1.0, "unclipped": 3, "noised": -0.5, **broken})


# --- audits -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def original_adaptive(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_federation(tmp_path_factory.mktemp("adaptive"), RULE)


@pytest.fixture
def adaptive(original_adaptive: Any) -> Any:
    """Three clients, three rounds, each client's clip norm following its own noised counts."""
    made = original_adaptive
    rows = {client_id: list(rows) for client_id, rows in made.rows.items()}
    return replace(made, report=copy.deepcopy(made.report), rows=rows, private=dict(made.private))


def verdicts(federation: Any, *, private: bool = True) -> dict[int, Verdict]:
    evidence = Evidence(federation.private if private else {}, None, federation.partition)
    return {v.check: v for v in audit(federation.report, federation.lines, federation.roster, evidence)}


def failed(federation: Any, check: int) -> str:
    """All the problems of a check that must have failed; a verdict's text shows the first few."""
    chains, broken = _replay(federation.lines)
    evidence, found = Evidence(federation.private, None, federation.partition), Findings()
    CHECKS[check - 1].body(Case(federation.report, chains, broken, federation.roster, evidence), found)
    assert found.status == "FAIL", found
    return "; ".join(found.problems)


def test_an_honest_adaptive_federation_passes_all_that_can_be(adaptive: Any) -> None:
    found = verdicts(adaptive)
    assert {number for number, verdict in found.items() if verdict.status == "FAIL"} == set()
    assert {number for number, verdict in found.items() if verdict.status == "UNVERIFIABLE"} == {12, 15}
    assert "every clip norm follows from the noised counts" in found[7].evidence
    assert "vectors and counts together have noise multiplier" in found[14].evidence
    begun = {row.entry.event.clip_norm for row in adaptive.rows["client-1"] if hasattr(row.entry, "event")}
    assert len(begun) == 3  # every round begins where the counts of the last had led


def test_few_counts_of_little_noise_are_not_taken_for_proof(tmp_path: Any) -> None:
    found = verdicts(make_federation(tmp_path, rule(count_noise_stddev=1.0)))
    assert {number for number, verdict in found.items() if verdict.status == "FAIL"} == set()
    assert found[7].status == "UNVERIFIABLE"
    assert "noised counts are too few" in found[7].evidence


def lower_the_counts_noise(event: Any) -> Any:
    return replace(event, count_noise_stddev=1.0)


def as_plain(event: Any) -> PoissonGaussian:
    return PoissonGaussian(
        event.noise_multiplier, event.sample_rate, event.steps, event.clip_norm, event.adjacency
    )


def test_count_noise_lowered_in_the_report(adaptive: Any) -> None:
    adaptive.report["plan"]["client-1"]["adaptive_clip"]["count_noise_stddev"] = 1.0
    claim_again(adaptive)
    evidence = failed(adaptive, 4)
    assert "count_noise_stddev 50 where 1 was planned" in evidence


def test_count_noise_lowered_in_the_rows(adaptive: Any) -> None:
    edit_events(adaptive, "client-1", lower_the_counts_noise)
    claim_again(adaptive)
    assert "count_noise_stddev 1 where 50 was planned" in failed(adaptive, 4)
    assert "with its counts the noise multiplier is" in failed(adaptive, 14)


@pytest.mark.parametrize("name", ["noise_multiplier", "count_noise_stddev"])
@pytest.mark.parametrize("value", [1e-300, 5e-324])
def test_a_row_of_hardly_any_noise_is_a_finding_not_a_crash(adaptive: Any, name: str, value: float) -> None:
    edit_events(adaptive, "client-1", lambda event: replace(event, **{name: value}))
    found = verdicts(adaptive)
    assert {found[check].status for check in (2, 4, 14)} == {"FAIL"}, found[2]


def test_counts_left_uncharged_in_the_rows(adaptive: Any) -> None:
    edit_events(adaptive, "client-1", as_plain)
    claim_again(adaptive)
    assert "PoissonGaussian is charged, where adaptive clipping with noised counts was planned" in failed(
        adaptive, 4
    )
    assert "charges no counts, and the plan's clip norm follows counts" in failed(adaptive, 14)


def test_counts_left_uncharged_in_rows_plan_and_digests(adaptive: Any) -> None:
    """The client itself says everywhere that its clip norm is a constant: only its private file knows better."""
    edit_events(adaptive, "client-1", lambda event: replace(as_plain(event), clip_norm=1.0))
    del adaptive.report["plan"]["client-1"]["adaptive_clip"]
    stated = Plan.from_json(adaptive.report["plan"]["client-1"])
    record_other(adaptive, "client-1", "plan_sha256", stated.digest())
    adaptive.report["outputs"].append({"what": "its updates", "covered_by": "PoissonGaussian"})
    claim_again(adaptive)
    assert "its steps counted clipped examples, and no count is charged" in failed(adaptive, 7)
    without = verdicts(adaptive, private=False)
    assert {number for number, verdict in without.items() if verdict.status == "FAIL"} == set()
    assert without[7].status == "UNVERIFIABLE"
    assert "no private audit file of client-1" in without[7].evidence


def test_a_claim_at_the_price_of_the_gradients_alone(adaptive: Any) -> None:
    honest = adaptive.report["claims"]
    for client_id in adaptive.rows:
        edit_events(adaptive, client_id, as_plain)
    claim_again(adaptive)
    cheaper = adaptive.report["claims"]
    assert cheaper[0]["epsilon"] < honest[0]["epsilon"]
    for client_id in adaptive.rows:
        edit_events(
            adaptive,
            client_id,
            lambda event: AdaptiveClipPoissonGaussian(
                event.noise_multiplier, 50.0, event.sample_rate, event.steps, event.clip_norm
            ),
        )
    assert "is reported, the rows cost" in failed(adaptive, 2)


def test_more_gradient_noise_stated_than_added(adaptive: Any) -> None:
    """Plan and rows both forged to a larger multiplier: what was measured is smaller."""
    for name in adaptive.rows:
        edit_events(
            adaptive, name, lambda event: replace(event, noise_multiplier=1.1 * event.noise_multiplier)
        )
        adaptive.report["plan"][name]["noise_multiplier"] *= 1.1
        record_other(adaptive, name, "plan_sha256", Plan.from_json(adaptive.report["plan"][name]).digest())
    claim_again(adaptive)
    assert "size of the noise" in failed(adaptive, 7)


def recount(adaptive: Any, client_id: str, edit: Any) -> None:
    """The counts of a client's private file changed, its ledger made to commit to them."""
    edit_private(adaptive, client_id, lambda step: replace(step, count=edit(step, step.count)))


def test_counts_without_noise(adaptive: Any) -> None:
    recount(
        adaptive, "client-1", lambda step, count: replace(count, noised=count.unclipped - step.batch_size / 2)
    )
    assert "the noise on its counts is not Gaussian of standard deviation 50" in failed(adaptive, 7)


def test_counts_with_the_noise_of_another_step(adaptive: Any) -> None:
    noise = iter(list(np.random.default_rng(9).normal(scale=50.0, size=6)) * 2)
    recount(
        adaptive,
        "client-1",
        lambda step, count: replace(count, noised=float(count.unclipped - step.batch_size / 2 + next(noise))),
    )
    assert "noise that comes again" in failed(adaptive, 7)


def test_counts_that_were_not_shifted(tmp_path: Any) -> None:
    made = make_federation(tmp_path, rule(count_noise_stddev=2.0))
    recount(made, "client-1", lambda step, count: replace(count, noised=count.noised + step.batch_size / 2))
    assert "the noise on its counts is not Gaussian" in failed(made, 7)


def test_a_clip_norm_that_follows_something_else(adaptive: Any) -> None:
    recount(adaptive, "client-1", lambda step, count: replace(count, clip_norm=1.01 * count.clip_norm))
    assert "a step clipped to something else than its counts lead to" in failed(adaptive, 7)


def test_a_count_of_other_examples(adaptive: Any) -> None:
    recount(adaptive, "client-1", lambda step, count: replace(count, unclipped=count.unclipped + 1))
    assert "a count is not of the examples that were drawn" in failed(adaptive, 7)


def test_a_round_that_begins_at_a_clip_norm_of_its_own(adaptive: Any) -> None:
    numbers = iter(range(100))
    edit_events(
        adaptive,
        "client-1",
        lambda event: event if next(numbers) < 2 else replace(event, clip_norm=1.5 * event.clip_norm),
    )
    assert "its clip norm follows from no count before it" in failed(adaptive, 7)


def test_a_round_that_goes_back_to_an_older_clip_norm(adaptive: Any) -> None:
    """Which of several public values is taken could depend on the data, and no charge stands for the choice."""
    made = Plan.from_json(adaptive.report["plan"]["client-1"])
    again, begun, records = np.random.default_rng(8), [1.0], []
    for record in adaptive.private["client-1"]:
        records.append(honest_record(made, record.round, record.reservation, again, begun[-1]))
        count = records[-1].steps[-1].count
        assert count is not None
        begun.append(begun[1] if record.round == 2 else next_clip_norm(made, count))
    adaptive.private["client-1"] = tuple(records)
    at = {record.reservation: value for record, value in zip(records, begun, strict=False)}
    reservations = iter([1, 1, 4, 4, 7, 7])
    edit_events(adaptive, "client-1", lambda event: replace(event, clip_norm=at[next(reservations)]))
    commit_to(adaptive, "client-1")
    assert begun[2] == begun[1] != begun[0]
    assert "its clip norm follows from no count before it" in failed(adaptive, 7)


def test_a_clip_norm_may_begin_again_at_the_planned_one(adaptive: Any) -> None:
    """A client whose stored update is gone starts over: public constants are as good as noised counts."""
    made = Plan.from_json(adaptive.report["plan"]["client-1"])
    clip_norms, again = [1.0], np.random.default_rng(8)
    records = []
    for record in adaptive.private["client-1"]:
        records.append(honest_record(made, record.round, record.reservation, again, clip_norms[-1]))
        count = records[-1].steps[-1].count
        assert count is not None
        clip_norms.append(1.0 if record.round == 2 else next_clip_norm(made, count))
    adaptive.private["client-1"] = tuple(records)
    begun = {record.reservation: at for record, at in zip(records, clip_norms, strict=False)}
    reservations = iter([1, 1, 4, 4, 7, 7])
    edit_events(adaptive, "client-1", lambda event: replace(event, clip_norm=begun[next(reservations)]))
    commit_to(adaptive, "client-1")
    assert verdicts(adaptive)[7].status == "PASS", verdicts(adaptive)[7]


def test_first_clip_norm_and_range(adaptive: Any) -> None:
    edit_events(adaptive, "client-1", lambda event: replace(event, clip_norm=1000.0))
    evidence = failed(adaptive, 14)
    assert "is outside the plan's public range" in evidence
    edit_events(adaptive, "client-1", lambda event: replace(event, clip_norm=2.0))
    assert "the first clip norm is not the planned 1" in failed(adaptive, 14)


def test_steps_without_their_counts(adaptive: Any) -> None:
    edit_private(adaptive, "client-1", lambda step: replace(step, count=None))
    assert "counts are charged, and a step has none on file" in failed(adaptive, 7)


def test_constants_that_make_no_sense_are_a_finding(adaptive: Any) -> None:
    adaptive.report["plan"]["client-1"]["adaptive_clip"]["smallest_clip_norm"] = 1000.0
    assert "smallest_clip_norm is above largest_clip_norm" in failed(adaptive, 4)
    assert failed(adaptive, 7)
