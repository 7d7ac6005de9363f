"""Forgeries of reports, ledgers and evidence in one table: who does what, and which check says why it is false.

Each forgery is as consistent as its forger could make it: hashes recomputed, claims computed again, rows signed by
the client itself where the client lies. The honest federation that they start from has no FAIL, with the same
evidence at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from accounting import report as reports
from accounting.anchor import Anchor, ledger_head
from accounting.audit import audit
from accounting.case import Evidence, Verdict
from accounting.chain import Chain, Commit, Entry, Open, Release, Reserve, replay
from accounting.empirical import EmpiricalResult
from accounting.events import AdaptiveClipPoissonGaussian, DistributedSkellam
from accounting.planning import Plan
from accounting.private_audit import AttemptRecord, StepRecord
from accounting.rows import RECORDED_AS, Partition

Forge = Callable[[Any], None]


def verdicts(federation: Any) -> dict[int, Verdict]:
    """The audit of a federation with everything that an auditor may have."""
    evidence = Evidence(federation.private, getattr(federation, "attack", None), federation.partition)
    found = audit(federation.report, federation.lines, federation.roster, evidence)
    return {verdict.check: verdict for verdict in found}


# --- the forgers' tools -----------------------------------------------------------------------------------------


def entries(federation: Any, client_id: str) -> list[Entry]:
    return [row.entry for row in federation.rows[client_id]]


def rewrite(
    federation: Any, client_id: str, edit: Callable[[Entry], Entry | None], *, sign: bool = True
) -> None:
    """A client's rows changed one by one (None: dropped) and hashed again; signed again by the client, or not."""
    changed = [new for entry in entries(federation, client_id) if (new := edit(entry)) is not None]
    federation.rebuild(client_id, changed)
    if sign:
        federation.anchor_again(client_id)


def claim_again(federation: Any) -> None:
    """The claims that now follow from plans and rows."""
    plans = {
        client_id: Plan(**{name: item for name, item in value.items() if name != "planned_steps"})
        for client_id, value in federation.report["plan"].items()
    }
    chains = {chain.client_id: chain for chain in replay(federation.lines).values()}
    federation.report["claims"] = reports.make_claims(plans, chains, federation.report["run"])


def edit_events(federation: Any, client_id: str, edit: Callable[[Any], Any], *, sign: bool = True) -> None:
    """All of a client's events replaced."""
    rewrite(
        federation,
        client_id,
        lambda entry: (
            replace(entry, event=edit(entry.event)) if isinstance(entry, Reserve | Commit) else entry
        ),
        sign=sign,
    )


def edit_private(federation: Any, client_id: str, edit: Callable[[StepRecord], StepRecord]) -> None:
    """A client's private records changed, and its ledger made to commit to them: its trainer really did this."""
    records = [
        replace(record, steps=tuple(edit(step) for step in record.steps))
        for record in federation.private[client_id]
    ]
    federation.private[client_id] = tuple(records)
    commit_to(federation, client_id)


def commit_to(federation: Any, client_id: str) -> None:
    """The ledger commits to the private file as it is now."""
    digests = {record.reservation: record.digest for record in federation.private[client_id]}
    rewrite(
        federation,
        client_id,
        lambda entry: (
            replace(entry, private_audit=digests[entry.reservation]) if isinstance(entry, Commit) else entry
        ),
    )


def record_other(federation: Any, client_id: str, name: str, value: str) -> None:
    """A client's reservations record something else under a name."""
    rewrite(
        federation,
        client_id,
        lambda entry: (
            replace(entry, versions={**entry.versions, name: value}) if isinstance(entry, Reserve) else entry
        ),
    )


# --- rows -------------------------------------------------------------------------------------------------------


def edited_row(federation: Any) -> None:
    row = federation.rows["client-1"][1]
    changed = replace(row.entry, event=replace(row.entry.event, noise_multiplier=99.0))
    federation.rows["client-1"][1] = replace(row, entry=changed)


def reordered_rows(federation: Any) -> None:
    rows = federation.rows["client-1"]
    rows[3], rows[4] = rows[4], rows[3]


def truncated(federation: Any) -> None:
    del federation.rows["client-1"][-2:]


def rehashed_without_a_round(federation: Any) -> None:
    edit_events(federation, "client-1", lambda event: replace(event, steps=1), sign=False)
    claim_again(federation)


def another_runs_rows(federation: Any) -> None:
    """A client's genuine rows of a cheaper run, signed, in place of those of this run."""
    rewrite(
        federation,
        "client-1",
        lambda entry: replace(entry, run="cd" * 16) if isinstance(entry, Reserve) else entry,
    )
    claim_again(federation)


def withheld_ledger(federation: Any) -> None:
    del federation.rows["client-2"]


def two_anchors(federation: Any) -> None:
    """An older genuine anchor beside the newer one: whichever a reader takes, something fits."""
    federation.report["anchors"].append(federation.report["anchors"][0])
    federation.report["ledger_head"] = ledger_head(map(Anchor.from_json, federation.report["anchors"]))


def duplicate_resume(federation: Any) -> None:
    """Rounds run again after crashes that the plan had no room for, all of them charged."""
    chain = Chain("client-1", "reviews")
    for row in federation.rows["client-1"]:
        chain.extend(row)
    first = federation.rows["client-1"][1].entry
    for attempt in (2, 3):
        chain.extend(chain.next_row(replace(first, attempt=attempt)))
    federation.rows["client-1"] = chain.rows
    federation.anchor_again("client-1")
    claim_again(federation)


def uncharged_round(federation: Any) -> None:
    kept = [e for e in entries(federation, "client-1") if not (isinstance(e, Reserve) and e.round == 3)][:-2]
    federation.rebuild("client-1", kept)
    federation.anchor_again("client-1")
    claim_again(federation)


def noise_lowered_after_planning(federation: Any) -> None:
    edit_events(
        federation, "client-1", lambda event: replace(event, noise_multiplier=0.9 * event.noise_multiplier)
    )
    claim_again(federation)


# --- reports ----------------------------------------------------------------------------------------------------


def lower_epsilon(federation: Any) -> None:
    for claim in federation.report["claims"]:
        claim["epsilon"] /= 2


def lifetime_untold(federation: Any) -> None:
    for claim in federation.report["claims"]:
        claim["lifetime_epsilon"] = None


def large_delta(federation: Any) -> None:
    for value in (*federation.report["plan"].values(), *federation.report["claims"]):
        value["delta"] = 1e-3
    claim_again(federation)


def wrong_sampler(federation: Any) -> None:
    federation.report["plan"]["client-1"]["sampler"] = "shuffled"


def unrecorded_sampler(federation: Any) -> None:
    """A client that sent no rows, claimed at a plan that amplifies by shuffling."""
    federation.report["plan"]["client-2"]["sampler"] = "shuffled"
    del federation.rows["client-2"]


def wrong_adjacency(federation: Any) -> None:
    for claim in federation.report["claims"]:
        claim["adjacency"] = "replace-one"


def fewer_survivors(federation: Any) -> None:
    """A sum of one that the report says had company."""
    federation.report["rounds"][0]["survivors"] = ["client-1"]


def a_survivor_that_was_lost(federation: Any) -> None:
    federation.report["rounds"][1]["survivors"].append("client-2")


def omitted_round(federation: Any) -> None:
    del federation.report["rounds"][-1]


def omitted_release(federation: Any) -> None:
    federation.report["non_private"] = []
    del federation.report["outputs"][2]


def updates_left_undeclared(federation: Any) -> None:
    del federation.report["outputs"][0]


def a_session_listed_twice(federation: Any) -> None:
    federation.report["rounds"][1]["session_id"] = federation.report["rounds"][0]["session_id"]


def a_longer_round(federation: Any) -> None:
    """Two rounds' steps in one, within the total that was planned."""
    rewrite(
        federation, "client-2",
        lambda entry: replace(entry, event=replace(entry.event, steps=8))
        if isinstance(entry, Reserve) and entry.round == 2
        else entry,
    )  # fmt: skip
    claim_again(federation)


def published_seed(federation: Any) -> None:
    federation.report["randomness"]["details"] = {"sampling": [{"seed": 7}]}


def seed_published_elsewhere(federation: Any) -> None:
    federation.report["bytes"]["noise_seed"] = 7


def other_code(federation: Any) -> None:
    federation.report["versions"]["code_sha256"] = "0" * 64


def changing_clip_norm(federation: Any) -> None:
    """Clipping at the median of the last step's norms, with nothing charged for the median."""
    numbers = iter(range(1, 100))
    edit_events(
        federation, "client-1", lambda event: replace(event, clip_norm=1 + 0.1 * ((next(numbers) - 1) // 2))
    )
    claim_again(federation)


def uncharged_counts(federation: Any) -> None:
    """Counts with noise so small that they eat what the vectors' noise was planned for."""

    def adaptive(event: Any) -> Any:
        return AdaptiveClipPoissonGaussian(
            event.noise_multiplier, 0.6, event.sample_rate, event.steps, event.clip_norm, event.adjacency
        )

    edit_events(federation, "client-1", adaptive)


def warm_start(federation: Any) -> None:
    federation.report["experiment"]["start_weights"]["from_run"] = "ef" * 16


# --- shares of noise --------------------------------------------------------------------------------------------


def shares(*, masked_once: bool = True, **changes: Any) -> Forge:
    """Every client's charges priced as shares of Skellam noise, in sums as the report states them."""

    def forge(federation: Any) -> None:
        if masked_once:
            rewrite(federation, "client-3", lambda e: None if getattr(e, "session", None) == "f" * 32 else e)
        for client_id in federation.rows:
            edit_events(federation, client_id, lambda event: _share(event, **changes))
        federation.report["secure_aggregation"] |= {
            "dimension": 4096, "scale": 1024.0, "modulus_bits": 24, "max_colluders": 0,
        }  # fmt: skip

    return forge


def _share(event: Any, **changes: Any) -> DistributedSkellam:
    stated = {
        "local_stddev": 1500.0, "scale": 1024.0, "clip_norm": event.clip_norm, "dimension": 4096, "survivors": 2,
        "max_colluders": 0, "modulus_bits": 24, "rounding_beta": 0.0, "unit": "example",
        "sample_rate": event.sample_rate, "steps": event.steps, "adjacency": event.adjacency,
    }  # fmt: skip
    return DistributedSkellam(**{**stated, **changes})


def whole_clients_for_examples(federation: Any) -> None:
    """Ledgers of the unit "client" under claims for one example."""
    shares(unit="client", sample_rate=1.0, adjacency="zero-out")(federation)
    for client_id in federation.rows:
        rewrite(
            federation,
            client_id,
            lambda entry: replace(entry, unit="client") if isinstance(entry, Open) else entry,
        )


def more_colluders_than_priced(federation: Any) -> None:
    shares()(federation)
    federation.report["secure_aggregation"]["max_colluders"] = 1


def a_share_sent_twice(federation: Any) -> None:
    """client-3 masked its vector of round 3 in a second session; in mode local that is harmless."""
    shares(masked_once=False)(federation)


def a_share_sent_unmasked(federation: Any) -> None:
    shares()(federation)
    rewrite(
        federation,
        "client-1",
        lambda entry: replace(entry, session=None) if isinstance(entry, Release) else entry,
    )


def one_client_with_a_smaller_share(federation: Any) -> None:
    shares()(federation)
    edit_events(federation, "client-2", lambda event: replace(event, local_stddev=event.local_stddev / 2))


# --- private audit files ----------------------------------------------------------------------------------------


def regular_batches(federation: Any) -> None:
    edit_private(federation, "client-1", lambda step: replace(step, batch_size=20, clipped=20))


def private_file_of_another_run(federation: Any) -> None:
    federation.private["client-1"] = tuple(
        replace(record, run="cd" * 16) for record in federation.private["client-1"]
    )


def private_file_made_up_later(federation: Any) -> None:
    """Honest-looking steps, but not those that the ledger committed to when they were taken."""
    generator = np.random.default_rng(11)

    def again(record: AttemptRecord) -> AttemptRecord:
        steps = tuple(
            replace(step, batch_size=size, clipped=size)
            for step, size in zip(
                record.steps, generator.binomial(1000, 0.02, len(record.steps)).tolist(), strict=True
            )
        )
        return replace(record, steps=steps)

    federation.private["client-1"] = tuple(again(record) for record in federation.private["client-1"])


def private_file_with_a_step_left_out(federation: Any) -> None:
    federation.private["client-1"] = tuple(
        replace(record, steps=record.steps[1:]) for record in federation.private["client-1"]
    )
    commit_to(federation, "client-1")


def an_attempt_noted_twice(federation: Any) -> None:
    first = federation.private["client-1"][0]
    federation.private["client-1"] = (first, *federation.private["client-1"])


def more_clipped_than_drawn(federation: Any) -> None:
    edit_private(federation, "client-1", lambda step: replace(step, clipped=step.batch_size + 1))


def small_noise(federation: Any) -> None:
    edit_private(
        federation, "client-1",
        lambda step: replace(step, noise_squares=0.7 * step.noise_squares, largest_noise=0.83 * step.largest_noise),
    )  # fmt: skip


def no_noise(federation: Any) -> None:
    numbers = iter(range(1, 10**6))
    edit_private(
        federation, "client-1",
        lambda step: replace(step, noise_squares=1e-12 * next(numbers), largest_noise=1e-9 * next(numbers)),
    )  # fmt: skip


def clamped_noise(federation: Any) -> None:
    """Noise clamped to three standard deviations: the norms hardly change, the largest coordinates do."""
    noise = federation.report["plan"]["client-1"]["noise_multiplier"]
    edit_private(federation, "client-1", lambda step: replace(step, largest_noise=3 * noise))


def repeated_noise(federation: Any) -> None:
    """A stream begun again at every round."""
    first = federation.private["client-1"][0].steps
    federation.private["client-1"] = tuple(
        replace(record, steps=first) for record in federation.private["client-1"]
    )
    commit_to(federation, "client-1")


def unclipped_gradient(federation: Any) -> None:
    edit_private(federation, "client-1", lambda step: replace(step, largest_norm=1.5))


def unclipped_sum(federation: Any) -> None:
    edit_private(federation, "client-1", lambda step: replace(step, sum_norm=1.01 * step.batch_size))


def more_rows_than_declared(federation: Any) -> None:
    federation.private["client-1"] = tuple(
        replace(record, examples=200_000) for record in federation.private["client-1"]
    )
    commit_to(federation, "client-1")


# --- rows of data and attacks -----------------------------------------------------------------------------------


def a_row_held_twice(federation: Any) -> None:
    held = {**federation.partition.rows, "client-2": (5, *federation.partition.rows["client-2"][1:])}
    federation.partition = Partition("reviews", held)
    record_other(federation, "client-2", RECORDED_AS, federation.partition.digest("client-2"))


def the_same_rows_twice(federation: Any) -> None:
    federation.partition = None
    record_other(federation, "client-2", RECORDED_AS, "ab" * 32)
    record_other(federation, "client-3", RECORDED_AS, "ab" * 32)


def lists_that_nobody_trained_on(federation: Any) -> None:
    federation.partition = Partition(
        "reviews", {**federation.partition.rows, "client-2": tuple(range(7000, 8000))}
    )


def parts_of_two_splits(federation: Any) -> None:
    federation.partition = None
    rewrite(
        federation, "client-2",
        lambda entry: replace(entry, partition_id="dirichlet-3-1") if entry.kind == "open" else entry,
    )  # fmt: skip


def rows_that_change(federation: Any) -> None:
    """Other rows in the last round, under the same budget."""
    federation.partition = None
    rewrite(
        federation,
        "client-1",
        lambda entry: (
            replace(entry, versions={**entry.versions, RECORDED_AS: "cd" * 32})
            if isinstance(entry, Reserve) and entry.round == 3
            else entry
        ),
    )


def a_row_listed_twice(federation: Any) -> None:
    """One row counted twice, so that as many rows are listed as are declared."""
    rows = federation.partition.rows["client-1"]
    federation.partition = Partition(
        "reviews", {**federation.partition.rows, "client-1": (rows[1], *rows[1:])}
    )
    record_other(federation, "client-1", RECORDED_AS, federation.partition.digest("client-1"))


def attack(**changes: Any) -> Forge:
    """The record of an attack beside the report."""

    def forge(federation: Any) -> None:
        counts = {
            "canaries": 1000, "guesses": 100, "correct": 100, "tests": 1, "confidence": 0.95, "delta": 1e-5,
            "lower_bound": 3.465376, "trained_epsilon": 0.5, "run": federation.report["run"],
            "client_id": "client-1", "method": "one-run", "attack": "gradient", "attacker": "sees the update",
            "assumption": "none, beyond independent fair coins",
        }  # fmt: skip
        federation.attack = EmpiricalResult(**{**counts, **changes})

    return forge


TABLE: list[tuple[Forge, int, str]] = [
    (edited_row, 1, "does not follow from the row before"),
    (reordered_rows, 1, "out of place"),
    (truncated, 1, "is missing, the signed ledger has"),
    (rehashed_without_a_round, 1, "is not the one that was signed"),
    (a_share_sent_twice, 1, "into a second sum"),
    (a_share_sent_unmasked, 1, "releases a share of noise, row 1, unmasked"),
    (two_anchors, 1, "a client has more than one anchor"),
    (withheld_ledger, 1, "client-2: row 0 is missing"),
    (omitted_round, 1, "which the report omits"),
    (lower_epsilon, 2, "the rows cost"),
    (lifetime_untold, 2, "no lifetime epsilon is claimed"),
    (large_delta, 3, "is not below 1/n"),
    (more_rows_than_declared, 3, "by its private audit file"),
    (another_runs_rows, 4, "its ledger has no committed charge"),
    (duplicate_resume, 4, "20 steps are charged, 16 were planned"),
    (uncharged_round, 4, "client-1 in round 3 is in the sum, but its ledger has no committed charge"),
    (noise_lowered_after_planning, 4, "was planned"),
    (shares(), 4, "DistributedSkellam is charged, where Gaussian noise at the client was planned"),
    (a_longer_round, 4, "8 steps in a round of 4"),
    (a_session_listed_twice, 4, "a session is listed for two rounds"),
    (fewer_survivors, 4, "fewer than min_survivors"),
    (a_survivor_that_was_lost, 4, "client-2 in round 2 is in the sum, but its ledger has no committed charge"),
    (wrong_sampler, 5, "samples by 'shuffled'"),
    (unrecorded_sampler, 5, "amplification is known here for Poisson, not 'shuffled'"),
    (wrong_adjacency, 5, "another adjacency"),
    (whole_clients_for_examples, 5, "protects one client, the claim is for"),
    (regular_batches, 6, "most common size"),
    (private_file_of_another_run, 6, "belongs to another run"),
    (private_file_made_up_later, 6, "is not the one that the ledger committed to"),
    (private_file_with_a_step_left_out, 6, "has 3 steps, the ledger charged 4"),
    (an_attempt_noted_twice, 6, "is there twice"),
    (more_clipped_than_drawn, 7, "more examples were clipped or zeroed than drawn"),
    (small_noise, 7, "size of the noise"),
    (no_noise, 7, "size of the noise"),
    (clamped_noise, 7, "largest coordinate"),
    (repeated_noise, 7, "the same noise was added twice"),
    (unclipped_gradient, 7, "a clipped gradient is longer than the clip norm"),
    (unclipped_sum, 7, "a sum is longer than its batch"),
    (shares(), 8, "where the report says mode 'local'"),
    (shares(survivors=3), 8, "is priced for 3 survivors, sums of 2 are allowed"),
    (shares(survivors=3), 8, "round 2 sums 2 shares of noise, fewer than the 3 that are priced"),
    (more_colluders_than_priced, 8, "reckons with 0 colluders, the report with 1"),
    (one_client_with_a_smaller_share, 8, "the clients' charges differ in local_stddev"),
    (shares(dimension=3000), 9, "no power of two"),
    (shares(dimension=2048), 9, "is priced with dimension 2048, the sums have 4096"),
    (shares(scale=65536.0), 9, "is priced with scale 65536.0, the sums have 1024.0"),
    (shares(clip_norm=0.5), 9, "clips to 0.5, the plan to 1"),
    (a_row_held_twice, 10, "row 5 is held by client-1 and client-2"),
    (rows_that_change, 10, "client-1 trained on other rows in some rounds than in others"),
    (a_row_listed_twice, 10, "client-1: a row is in its list twice"),
    (the_same_rows_twice, 10, "client-2 and client-3 record the same rows"),
    (lists_that_nobody_trained_on, 10, "is not the one that its ledger records"),
    (parts_of_two_splits, 10, "hold parts of different splits"),
    (omitted_release, 11, "outside the guarantee, unlisted"),
    (updates_left_undeclared, 11, "no declared output is of their kind"),
    (warm_start, 12, "which no ledger here has charged"),
    (published_seed, 13, "publishes 'seed'"),
    (seed_published_elsewhere, 13, "publishes 'noise_seed'"),
    (changing_clip_norm, 14, "no noised count is charged"),
    (uncharged_counts, 14, "with its counts the noise multiplier is"),
    (attack(), 15, "shows epsilon of at least 3.4654"),
    (attack(lower_bound=0.2), 15, "its counts give 3.465376"),
    (other_code, 16, "where the report has 0000"),
]  # fmt: skip


def _name(value: object) -> str | None:
    """A forgery's name in the list of tests."""
    return getattr(value, "__qualname__", "").partition(".")[0] or None


@pytest.mark.parametrize(("forge", "check", "reason"), TABLE, ids=_name)
def test_a_forgery_fails_for_the_right_reason(finished: Any, forge: Forge, check: int, reason: str) -> None:
    forge(finished)
    found = verdicts(finished)
    assert found[check].status == "FAIL", found[check]
    assert reason in full_evidence(finished, check)
    assert found[check].remedy


def full_evidence(federation: Any, check: int) -> str:
    """All problems of a check; a verdict's text shows the first few."""
    from accounting.audit import _replay
    from accounting.case import Case, Findings
    from accounting.checks import CHECKS

    chains, broken = _replay(federation.lines)
    evidence = Evidence(federation.private, getattr(federation, "attack", None), federation.partition)
    found = Findings()
    CHECKS[check - 1].body(Case(federation.report, chains, broken, federation.roster, evidence), found)
    return "; ".join(found.problems)


def test_every_check_has_a_forgery() -> None:
    assert {check for _, check, _ in TABLE} == set(range(1, 17))


def test_the_honest_federation_passes_all_that_can_be(finished: Any) -> None:
    found = verdicts(finished)
    assert {number for number, verdict in found.items() if verdict.status == "FAIL"} == set()
    assert {number for number, verdict in found.items() if verdict.status == "UNVERIFIABLE"} == {12, 15}
    assert all(verdict.remedy for verdict in found.values() if verdict.status == "UNVERIFIABLE")
