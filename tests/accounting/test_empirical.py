"""Lower bounds from attack outcomes: published values, independent formulas, coverage, hostile records."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from accounting.empirical import ASSUMPTIONS, EmpiricalResult, load
from accounting.errors import EmpiricalError
from accounting.many_runs import (
    TrialCounts,
    clopper_pearson_epsilon,
    epsilon_of_mu,
    gdp_epsilon,
    gdp_mu,
    split_trials,
)
from accounting.one_run import GuessRule, best_one_run, default_rules, one_run_epsilon, one_run_p_value

GOLDEN = [
    ((1000, 100, 100, 0.0), 3.492965),
    ((1000, 100, 100, 1e-5), 3.465376),
    ((1000, 200, 180, 1e-5), 1.796285),
    ((100, 100, 75, 0.0), 0.702214),
    ((10000, 1000, 950, 1e-5), 2.690996),
]


def one_run(m: int, r: int, v: int, delta: float, **options: float) -> float:
    return one_run_epsilon(canaries=m, guesses=r, correct=v, delta=delta, **options)


@pytest.mark.parametrize(("outcome", "epsilon"), GOLDEN)
def test_one_run_golden_values(outcome: tuple[int, int, int, float], epsilon: float) -> None:
    assert one_run(*outcome) == pytest.approx(epsilon, abs=1e-6)


def test_one_run_p_value_is_the_formula_written_out() -> None:
    m, r, v, delta, epsilon = 60, 40, 33, 1e-3, 1.2
    q = 1 / (1 + math.exp(-epsilon))

    def p(k: int) -> float:
        return math.comb(r, k) * q**k * (1 - q) ** (r - k)

    tail = sum(p(k) for k in range(v, r + 1))
    alpha = max(sum(p(k) for k in range(v - i, v)) / i for i in range(1, v + 1))
    assert one_run_p_value(m, r, v, delta, epsilon) == pytest.approx(tail + 2 * m * delta * alpha, rel=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_one_run_is_monotone(data: st.DataObject) -> None:
    r = data.draw(st.integers(1, 300))
    v = data.draw(st.integers(0, r))
    m = data.draw(st.integers(r, 1000))
    delta = data.draw(st.sampled_from([0.0, 1e-6, 1e-4]))
    bound = one_run(m, r, v, delta)
    assert 0 <= bound < 20
    assert bound <= one_run(m, r, min(r, v + 1), delta) + 1e-9
    assert bound <= one_run(m, r, v, 0.0) + 1e-9
    assert one_run(m, r, v, delta, confidence=0.99) <= bound + 1e-9


def test_one_run_covers_randomised_response() -> None:
    """Exactly epsilon-DP coins guessed as well as can be: the bound is above epsilon in at most 5 % of runs.

    The exact probability of that is computed, so nothing here is random.
    """
    for epsilon, m in ((0.5, 100), (1.0, 300), (3.0, 300)):
        bounds = np.array([one_run(m, m, v, 0.0) for v in range(m + 1)])
        rate = 1 / (1 + math.exp(-epsilon))
        above = binom.pmf(np.arange(m + 1), m, rate)[bounds > epsilon].sum()
        assert 0.01 < above <= 0.05


def test_clopper_pearson_golden_value_and_the_other_side() -> None:
    assert clopper_pearson_epsilon(TrialCounts(400, 500, 20, 500), 1e-5) == pytest.approx(2.523652, abs=1e-6)
    # Guessing "in" nearly always: the information is in the few "out"s.
    mirrored = TrialCounts(480, 500, 100, 500)
    assert clopper_pearson_epsilon(mirrored, 1e-5) == pytest.approx(2.523652, abs=1e-6)


def test_rates_agree_with_scipys_own_intervals() -> None:
    counts = TrialCounts(37, 50, 0, 60)
    false_positive, false_negative = counts.rates_at_most(0.95)
    assert false_positive == pytest.approx(binomtest(0, 60).proportion_ci(0.95, "exact").high)
    assert false_negative == pytest.approx(binomtest(13, 50).proportion_ci(0.95, "exact").high)


def test_epsilon_of_mu_agrees_with_dp_accounting() -> None:
    for mu in (0.1, 0.5, 1.0, 3.0):
        epsilon = epsilon_of_mu(mu, 1e-5)
        loss = GaussianPrivacyLoss(standard_deviation=1 / mu)
        assert loss.get_delta_for_epsilon(epsilon) == pytest.approx(1e-5, rel=1e-6)
    assert epsilon_of_mu(0.0, 1e-5) == 0.0
    assert epsilon_of_mu(1e-6, 1e-5) == 0.0


def test_gdp_recovers_mu_from_many_trials_and_stays_below_it() -> None:
    n, mu = 10**6, 1.0
    false_positives = round(n * 0.15865525)  # threshold 1, Phi(-1) of the trials without
    counts = TrialCounts(n // 2, n, false_positives, n)
    assert 0.99 < gdp_mu(counts) < mu
    assert gdp_epsilon(counts, 1e-5) < epsilon_of_mu(mu, 1e-5)
    assert gdp_epsilon(counts, 1e-5) > clopper_pearson_epsilon(counts, 1e-5)


def test_nothing_learnt_gives_zero() -> None:
    assert one_run(100, 100, 50, 1e-5) == 0.0
    assert one_run(100, 10, 0, 0.0) == 0.0
    chance = TrialCounts(50, 100, 50, 100)
    assert clopper_pearson_epsilon(chance, 1e-5) == 0.0
    assert gdp_epsilon(chance, 1e-5) == 0.0


def test_perfect_attacks_saturate() -> None:
    """What m canaries or trials can show at most: a claim above it cannot be refuted."""
    assert one_run(1000, 1000, 1000, 0.0) == pytest.approx(5.81, abs=0.01)
    assert 4.8 < clopper_pearson_epsilon(TrialCounts(500, 500, 0, 500), 1e-5) < 5.0


# --- choosing on the data ----------------------------------------------------------------------------------------


def test_best_one_run_finds_the_attack_that_works_and_pays_for_looking() -> None:
    rng = np.random.default_rng(1)
    included = rng.random(400) < 0.5
    good = included + 0.1 * rng.standard_normal(400)
    outcome = best_one_run({"noise": rng.standard_normal(400), "good": good}, included, delta=1e-5)
    assert outcome.attack == "good"
    assert outcome.tests == 2 * len(default_rules(400)) == 12
    uncorrected = one_run(400, outcome.guesses, outcome.correct, 1e-5)
    assert 0 < outcome.lower_bound < uncorrected
    corrected = one_run(400, outcome.guesses, outcome.correct, 1e-5, confidence=1 - 0.05 / 12)
    assert outcome.lower_bound == corrected


def test_choosing_among_rules_keeps_the_confidence() -> None:
    """Scores that say nothing: a bound above 0 in at most 5 % of 600 experiments.

    The seed is fixed; 600 experiments at exactly 5 % would give more than 60 with odds of 1e-7.
    """
    rng = np.random.default_rng(2)
    false_alarms = 0
    for _ in range(600):
        scores = {"a": rng.standard_normal(100), "b": rng.standard_normal(100)}
        false_alarms += best_one_run(scores, rng.random(100) < 0.5, delta=0.0).lower_bound > 0
    assert false_alarms <= 60


def test_ties_are_broken_without_looking_at_the_coins() -> None:
    included = np.array([False, True, True, False])
    rule = GuessRule(top=1, bottom=1)
    assert rule.correct(np.zeros(4), included) == 1  # guesses the first in (wrong) and the last out (right)
    assert rule.correct(np.zeros(4), ~included) == 1


def test_split_trials_tries_the_threshold_on_the_other_half() -> None:
    rng = np.random.default_rng(3)
    scores_in, scores_out = 3 + rng.standard_normal(400), rng.standard_normal(400)
    counts = split_trials(scores_in, scores_out, delta=1e-5)
    assert (counts.positives, counts.negatives) == (200, 200)
    assert clopper_pearson_epsilon(counts, 1e-5) > 2
    # The halves must not mix: what the odd trials say has no part in the choice.
    shuffled = scores_in.copy()
    shuffled[1::2] = -10.0
    assert split_trials(shuffled, scores_out, delta=1e-5).true_positives == 0


# --- records -----------------------------------------------------------------------------------------------------


def record(**changes: Any) -> EmpiricalResult:
    values: dict[str, Any] = {
        "run": "ab" * 16,
        "client_id": "client-1",
        "trained_epsilon": 2.0,
        "lower_bound": one_run(1000, 100, 100, 1e-5),
        "delta": 1e-5,
        "confidence": 0.95,
        "method": "one-run",
        "attack": "update",
        "attacker": "sees every noised update",
        "canaries": 1000,
        "guesses": 100,
        "correct": 100,
        "tests": 1,
        "assumption": ASSUMPTIONS["one-run"],
    }
    return EmpiricalResult(**values | changes)


def test_a_record_survives_json_and_rederives_its_bound(tmp_path: Path) -> None:
    found = record()
    assert found.refutes
    path = tmp_path / "empirical.json"
    path.write_text(json.dumps(found.to_json()))
    assert load(path) == found
    assert load(path).rederived() == pytest.approx(found.lower_bound, abs=1e-9)
    assert replace(found, lower_bound=9.0).rederived() == pytest.approx(found.lower_bound, abs=1e-9)
    assert record(tests=12).rederived() < found.lower_bound


@pytest.mark.parametrize("method", ["clopper-pearson", "gdp"])
def test_a_record_of_trials_rederives_its_bound(method: str) -> None:
    counts = TrialCounts(400, 500, 20, 500)
    bound = (gdp_epsilon if method == "gdp" else clopper_pearson_epsilon)(counts, 1e-5)
    found = record(
        method=method, assumption=ASSUMPTIONS[method], lower_bound=bound, canaries=1000, guesses=1000,
        correct=880, positives=500, false_positives=20,
    )  # fmt: skip
    assert EmpiricalResult.from_json(found.to_json()) == found
    assert found.rederived() == bound


BAD_FIELDS: list[dict[str, Any]] = [
    {"schema_version": 2},
    {"schema_version": True},
    {"extra": 1},
    {"correct": 101},
    {"guesses": 1001},
    {"canaries": -1},
    {"canaries": 1000.0},
    {"canaries": 10**15, "guesses": 10**15, "correct": 10**15},
    {"lower_bound": -1.0},
    {"lower_bound": "5"},
    {"lower_bound": math.inf},
    {"trained_epsilon": math.nan},
    {"delta": 1.0},
    {"delta": None},
    {"confidence": 0},
    {"confidence": 1.0},
    {"method": "guesswork"},
    {"method": "gdp"},
    {"method": "gdp", "assumption": ASSUMPTIONS["gdp"]},
    {"assumption": "none"},
    {"tests": 0},
    {"positives": 3},
    {"client_id": ""},
    {"client_id": 7},
]


@pytest.mark.parametrize("change", BAD_FIELDS, ids=str)
def test_a_damaged_record_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(EmpiricalError):
        EmpiricalResult.from_json(record().to_json() | change)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**7) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(record().to_json())), ANYTHING)
def test_a_record_with_any_value_in_any_field_is_read_or_refused(name: str, value: Any) -> None:
    try:
        read = EmpiricalResult.from_json(record().to_json() | {name: value})
    except EmpiricalError:
        return
    assert read.to_json()[name] == value


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"[]", b'{"schema_version": 1}', b"\xff", b'{"delta": 0.1, "delta": 0.2}'):
        (tmp_path / "empirical.json").write_bytes(content)
        with pytest.raises(EmpiricalError):
            load(tmp_path / "empirical.json")
    with pytest.raises(EmpiricalError, match="cannot be read"):
        load(tmp_path / "nowhere.json")


def test_impossible_outcomes_are_refused() -> None:
    scores = np.zeros(10)
    coins = np.zeros(10, dtype=bool)
    for bad in (
        lambda: one_run(10, 5, 6, 0.0),
        lambda: one_run(10, 5, 5, -0.1),
        lambda: TrialCounts(5, 4, 0, 4),
        lambda: TrialCounts(0, 0, 0, 4),
        lambda: best_one_run({}, coins, delta=0.0),
        lambda: best_one_run({"a": scores[:9]}, coins, delta=0.0),
        lambda: best_one_run({"a": scores + np.nan}, coins, delta=0.0),
        lambda: best_one_run({"a": scores}, coins, delta=0.0, rules=[GuessRule(6, 5)]),
        lambda: split_trials(scores[:3], scores, delta=0.0),
    ):
        with pytest.raises(EmpiricalError):
            bad()
