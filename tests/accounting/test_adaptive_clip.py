"""Adaptive clipping, charged: the split of the noise, the rule of the clip norm, plans, audits and forgeries."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from accounting import mechanisms, pricing
from accounting.adaptive_clip import AdaptiveClip
from accounting.audit import _replay, audit
from accounting.case import Case, Evidence, Findings, Verdict
from accounting.checks import CHECKS
from accounting.errors import PlanningError, PrivateAuditError
from accounting.events import AdaptiveClipPoissonGaussian, PoissonGaussian
from accounting.planning import Plan, plan
from accounting.private_audit import CountRecord, append, read
from accounting.what_if import what_if

from .conftest import PLAN, honest_record, make_federation, next_clip_norm
from .forging import claim_again, commit_to, edit_events, edit_private, record_other

DELTA = 1e-5
# Deviations so large that twelve counts of a client suffice for check 7.
RULE = AdaptiveClip(
    target_quantile=0.5,
    learning_rate=0.2,
    count_noise_stddev=50.0,
    smallest_clip_norm=0.01,
    largest_clip_norm=100.0,
)


def rule(**changes: float) -> AdaptiveClip:
    return replace(RULE, **changes)


# --- the split ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("together", "count_noise", "gradients"),
    [
        # By hand: (1 - 1/16)^(-1/2) = 4/sqrt(15); (1 - 1/100)^(-1/2) = 10/sqrt(99);
        # (1/4 - 1/16)^(-1/2) = 4/sqrt(3); (25/36 - 1/9)^(-1/2) = 6/sqrt(21).
        (1.0, 2.0, 1.0327956),
        (1.0, 5.0, 1.0050378),
        (2.0, 2.0, 2.3094011),
        (1.2, 1.5, 1.3093073),
    ],
)
def test_golden_splits(together: float, count_noise: float, gradients: float) -> None:
    found = rule(count_noise_stddev=count_noise).gradient_noise(together)
    assert gradients <= found <= gradients + 1.1e-6  # rounded up


@given(st.floats(0.3, 20), st.floats(0.51, 50))
def test_a_split_never_has_less_noise_than_was_planned(together: float, ratio: float) -> None:
    count = ratio * together
    gradients = rule(count_noise_stddev=count).gradient_noise(together)
    event = AdaptiveClipPoissonGaussian(gradients, count, 0.1, 1, 1.0)
    assert together <= mechanisms.adaptive_clip_noise(event) <= together + 2e-6


@pytest.mark.parametrize("count_noise", [0.5, 0.4, 0.502, 1e-200, 5e-324])
def test_a_count_that_leaves_nothing_for_gradients_is_refused(count_noise: float) -> None:
    with pytest.raises(PlanningError, match=r"take count noise well above 0\.5"):
        rule(count_noise_stddev=count_noise).gradient_noise(1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_quantile": 1.0},
        {"target_quantile": 0.0},
        {"learning_rate": -0.2},
        {"count_noise_stddev": math.inf},
        {"count_noise_stddev": True},
        {"smallest_clip_norm": 200.0},
    ],
)
def test_constants_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(PlanningError):
        rule(**changes)


# --- the rule -----------------------------------------------------------------------------------------------


def test_golden_clip_norms() -> None:
    # 20 drawn of 20 planned, 15 within: b = 7.5 - 2.5 = 5, share .75, C·e^(-.2·.25) = C·.9512294
    assert RULE.next_clip_norm(2.0, 5.0, 20.0) == pytest.approx(2 * 0.9512294, rel=1e-7)
    # an empty batch without noise says nothing: the share is a half, whatever the batch
    assert RULE.next_clip_norm(2.0, 0.0, 20.0) == pytest.approx(2.0, rel=1e-12)
    assert rule(target_quantile=0.9).next_clip_norm(1.0, 0.0, 20.0) == pytest.approx(math.exp(0.08))


@given(st.floats(0.01, 100), st.floats(-1e6, 1e6), st.floats(1, 1e4))
def test_a_clip_norm_never_leaves_its_range(clip_norm: float, noised: float, batch: float) -> None:
    assert 0.01 <= RULE.next_clip_norm(clip_norm, noised, batch) <= 100.0


# --- plans and prices ---------------------------------------------------------------------------------------


def adaptive_plan(**changes: Any) -> Plan:
    return plan(**{"client_id": "client-1", "adaptive_clip": RULE, **PLAN, **changes})


def test_a_plan_costs_its_target_with_its_counts() -> None:
    made = adaptive_plan(adaptive_clip=rule(count_noise_stddev=2.0))
    plain = adaptive_plan(adaptive_clip=None)
    whole = replace(made.round_event(), steps=made.planned_steps)
    assert isinstance(whole, AdaptiveClipPoissonGaussian)
    cost = pricing.epsilon([whole], DELTA)
    assert 0.5 - 0.005 <= cost <= 0.5
    same = PoissonGaussian(plain.noise_multiplier, plain.sample_rate, plain.planned_steps, 1.0)
    assert cost == pytest.approx(pricing.epsilon([same], DELTA), abs=1e-5)
    # Without the count's share it would be cheaper, and with an unshifted count dearer, visibly.
    gradients_alone = replace(same, noise_multiplier=made.noise_multiplier)
    unshifted = replace(whole, count_noise_stddev=1.0)
    assert pricing.epsilon([gradients_alone], DELTA) < cost - 1e-4
    assert pricing.epsilon([unshifted], DELTA) > cost + 1e-3


def test_a_plan_is_refused_where_its_clip_norm_begins_outside_the_range() -> None:
    with pytest.raises(PlanningError, match=r"the clip norm begins at 1000"):
        adaptive_plan(clip_norm=1000.0)


def test_a_plan_survives_its_report() -> None:
    for made in (adaptive_plan(), adaptive_plan(adaptive_clip=None)):
        assert Plan.from_json(made.to_json()) == made
        assert Plan.from_json(made.to_json()).digest() == made.digest()
    with pytest.raises(PlanningError, match="not the fields of a plan"):
        Plan.from_json({**adaptive_plan().to_json(), "surprise": 1})


def test_what_if_shows_the_noise_of_the_gradients() -> None:
    made = adaptive_plan()
    (row,) = what_if(made)
    assert row.noise_multiplier == pytest.approx(made.noise_multiplier, rel=1e-3)
    (refused,) = what_if(adaptive_plan(adaptive_clip=rule(count_noise_stddev=15.0)), target_epsilons=[0.005])
    assert refused.noise_multiplier is None
    assert "leaves the gradients nothing" in str(refused.problem)


def test_rdp_of_both_releases_is_dp_accountings() -> None:
    """dp-accounting composes the two Gaussians of one Poisson sample itself."""
    event = AdaptiveClipPoissonGaussian(1.5, 2.5, 0.05, 40, 1.0)
    both = dp_accounting.ComposedDpEvent(
        [dp_accounting.GaussianDpEvent(1.5), dp_accounting.GaussianDpEvent(2 * 2.5)]
    )
    oracle = RdpAccountant(orders=[2.0, 3.0, 5.0, 9.0, 17.0, 33.0])
    oracle.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(0.05, both), 40))
    ours = pricing.rdp.epsilon(mechanisms.compose([event]), DELTA, (2.0, 3.0, 5.0, 9.0, 17.0, 33.0))
    assert ours == pytest.approx(oracle.get_epsilon(DELTA), rel=1e-9)


def test_one_step_is_the_two_dimensional_mixture() -> None:
    """Brute force: the hockey-stick divergence of the pair (sum, count) on a plane, either way round.

    An example that is drawn moves the sum by the clip norm and the count by a half; mass is counted on a grid of
    cells, so the sum of differences is the divergence up to the rule of midpoints.
    """
    gradients, counts, rate = 1.4, 0.9, 0.3
    event = AdaptiveClipPoissonGaussian(gradients, counts, rate, 1, 1.0)
    width = 0.01
    x = np.arange(-9, 10, width)[:, None]
    y = np.arange(-6, 6.5, width)[None, :]
    out = norm.pdf(x, 0, gradients) * norm.pdf(y, 0, counts)
    present = (1 - rate) * out + rate * norm.pdf(x, 1, gradients) * norm.pdf(y, 0.5, counts)
    for epsilon in (0.1, 0.3, 0.6):
        sides = (
            np.maximum(present - math.exp(epsilon) * out, 0),
            np.maximum(out - math.exp(epsilon) * present, 0),
        )
        exact = max(float(side.sum()) for side in sides) * width**2
        assert pricing.delta_of([event], epsilon) == pytest.approx(exact, abs=2e-5)
    # An unshifted count, whose mean moves by 1, is not what is priced.
    unshifted = (1 - rate) * out + rate * norm.pdf(x, 1, gradients) * norm.pdf(y, 1.0, counts)
    dearer = float(np.maximum(unshifted - math.exp(0.3) * out, 0).sum()) * width**2
    assert dearer > pricing.delta_of([event], 0.3) + 5e-3


@settings(deadline=None, max_examples=10)
@given(st.floats(1.0, 4.0), st.floats(1.0, 10.0), st.integers(1, 40))
def test_composing_rounds_is_composing_steps_whatever_their_clip_norms(
    gradients: float, counts: float, steps: int
) -> None:
    rounds = [AdaptiveClipPoissonGaussian(gradients, counts, 0.1, steps, clip) for clip in (0.5, 1.0, 7.0)]
    whole = AdaptiveClipPoissonGaussian(gradients, counts, 0.1, 3 * steps, 1.0)
    assert mechanisms.compose(rounds) == mechanisms.compose([whole])


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
