"""Several ledgers, one claim: whoever merges them, in whatever order, and never by adding epsilons."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from accounting import report as reports
from accounting.anchor import Anchor
from accounting.audit import audit
from accounting.chain import Chain, replay
from accounting.entries import Commit, Open, Reserve
from accounting.errors import LedgerError, MergeError, PricingError, ReportError
from accounting.events import (
    AdaptiveClipPoissonGaussian,
    DistributedSkellam,
    FixedSizeGaussian,
    Gaussian,
    PoissonGaussian,
    PrivateEvent,
    RepeatedTrials,
    ShuffledGaussian,
    Tuning,
)
from accounting.groups import as_group
from accounting.independent import bracket
from accounting.merge import DISJOINT, OVERLAPPING, Merged, federation_epsilon
from accounting.planning import Plan
from accounting.pricing import epsilon

DELTA = 1e-5
RUN = "ab" * 16
STEP = PoissonGaussian(3.0, 0.05, 4, 1.0)


def chain_of(
    client_id: str, events: list[PrivateEvent], *, dataset_id: str = "reviews", run: str = RUN
) -> Chain:
    """A ledger that reserved these events, one a round, and committed every other one."""
    chain = Chain(client_id, dataset_id)
    chain.extend(chain.next_row(Open("iid", public=True, unit=events[0].unit if events else "example")))
    for number, event in enumerate(events):
        chain.extend(chain.next_row(Reserve(run, number, 1, event, {"numpy": "2"})))
        if number % 2:
            chain.extend(chain.next_row(Commit(len(chain.rows) - 1, event)))
    return chain


def part(chain: Chain, rows: int) -> Chain:
    """The first rows of a chain, as an older copy of the ledger."""
    copy = Chain(chain.client_id, chain.dataset_id)
    for row in chain.rows[:rows]:
        copy.extend(row)
    return copy


def skellam(**changes: Any) -> DistributedSkellam:
    values: dict[str, Any] = {
        "local_stddev": 200.0, "scale": 64.0, "clip_norm": 1.0, "dimension": 1024, "survivors": 10,
        "max_colluders": 1, "modulus_bits": 20, "rounding_beta": 0.0, "unit": "example", "sample_rate": 1.0,
        "steps": 1, "adjacency": "add-remove",
    }  # fmt: skip
    return DistributedSkellam(**{**values, **changes})


# --- merging ---


WHOLE = [chain_of(f"client-{k}", [STEP] * (k + 2)) for k in range(3)]
copies = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 7)), max_size=4).map(
    lambda picks: Merged.of(part(WHOLE[which], min(rows, len(WHOLE[which].rows))) for which, rows in picks)
)


@settings(deadline=None)
@given(copies, copies, copies)
def test_merging_is_associative_commutative_and_idempotent(a: Merged, b: Merged, c: Merged) -> None:
    assert (a | b) | c == a | (b | c)
    assert a | b == b | a
    assert hash(a | b) == hash(b | a)
    assert a | a == a == a | Merged({})


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(3)), st.booleans())
def test_the_claim_does_not_depend_on_the_order(order: list[int], overlapping: bool) -> None:
    merged = Merged.of(WHOLE[k] for k in order)
    expected = Merged.of(WHOLE).claim(DELTA, overlapping=overlapping)
    assert merged.claim(DELTA, overlapping=overlapping) == expected


def test_an_older_copy_is_recognised_and_another_history_is_not(original: Any) -> None:
    chain = chain_of("client-1", [STEP] * 3)
    assert Merged.of([chain, part(chain, 2)]) == Merged.of([part(chain, 3), chain, chain])
    forked = part(chain, 3)
    forked.extend(forked.next_row(Reserve(RUN, 9, 1, replace(STEP, noise_multiplier=9.0), {})))
    with pytest.raises(LedgerError, match="differ from here on") as caught:
        Merged.of([chain, forked])
    assert caught.value.row == 3
    with pytest.raises(LedgerError, match="row 0"):
        Merged.of([chain]) | Merged.of(replay(original.rows["client-1"]).values())


def test_exports_of_different_runs_and_clients_come_together(original: Any) -> None:
    """As their files are: several chains in one export, and one client in both."""
    both = Merged.read(original.lines) | Merged.of([chain_of("client-9", [STEP], run="cd")])
    assert [client_id for client_id, _ in both.chains] == ["client-1", "client-2", "client-3", "client-9"]
    assert both.claim(DELTA, run="cd").clients.keys() == {("client-9", "reviews")}


# --- claims ---


def test_disjoint_data_cost_the_largest_epsilon_and_overlapping_data_the_composed_events() -> None:
    merged = Merged.of(WHOLE)
    disjoint, overlapping = merged.claim(DELTA), merged.claim(DELTA, overlapping=True)
    each = {key: epsilon(chain.spent(), DELTA) for key, chain in merged.chains.items()}
    assert dict(disjoint.clients) == dict(overlapping.clients) == each
    assert (disjoint.epsilon, disjoint.basis) == (max(each.values()), DISJOINT)
    steps = sum(event.steps for chain in WHOLE for event in chain.spent())
    assert overlapping.epsilon == epsilon([replace(STEP, steps=steps)], DELTA)
    assert overlapping.basis == OVERLAPPING
    # Adding epsilons would be no tighter, and would need the deltas added too.
    assert disjoint.epsilon < overlapping.epsilon < sum(each.values())


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.data())
def test_epsilon_is_the_same_for_any_grouping(rounds: list[int], data: st.DataObject) -> None:
    """However the steps of a row are spread over events, rounds and ledgers."""
    cut = data.draw(st.integers(0, len(rounds)))
    holdings = [[replace(STEP, steps=steps) for steps in side] for side in (rounds[:cut], rounds[cut:])]
    whole = epsilon([replace(STEP, steps=sum(rounds))], DELTA)
    assert federation_epsilon(map(tuple, holdings), DELTA, overlapping=True) == whole
    chains = [chain_of(f"c{at}", events) for at, events in enumerate(holdings)]
    merged = Merged.of(chains)
    assert merged.claim(DELTA, overlapping=True).epsilon == whole
    # Ledger replay equals the running total.
    for chain, events in zip(chains, holdings, strict=True):
        again = replay([row.to_line() for row in chain.rows])[chain.client_id, "reviews"]
        assert again.spent() == tuple(events)


def test_an_uncommitted_reservation_counts_in_full() -> None:
    chain = chain_of("client-1", [STEP])
    before = Merged.of([part(chain, 2)]).claim(DELTA).epsilon
    chain.extend(chain.next_row(Commit(1, replace(STEP, steps=1))))
    assert Merged.of([chain]).claim(DELTA).epsilon < before


def test_each_view_is_claimed_only_as_far_as_events_promise_it() -> None:
    merged = Merged.of([chain_of("client-1", [skellam(max_colluders=2)]), chain_of("client-2", [STEP])])
    assert merged.claim(DELTA, "colluding-clients").max_colluders == 2
    assert merged.claim(DELTA, "server").epsilon == max(merged.claim(DELTA).clients.values())
    trusting = Merged.of([chain_of("client-1", [skellam(max_colluders=0)])])
    assert trusting.views() == ("server", "released-model")
    with pytest.raises(MergeError, match="promises nothing against 'colluding-clients'"):
        trusting.claim(DELTA, "colluding-clients")


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (replace(STEP, adjacency="replace-one"), "add-remove.*replace-one"),
        (skellam(unit="client", adjacency="zero-out"), "client under zero-out"),
    ],
)
def test_mixed_units_and_adjacencies_are_refused(other: PrivateEvent, what: str) -> None:
    with pytest.raises(MergeError, match=what):
        Merged.of([chain_of("a", [STEP]), chain_of("b", [other])]).claim(DELTA)


def test_a_ledger_has_one_unit() -> None:
    chain = chain_of("a", [STEP])
    with pytest.raises(LedgerError, match="counts for each example, the event for each client"):
        chain.extend(chain.next_row(Reserve(RUN, 1, 1, skellam(unit="client", adjacency="zero-out"), {})))


def test_mixed_adjacencies_in_one_ledger_have_no_price() -> None:
    merged = Merged.of([chain_of("a", [STEP, replace(STEP, adjacency="replace-one")])])
    with pytest.raises(MergeError, match=r"add-remove.*replace-one"):
        merged.claim(DELTA)


def test_nothing_charged_is_nothing_to_claim() -> None:
    with pytest.raises(MergeError, match="charge nothing"):
        Merged.of([chain_of("a", [])]).claim(DELTA)
    with pytest.raises(MergeError, match="charge nothing"):
        Merged.of(WHOLE).claim(DELTA, run="ff")


def test_rows_shared_under_shared_noise_are_refused() -> None:
    """Twice in one sum is twice the sensitivity: composing the two ledgers' events would be too cheap."""
    merged = Merged.of([chain_of("a", [skellam()]), chain_of("b", [skellam()])])
    with pytest.raises(MergeError, match="share noise and rows"):
        merged.claim(DELTA, overlapping=True)
    assert merged.claim(DELTA).basis == DISJOINT
    twice = Gaussian(2.0 / 2, 1, 1.0)  # what really happens to one Gaussian sum
    assert epsilon([twice], DELTA) > epsilon([Gaussian(2.0, 1, 1.0)] * 2, DELTA)


# --- several rows of one person ---


def test_a_person_with_one_row_pays_what_a_row_pays() -> None:
    assert as_group([STEP, skellam()], 1) == (STEP, skellam())
    one, unknown = (Merged.of(WHOLE).claim(DELTA, rows_each=rows) for rows in (1, None))
    assert (one.epsilon, one.rows_each, unknown.rows_each) == (unknown.epsilon, 1, None)


@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_the_group_price_bounds_the_binomial_mixture(rows: int, rate: float) -> None:
    """Against brute force: the sum moves by Binomial(k, q) clip norms, exact delta by quadrature."""
    z = 4.0
    shifts = np.arange(rows + 1)
    weights = binom.pmf(shifts, rows, rate)
    (event,) = as_group([PoissonGaussian(z, rate, 1, 1.0)], rows)
    priced = bracket([event], DELTA).high
    x = np.linspace(-12 * z, rows + 12 * z, 40_001)
    p = (weights[:, None] * norm.pdf(x[None], shifts[:, None], z)).sum(axis=0)
    q = norm.pdf(x, scale=z)
    for one, other in ((p, q), (q, p)):
        spent = np.trapezoid(np.maximum(one - math.exp(priced) * other, 0), x)
        assert spent <= DELTA * (1 + 1e-6)
    if rate == 1.0:  # and it is exact where every row is in every step
        short = np.trapezoid(np.maximum(p - math.exp(priced - 0.01) * q, 0), x)
        assert short > DELTA


def test_every_gaussian_event_has_its_group_price() -> None:
    assert as_group([Gaussian(6.0, 2, 1.0), ShuffledGaussian(6.0, 2, 1.0)], 3) == (
        Gaussian(2.0, 2, 1.0),
        ShuffledGaussian(2.0, 2, 1.0),
    )
    (sampled,) = as_group([AdaptiveClipPoissonGaussian(6.0, 3.0, 0.5, 2, 1.0)], 3)
    assert sampled == AdaptiveClipPoissonGaussian(2.0, 1.0, 0.875, 2, 1.0)
    (repeated,) = as_group([RepeatedTrials(Gaussian(6.0, 2, 1.0), 4)], 3)
    assert repeated == RepeatedTrials(Gaussian(2.0, 2, 1.0), 4)
    (tuned,) = as_group([Tuning(Gaussian(6.0, 2, 1.0), 1.0, 0.1)], 3)
    assert tuned == Tuning(Gaussian(2.0, 2, 1.0), 1.0, 0.1)


@pytest.mark.parametrize("event", [skellam(), FixedSizeGaussian(4.0, 10, 100, 1, 1.0)])
def test_what_has_no_group_price_is_refused(event: PrivateEvent) -> None:
    with pytest.raises(PricingError, match="2 rows of one person"):
        as_group([event], 2)


@pytest.mark.parametrize("rows", [0, -1, 1.0, True])
def test_a_number_of_rows_that_is_none_is_refused(rows: Any) -> None:
    with pytest.raises(PricingError, match="whole number of rows"):
        as_group([STEP], rows)


# --- in the report ---


def _plan_of(original: Any, client_id: str) -> Plan:
    fields = original.report["plan"][client_id]
    return Plan(**{name: value for name, value in fields.items() if name != "planned_steps"})


def rebuilt(original: Any, *, overlapping: bool, rows: list[str] | None = None) -> dict[str, Any]:
    old = original.report
    plans = [_plan_of(original, client_id) for client_id in old["plan"]]
    kept = (
        "run",
        "experiment",
        "method",
        "metrics",
        "bytes",
        "randomness",
        "versions",
        "secure_aggregation",
    )
    return reports.build(
        plans=plans,
        rows=rows or original.lines,
        anchors=map(Anchor.from_json, old["anchors"]),
        rounds=[{k: v for k, v in entry.items() if k not in reports.REPEATED} for entry in old["rounds"]],
        overlapping=overlapping,
        outputs=[],
        **{name: old[name] for name in kept},
    )


def test_a_report_of_two_data_sets_is_refused(original: Any) -> None:
    """One of the chains would otherwise be left out of the claim."""
    other = chain_of("client-1", [STEP], dataset_id="letters")
    with pytest.raises(ReportError, match="several data sets"):
        rebuilt(original, overlapping=False, rows=[*original.lines, *(row.to_line() for row in other.rows)])


def test_a_report_may_declare_that_rows_are_shared(original: Any) -> None:
    report = rebuilt(original, overlapping=True)
    claims = {claim["who"]: claim for claim in report["claims"]}
    steps = [event for chain in replay(original.lines).values() for event in chain.spent()]
    assert claims["federation"]["epsilon"] == epsilon(steps, DELTA)
    assert claims["federation"]["basis"] == OVERLAPPING
    assert claims["client-1"] == {claim["who"]: claim for claim in original.report["claims"]}["client-1"]
    verdict = audit(report, original.lines, original.roster)[1]
    assert (verdict.check, verdict.status) == (2, "PASS"), verdict


def test_a_lifetime_that_only_rdp_can_price_is_claimed_so(original: Any) -> None:
    """A tuning before the run: PLD has no price for the best of a random number of trials."""
    plans = {"client-1": _plan_of(original, "client-1")}
    chain = chain_of("client-1", [Tuning(Gaussian(40.0, 2, 1.0), 1.0, 0.5)], run="cd")
    for row in original.rows["client-1"][1:]:
        if isinstance(row.entry, Reserve):
            chain.extend(chain.next_row(row.entry))
    claims = reports.make_claims(plans, {"client-1": chain}, RUN)
    assert {claim["accountant"] for claim in claims} == {"rdp"}
    assert claims[0]["epsilon"] == epsilon(chain.spent(RUN), DELTA, "pld")
    assert claims[0]["lifetime_epsilon"] == epsilon(chain.spent(), DELTA, "rdp") > claims[0]["epsilon"]


def test_a_maximum_passed_off_as_a_composition_fails(original: Any) -> None:
    report = rebuilt(original, overlapping=False)
    for claim in report["claims"]:
        if claim["who"] == "federation":
            claim["basis"] = OVERLAPPING
    verdict = audit(report, original.lines, original.roster)[1]
    assert (verdict.check, verdict.status) == (2, "FAIL")
    assert "federation" in verdict.evidence
    report["claims"][-1]["basis"] = "plan"
    assert audit(report, original.lines, original.roster)[1].status == "FAIL"
