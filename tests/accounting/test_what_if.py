"""What-if rows: the same noise as a plan of the same numbers, and refusals that say why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounting import pricing
from accounting.errors import PlanningError
from accounting.events import PoissonGaussian
from accounting.planning import Plan, plan
from accounting.what_if import around, what_if

SETTINGS: dict[str, Any] = {
    "client_id": "client-1",
    "target_epsilon": 1.0,
    "delta": 1e-5,
    "declared_examples": 2000,
    "planned_batch_size": 100,
    "rounds": 20,
    "steps_per_round": 5,
    "clip_norm": 0.5,
    "retry_rounds": 1,
}


@pytest.fixture(scope="module")
def base() -> Plan:
    return plan(**SETTINGS)


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 60), st.sampled_from([50, 200, 2000]), st.floats(0.2, 4.0))
def test_what_if_agrees_with_the_plan(rounds: int, batch: int, target: float) -> None:
    base = Plan(noise_multiplier=1.0, sample_rate=0.05, **SETTINGS)
    (row,) = what_if(base, rounds=[rounds], planned_batch_sizes=[batch], target_epsilons=[target])
    changes = {"rounds": rounds, "planned_batch_size": batch, "target_epsilon": target}
    made = plan(**{**SETTINGS, **changes})
    assert (row.steps, row.sample_rate) == (made.planned_steps, made.sample_rate)
    assert row.noise_multiplier == pytest.approx(made.noise_multiplier, rel=2e-3)
    assert row.mean_noise_stddev == pytest.approx(made.noise_multiplier * 0.5 / batch, rel=2e-3)
    assert row.noise_multiplier is not None
    event = PoissonGaussian(row.noise_multiplier, row.sample_rate, row.steps, 0.5)
    certified = pricing.epsilon([event], 1e-5)
    assert row.epsilon == pytest.approx(certified, abs=2e-3 * max(1, target))
    assert target - 0.01 * max(1, target) <= certified <= target * 1.002


def test_the_plan_itself_comes_first_and_nothing_twice(base: Plan) -> None:
    rows = around(base)
    assert (rows[0].rounds, rows[0].steps) == (20, base.planned_steps)
    assert rows[0].noise_multiplier == base.noise_multiplier
    assert len(set(rows)) == len(rows) > 15


def test_more_rounds_need_more_noise_and_weaker_targets_less(base: Plan) -> None:
    noise = [row.noise_multiplier for row in what_if(base, rounds=[5, 20, 80])]
    assert noise == sorted(noise)
    noise = [row.noise_multiplier for row in what_if(base, target_epsilons=[4.0, 1.0, 0.5])]
    assert noise == sorted(noise)


def test_participation_saves_steps_and_amplifies_nothing(base: Plan) -> None:
    half, whole = what_if(base, participations=[0.5, 1.0])
    assert half.steps == (10 + 1) * 5
    assert half == replace(what_if(base, rounds=[10])[0], rounds=20, participation=0.5)
    assert half.noise_multiplier < whole.noise_multiplier


def test_what_is_spent_counts_and_an_impossible_row_says_why(base: Plan) -> None:
    spent = [PoissonGaussian(6.0, 0.05, 50, 1.0)]
    (row,) = what_if(base, spent=spent)
    assert row.noise_multiplier > base.noise_multiplier
    (row,) = what_if(base, target_epsilons=[0.01], spent=spent)
    assert row.noise_multiplier is None
    assert "is spent" in (row.problem or "")


@pytest.mark.parametrize(
    "change",
    [
        {"rounds": [0]},
        {"rounds": [1.5]},
        {"planned_batch_sizes": [0]},
        {"planned_batch_sizes": [2001]},
        {"participations": [0.0]},
        {"participations": [1.1]},
    ],
)
def test_nonsense_is_refused(base: Plan, change: dict[str, Any]) -> None:
    with pytest.raises(PlanningError):
        what_if(base, **change)
