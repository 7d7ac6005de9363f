"""What an auditor may bring besides report and ledgers: when it confirms, when it is too little, when it is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accounting import report as reports
from accounting.audit import _replay, audit, audit_files
from accounting.case import Case, Evidence, Findings, Verdict
from accounting.chain import Chain
from accounting.checks import CHECKS
from accounting.empirical import EmpiricalResult
from accounting.entries import Commit, Reserve, Row
from accounting.errors import EmpiricalError, PrivateAuditError, ReportError
from accounting.events import AdaptiveClipPoissonGaussian, Gaussian, RepeatedTrials
from accounting.rows import Partition

from .forgeries import attack, shares
from .forging import claim_again, commit_to, edit_events, edit_private


def verdicts(federation: Any, evidence: Evidence | None = None) -> dict[int, Verdict]:
    found = audit(federation.report, federation.lines, federation.roster, evidence)
    return {verdict.check: verdict for verdict in found}


# --- private audit files: checks 6 and 7 ---


def test_without_private_files_nobody_can_tell(finished: Any) -> None:
    found = verdicts(finished)
    for number in (6, 7):
        assert found[number].status == "UNVERIFIABLE"
        assert found[number].evidence == "no private audit file of client-1, client-2, client-3"
        assert "--private" in found[number].remedy


def test_one_clients_auditor_confirms_that_client(finished: Any) -> None:
    found = verdicts(finished, Evidence({"client-1": finished.private["client-1"]}))
    for number in (6, 7):
        assert found[number].status == "UNVERIFIABLE"
        assert "no private audit file of client-2, client-3. Confirmed: client-1: " in found[number].evidence


def test_evidence_of_a_pass_tells_nothing_private(finished: Any) -> None:
    found = verdicts(finished, Evidence(finished.private))
    texts = found[6].evidence + found[7].evidence
    assert {found[6].status, found[7].status} == {"PASS"}
    for records in finished.private.values():
        for step in (step for record in records for step in record.steps):
            assert not any(f" {value} " in texts for value in (step.batch_size, step.clipped))
            assert not any(f"{value:.3g}" in texts for value in (step.noise_squares, step.largest_noise))


def test_a_file_with_missing_attempts_confirms_only_a_part(finished: Any) -> None:
    kept = {**finished.private, "client-1": finished.private["client-1"][:-1]}
    found = verdicts(finished, Evidence(kept))
    for number in (6, 7):
        assert found[number].status == "UNVERIFIABLE"
        assert "client-1: its private audit file lacks 1 of 3 attempts" in found[number].evidence


def test_steps_that_no_commit_ties_make_up_for_nothing(finished: Any) -> None:
    """Batches are too large; a made-up record of a reservation that was never committed would mend their total."""
    edit_private(finished, "client-2", lambda step: replace(step, batch_size=step.batch_size + 7, clipped=0))
    lost = next(row for row in finished.rows["client-2"] if getattr(row.entry, "round", 0) == 2)
    record = finished.private["client-2"][0]
    steps = tuple(
        replace(step, batch_size=7, sum_norm=1.0, noise_digest=f"{number:016x}")
        for number, step in enumerate(record.steps)
    )
    made_up = replace(record, round=2, reservation=lost.position, steps=steps)
    finished.private["client-2"] += (made_up,)
    assert verdicts(finished, Evidence(finished.private))[6].status == "FAIL"


def test_a_file_that_no_row_commits_to_is_on_its_own_word(finished: Any) -> None:
    for client_id, rows in finished.rows.items():
        entries = [row.entry for row in rows]
        finished.rebuild(
            client_id, [replace(e, private_audit=None) if isinstance(e, Commit) else e for e in entries]
        )
        finished.anchor_again(client_id)
    found = verdicts(finished, Evidence(finished.private))
    for number in (6, 7):
        assert found[number].status == "UNVERIFIABLE"
        assert "on the file's word" in found[number].evidence


def test_a_few_steps_in_a_few_coordinates_are_said_to_show_little(finished: Any) -> None:
    """One step a round in ten coordinates: nothing is odd, and nothing could have been."""
    for client_id, records in finished.private.items():
        cut = []
        for record in records:
            step = replace(
                record.steps[0], noise_squares=10 * 1.1978**2, largest_noise=2.0 + 0.01 * record.round
            )
            cut.append(replace(record, steps=(step,), dimension=10))
        finished.private[client_id] = tuple(cut)
        edit_events(finished, client_id, lambda event: replace(event, steps=1))
        commit_to(finished, client_id)
    finished.report["method"]["contracts"][0]["noised"] = dict.fromkeys(finished.private, 10)
    found = verdicts(finished, Evidence({"client-1": finished.private["client-1"]}))
    assert "3 steps are too few" in found[6].evidence
    assert "30 noised coordinates are too few" in found[7].evidence
    assert {found[6].status, found[7].status} == {"UNVERIFIABLE"}


def test_a_private_file_of_a_stranger(finished: Any) -> None:
    stranger = tuple(replace(record, client_id="client-9") for record in finished.private["client-1"])
    found = verdicts(finished, Evidence({"client-9": stranger}))
    assert {found[6].status, found[7].status} == {"FAIL"}
    assert "for whom the report has no plan" in found[6].evidence


def test_with_a_broken_ledger_private_files_prove_nothing(finished: Any) -> None:
    del finished.rows["client-1"][1]
    found = verdicts(finished, Evidence(finished.private))
    assert {found[6].status, found[7].status} == {"UNVERIFIABLE"}


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 1e-300}, {"noise_multiplier": 1e300}, {"clip_norm": 5e-324}, {"sample_rate": 5e-324},
        {"sample_rate": 1.0}, {"noise_multiplier": 1e-11},
    ],
)  # fmt: skip
def test_rows_beyond_all_bounds_are_answered_too(finished: Any, changes: dict[str, float]) -> None:
    edit_events(finished, "client-1", lambda event: replace(event, **changes))
    found = verdicts(finished, Evidence(finished.private))
    assert "FAIL" in {found[6].status, found[7].status}


@pytest.mark.parametrize(
    "changes",
    [{"noise_squares": 1e308}, {"noise_squares": 0.0, "largest_noise": 0.0}, {"largest_noise": 1e308},
     {"batch_size": 10**12}, {"sum_norm": 1e308}],
)  # fmt: skip
def test_records_beyond_all_bounds_are_answered_too(finished: Any, changes: dict[str, Any]) -> None:
    records = finished.private["client-1"]
    steps = (replace(records[0].steps[0], **changes), *records[0].steps[1:])
    finished.private["client-1"] = (replace(records[0], steps=steps), *records[1:])
    commit_to(finished, "client-1")
    found = verdicts(finished, Evidence(finished.private))
    assert "FAIL" in {found[6].status, found[7].status}


# --- shares of noise: checks 8 and 9 ---


def checked(federation: Any, number: int, **report: Any) -> Findings:
    """One check's findings on a report that the schema has no mode for yet."""
    chains, broken = _replay(federation.lines)
    found = Findings()
    CHECKS[number - 1].body(Case({**federation.report, **report}, chains, broken, federation.roster), found)
    return found


def test_honest_shares_pass(finished: Any) -> None:
    shares()(finished)
    effective, sensitivity = (checked(finished, number, mode="distributed") for number in (8, 9))
    assert (effective.status, sensitivity.status) == ("PASS", "PASS"), (effective, sensitivity)
    assert "every sum has at least 1.00 times the noise variance that is priced" in effective.facts


def test_sums_that_the_report_says_nothing_about(finished: Any) -> None:
    shares()(finished)
    for name in ("dimension", "scale", "modulus_bits"):
        del finished.report["secure_aggregation"][name]
    found = checked(finished, 9, mode="distributed")
    assert found.status == "UNVERIFIABLE"
    assert any("dimension 4096, which the report does not state" in doubt for doubt in found.doubts)


def test_shares_within_a_search_are_shares(finished: Any) -> None:
    shares()(finished)
    for client_id in finished.rows:
        edit_events(finished, client_id, lambda event: RepeatedTrials(event, trials=2))
    finished.report["secure_aggregation"]["max_colluders"] = 1
    found = checked(finished, 8, mode="distributed")
    assert any("reckons with 0 colluders, the report with 1" in text for text in found.problems)
    assert not found.facts or "every sum has" in found.facts[0]


@pytest.mark.parametrize("stated", ["many", None, [1], -1])
def test_colluders_that_are_no_number(finished: Any, stated: object) -> None:
    shares()(finished)
    finished.report["secure_aggregation"]["max_colluders"] = stated
    assert any("colluders" in text for text in checked(finished, 8, mode="distributed").problems)


def test_a_report_nested_beyond_all_bounds(finished: Any) -> None:
    inner: dict[str, Any] = {"seed": 1}
    for _ in range(400):
        inner = {"inner": inner}
    finished.report["randomness"]["details"] = inner
    assert verdicts(finished)[13].status == "FAIL"
    for _ in range(100_000):
        inner = {"inner": inner}
    finished.report["randomness"]["details"] = inner
    with pytest.raises(ReportError, match="not JSON"):
        verdicts(finished)


def test_a_share_in_an_insecure_federation(finished: Any) -> None:
    shares()(finished)
    finished.report["secure_aggregation"]["mode"] = "insecure"
    assert any("not said to be secure" in text for text in checked(finished, 8, mode="distributed").problems)


# --- rows: check 10 ---


def test_disjointness_of_private_rows_is_never_shown(finished: Any) -> None:
    assert verdicts(finished)[10].status == "UNVERIFIABLE"
    assert verdicts(finished, Evidence(partition=finished.partition))[10].status == "PASS"
    finished.report["simulation"] = False
    assert verdicts(finished, Evidence(partition=finished.partition))[10].status == "FAIL"


def test_lists_without_digests_in_the_ledgers_are_on_their_own_word(finished: Any) -> None:
    for client_id, rows in finished.rows.items():
        edited = []
        for row in rows:
            entry = row.entry
            if isinstance(entry, Reserve):
                entry = replace(
                    entry, versions={k: v for k, v in entry.versions.items() if k != "rows_sha256"}
                )
            edited.append(entry)
        finished.rebuild(client_id, edited)
        finished.anchor_again(client_id)
    found = verdicts(finished, Evidence(partition=finished.partition))[10]
    assert found.status == "UNVERIFIABLE"
    assert "no ledger row records which rows it holds" in found.evidence


def test_lists_that_are_missing_or_shorter_than_declared(finished: Any) -> None:
    held = {**finished.partition.rows, "client-1": finished.partition.rows["client-1"][:-1]}
    del held["client-3"]
    found = verdicts(finished, Evidence(partition=Partition("reviews", held)))[10]
    assert found.status == "FAIL"  # client-1's list is not the one that its ledger records
    chains, broken = _replay(finished.lines)
    gathered = Findings()
    CHECKS[9].body(
        Case(finished.report, chains, broken, None, Evidence(partition=Partition("reviews", held))), gathered
    )
    assert "client-3: no list of its rows" in gathered.doubts
    assert "client-1: 999 rows are listed, 1000 declared" in gathered.doubts


def test_data_sets_of_other_names_may_share_rows(finished: Any) -> None:
    rows = finished.rows["client-2"]
    chain = Chain("client-2", "letters")
    for row in rows:
        chain.rows.append(Row("client-2", "letters", len(chain.rows), chain.head, row.entry))
    finished.rows["client-2"] = chain.rows
    finished.anchor_again("client-2")
    found = verdicts(finished)[10]
    assert found.status == "UNVERIFIABLE"
    assert "2 data sets by name" in found.evidence


# --- choices: checks 12 and 14 ---


def test_a_warm_start_from_a_charged_run(finished: Any) -> None:
    earlier = "ef" * 16
    for client_id, rows in finished.rows.items():
        entries = [row.entry for row in rows]
        first = next(entry for entry in entries if isinstance(entry, Reserve))
        finished.rebuild(client_id, [*entries, replace(first, run=earlier)])
        finished.anchor_again(client_id)
    claim_again(finished)
    finished.report["experiment"]["start_weights"]["from_run"] = earlier
    found = verdicts(finished)[12]
    assert found.status == "UNVERIFIABLE"
    assert "charged in the lifetime epsilon" in found.evidence
    assert "1 other runs on the same data are in its lifetime epsilon" in found.evidence


def test_a_report_that_does_not_say_where_training_began(finished: Any) -> None:
    del finished.report["experiment"]["start_weights"]
    assert "does not state which weights" in verdicts(finished)[12].evidence


def test_counts_that_leave_the_planned_noise_are_charged(finished: Any) -> None:
    """Andrew et al., Theorem 1: vectors at (z^-2 - (2 sigma_b)^-2)^(-1/2) leave z for both together."""

    def adaptive(event: Any) -> Any:
        vectors = (event.noise_multiplier**-2 - (2 * 10.0) ** -2) ** -0.5
        return AdaptiveClipPoissonGaussian(vectors, 10.0, event.sample_rate, event.steps, event.clip_norm)

    for client_id in finished.rows:
        edit_events(finished, client_id, adaptive)
    found = verdicts(finished)[14]
    assert found.status == "PASS"
    assert "vectors and counts together have noise multiplier 1.198" in found.evidence


def test_searches_are_listed_and_their_clip_norms_doubted(finished: Any) -> None:
    edit_events(finished, "client-1", lambda event: RepeatedTrials(event, trials=3))
    found = {number: checked(finished, number) for number in (12, 14)}
    assert any("charges a search (RepeatedTrials)" in fact for fact in found[12].facts)
    assert found[14].status == "UNVERIFIABLE"


def test_steps_on_all_the_data_are_not_tested_as_samples(finished: Any) -> None:
    edit_events(
        finished, "client-1", lambda event: Gaussian(event.noise_multiplier, event.steps, event.clip_norm)
    )
    found = verdicts(finished, Evidence(finished.private))[6]
    assert "steps of Gaussian are not tested here" in found.evidence


# --- attacks: check 15 ---


def outcome(federation: Any, **changes: Any) -> EmpiricalResult:
    attack(**changes)(federation)
    result: EmpiricalResult = federation.attack
    return result


def test_a_bound_below_the_claim_contradicts_nothing_and_proves_nothing(finished: Any) -> None:
    low = outcome(finished, correct=50, lower_bound=0.0)
    found = verdicts(finished, Evidence(empirical=low))[15]
    assert found.status == "PASS"
    assert "no proof either" in found.evidence


@pytest.mark.parametrize(("hits", "alarms"), [(26, 24), (500, 0)])
def test_what_rests_on_an_assumption_only_casts_doubt(finished: Any, hits: int, alarms: int) -> None:
    """Below the claim and, with (500, 0), far above it."""
    trials = {"canaries": 1000, "guesses": 1000, "correct": hits + 500 - alarms, "positives": 500}
    assumed = {"method": "gdp", "assumption": "the mechanism's trade-off function is Gaussian"}
    attack(**trials, **assumed, false_positives=alarms, lower_bound=0.0)(finished)
    result = replace(finished.attack, lower_bound=finished.attack.rederived())
    found = verdicts(finished, Evidence(empirical=result))[15]
    assert found.status == "UNVERIFIABLE"
    assert "trade-off function is Gaussian" in found.evidence
    assert ("0.4" in found.evidence and "is claimed" in found.evidence) == (hits == 500)


def test_an_attack_on_another_run_says_nothing(finished: Any) -> None:
    found = verdicts(finished, Evidence(empirical=outcome(finished, run="cd" * 16)))[15]
    assert (found.status, "another run" in found.evidence) == ("UNVERIFIABLE", True)


def test_a_bound_that_may_well_be_chance_says_nothing(finished: Any) -> None:
    doubtful = outcome(finished, confidence=0.5)
    doubtful = replace(doubtful, lower_bound=doubtful.rederived())
    found = verdicts(finished, Evidence(empirical=doubtful))[15]
    assert (found.status, "confidence 0.5 shows nothing" in found.evidence) == ("UNVERIFIABLE", True)


def test_an_attack_below_the_claims_delta_says_nothing(finished: Any) -> None:
    low = outcome(finished, delta=0.0, lower_bound=3.492965)
    assert abs(low.rederived() - low.lower_bound) < 1e-6
    found = verdicts(finished, Evidence(empirical=low))[15]
    assert (found.status, "below that of every claim" in found.evidence) == ("UNVERIFIABLE", True)


def test_an_attack_on_a_client_without_a_claim(finished: Any) -> None:
    found = verdicts(finished, Evidence(empirical=outcome(finished, client_id="client-9")))[15]
    assert (found.status, "about whom nothing is claimed" in found.evidence) == ("FAIL", True)


# --- files ---


@pytest.fixture
def folder(finished: Any, tmp_path: Path) -> Path:
    reports.write(finished.report, tmp_path / "report.json")
    (tmp_path / "ledger.jsonl").write_text("".join(line + "\n" for line in finished.lines))
    return tmp_path


def statuses(folder: Path, **options: Any) -> dict[int, str]:
    found = audit_files(folder / "report.json", folder / "ledger.jsonl", **options)
    return {verdict.check: verdict.status for verdict in found}


def test_evidence_beside_the_report_is_found(finished: Any, folder: Path) -> None:
    assert statuses(folder)[10] == "UNVERIFIABLE"
    (folder / "partition.json").write_text(finished.partition.to_text())
    lines = [record.to_line() + "\n" for records in finished.private.values() for record in records]
    (folder / "private.jsonl").write_text("".join(lines))
    found = statuses(folder, private=[folder / "private.jsonl"])
    assert {found[number] for number in (6, 7, 10)} == {"PASS"}


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"schema":1,"dataset_id":"reviews","rows":{"client-1":[-1]}}', '{"schema":2}', "\xff",
     '{"schema":1,"dataset_id":"reviews","rows":[1]}', '{"schema":1,"dataset_id":"reviews","rows":{"client-1":7}}'],
)  # fmt: skip
def test_a_damaged_partition_is_an_error_and_not_an_answer(folder: Path, content: str) -> None:
    (folder / "partition.json").write_text(content, encoding="latin-1")
    with pytest.raises(ReportError, match=r"partition\.json cannot be read"):
        statuses(folder)


def test_a_partition_is_read_as_written(finished: Any, folder: Path) -> None:
    from accounting.rows import load

    (folder / "partition.json").write_text(finished.partition.to_text())
    assert load(folder / "partition.json") == finished.partition
    assert Partition("other", finished.partition.rows).digest("client-1") != finished.partition.digest(
        "client-1"
    )


def test_a_damaged_record_of_an_attack_is_an_error(folder: Path) -> None:
    (folder / "empirical.json").write_text("{}")
    with pytest.raises(EmpiricalError):
        statuses(folder)


def test_a_damaged_private_file_is_an_error(folder: Path) -> None:
    (folder / "private.jsonl").write_text("{}\n")
    with pytest.raises(PrivateAuditError):
        statuses(folder, private=[folder / "private.jsonl"])
