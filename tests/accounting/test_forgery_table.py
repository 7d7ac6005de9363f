"""Forgeries in one table: which check says why each is false.

The honest federation that they start from has no FAIL, with the same evidence at hand.
"""

from __future__ import annotations

from typing import Any

import pytest

from accounting.audit import audit
from accounting.case import Evidence, Verdict

from . import exchange_forgeries as exchanges
from .forgeries import (
    Forge,
    a_longer_round,
    a_row_held_twice,
    a_row_listed_twice,
    a_session_listed_twice,
    a_share_sent_twice,
    a_share_sent_unmasked,
    a_survivor_that_was_lost,
    an_attempt_noted_twice,
    another_runs_rows,
    attack,
    changing_clip_norm,
    clamped_noise,
    duplicate_resume,
    edited_row,
    fewer_survivors,
    large_delta,
    lifetime_untold,
    lists_that_nobody_trained_on,
    lower_epsilon,
    more_clipped_than_drawn,
    more_colluders_than_priced,
    more_rows_than_declared,
    no_noise,
    noise_lowered_after_planning,
    noise_on_what_travels_only,
    omitted_release,
    omitted_round,
    one_client_with_a_smaller_share,
    other_code,
    parts_of_two_splits,
    private_file_made_up_later,
    private_file_of_another_run,
    private_file_with_a_step_left_out,
    published_seed,
    regular_batches,
    rehashed_without_a_round,
    reordered_rows,
    repeated_noise,
    rows_that_change,
    seed_published_elsewhere,
    shares,
    small_noise,
    the_same_rows_twice,
    truncated,
    two_anchors,
    uncharged_counts,
    uncharged_round,
    unclipped_gradient,
    unclipped_sum,
    unrecorded_sampler,
    updates_left_undeclared,
    warm_start,
    whole_clients_for_examples,
    withheld_ledger,
    wrong_adjacency,
    wrong_sampler,
)


def verdicts(federation: Any) -> dict[int, Verdict]:
    """The audit of a federation with everything that an auditor may have."""
    evidence = Evidence(federation.private, getattr(federation, "attack", None), federation.partition)
    found = audit(federation.report, federation.lines, federation.roster, evidence)
    return {verdict.check: verdict for verdict in found}


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
    (a_session_listed_twice, 4, "a session is listed twice"),
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
    (noise_on_what_travels_only, 7, "client-1 noised 2000 coordinates in round 1, where its method trains 3000"),
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
    (updates_left_undeclared, 11, "the sum of the clients' updates\" follows from the rest"),
    (warm_start, 12, "which no ledger here has charged"),
    (published_seed, 13, "publishes 'seed'"),
    (seed_published_elsewhere, 13, "publishes 'noise_seed'"),
    (changing_clip_norm, 14, "no noised count is charged"),
    (uncharged_counts, 14, "with its counts the noise multiplier is"),
    (attack(), 15, "shows epsilon of at least 3.4654"),
    (attack(lower_bound=0.2), 15, "its counts give 3.465376"),
    (other_code, 16, "where the report has 0000"),
]  # fmt: skip


OF_TWO_EXCHANGES: list[tuple[Forge, int, str]] = [
    (exchanges.the_second_exchange_first, 1, "exchange 1 of row 1 does not follow a confirmed exchange 0"),
    (exchanges.an_unconfirmed_first_exchange, 1, "exchange 1 of row 1 does not follow a confirmed exchange 0"),
    (exchanges.a_second_exchange_without_a_transcript_of_the_first, 1, "does not follow a confirmed exchange 0"),
    (exchanges.a_session_under_two_announcements, 1, "is of another exchange or announcement"),
    (exchanges.a_share_of_noise_in_two_exchanges, 1, "puts a share of noise, row 1, into a second exchange"),
    (exchanges.a_method_of_one_exchange, 4, "round 1 lists 2 exchanges, its method has 1"),
    (exchanges.a_method_of_three_exchanges, 4, "client-1, row 1: contract_sha256"),
    (exchanges.a_method_of_three_exchanges, 4, "round 1 ends after 2 of 3 exchanges"),
    (exchanges.less_than_travels, 4, "the contract of round 1 states 191 coordinates, its exchanges have 192"),
    (exchanges.a_round_without_a_contract, 4, "round 2 has 0 contracts"),
    (exchanges.a_round_without_a_contract, 4, "reserves round 2, and the report states no contract of it"),
    (exchanges.a_round_of_two_contracts, 4, "round 2 has 2 contracts"),
    (exchanges.a_contract_of_a_round_that_was_not, 4, "a contract of round 4, and lists no such round"),
    (exchanges.another_contract_in_the_last_round, 4, "contract_sha256"),
    (exchanges.two_rounds_that_have_changed_places, 4, "contract_sha256"),
    (exchanges.an_exchange_left_out, 4, "client-1 in round 1: its ledger records an exchange 1 that is not listed"),
    (exchanges.exchanges_left_out_with_their_method, 4, "released round 1 in more exchanges than the 1"),
    (exchanges.an_exchange_too_many, 4, "round 1 lists 3 exchanges, its method has 2"),
    (exchanges.an_exchange_too_many, 4, "round 1, exchange 2: its ledger records no release"),
    (exchanges.no_exchange_at_all, 4, "round 1 has survivors, and no exchange that they were in"),
    (exchanges.another_second_session, 4, "round 1, exchange 1: its ledger records no release"),
    (exchanges.another_second_transcript, 4, "round 1, exchange 1: its ledger records another transcript"),
    (exchanges.another_announcement, 4, "round 1, exchange 1: its ledger records another announcement"),
    (exchanges.an_announcement_left_out, 4, "exchange 1 follows an announcement unless it is the first"),
    (exchanges.one_session_for_both_exchanges, 4, "a session is listed twice"),
    (exchanges.exchanges_in_the_other_order, 4, "exchange 1: its ledger records that session as another exchange"),
    (exchanges.a_sum_passed_off_as_lost, 4, "round 1: exchange 0 has no sum, and another exchange after it"),
    (exchanges.other_clients_in_the_second_exchange, 4, "client-3 is in a later exchange and not in the first"),
    (exchanges.a_round_that_ends_early, 4, "round 1 ends after 1 of 2 exchanges"),
    (exchanges.the_first_sum_of_one_attempt_and_the_second_of_another, 4,
        "client-1 in round 3: its ledger records the listed exchange 1 after another first one"),
    (exchanges.a_survivor_left_out, 4, "round 1: client-3 has confirmed a sum that the report says it is not in"),
    (exchanges.a_sum_of_nobody, 4, "round 2 lists a sum, and no survivor that is in it"),
    (exchanges.a_certificate(0.01), 4, "states an error of 0.01, its modules' figures give 0.1"),
    (exchanges.a_certificate(0.1, aborted="it was lost"), 4, "round 1 has a certificate, and no result"),
    (exchanges.a_second_announcement_unsaid, 4, "announced_again is [], the rows say [('client-1', 1)"),
    (exchanges.a_share_of_noise_under_a_method_of_two, 8, "a share of noise to one sum, and the method has several"),
]  # fmt: skip


def _name(value: object) -> str | None:
    """A forgery's name in the list of tests."""
    return getattr(value, "__qualname__", "").partition(".")[0] or None


@pytest.mark.parametrize(("forge", "check", "reason"), OF_TWO_EXCHANGES, ids=_name)
def test_a_forged_exchange_fails_for_the_right_reason(
    exchanged: Any, forge: Forge, check: int, reason: str
) -> None:
    test_a_forgery_fails_for_the_right_reason(exchanged, forge, check, reason)


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


@pytest.mark.parametrize("federation", ["finished", "exchanged"])
def test_the_honest_federation_passes_all_that_can_be(
    federation: str, request: pytest.FixtureRequest
) -> None:
    found = verdicts(request.getfixturevalue(federation))
    assert {number for number, verdict in found.items() if verdict.status == "FAIL"} == set()
    assert {number for number, verdict in found.items() if verdict.status == "UNVERIFIABLE"} == {12, 15}
    assert all(verdict.remedy for verdict in found.values() if verdict.status == "UNVERIFIABLE")
