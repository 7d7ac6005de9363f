"""Plans: whole steps, certified below the target, and fast."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import calibration, mechanisms, planning, pricing
from accounting.calibration import calibrate, estimate
from accounting.errors import PlanningError
from accounting.events import Adjacency, PoissonGaussian, Tuning
from accounting.mechanisms import Mechanism, Parts
from accounting.planning import Plan, plan

DELTA = 1e-5
SETTINGS = {
    "client_id": "client-1",
    "target_epsilon": 0.5,
    "delta": DELTA,
    "declared_examples": 1000,
    "planned_batch_size": 20,
    "rounds": 5,
    "steps_per_round": 4,
    "clip_norm": 0.5,
}


def make_plan(**changes: object) -> Plan:
    return plan(**{**SETTINGS, **changes})


def certified(noise: float, rate: float, steps: int, delta: float = DELTA) -> float:
    """A price that owes nothing to what calibration remembered."""
    parts = mechanisms.compose([PoissonGaussian(noise, rate, steps, 1.0)])
    return pricing.pld_epsilon(parts, delta)


def test_the_golden_case_is_met() -> None:
    noise = calibrate(3.0, DELTA, 0.01, 10_000)
    assert noise == pytest.approx(1.564986, abs=2e-3)
    assert 3.0 - 0.005 <= certified(noise, 0.01, 10_000) <= 3.0


@settings(deadline=None, max_examples=8)
@given(st.floats(0.2, 1.0), st.sampled_from([0.01, 0.05, 1.0]), st.integers(300, 3000))
def test_calibration_is_never_above_and_at_most_the_window_below(
    target: float, rate: float, steps: int
) -> None:
    noise = calibrate(target, DELTA, rate, steps)
    assert target - 0.005 <= certified(noise, rate, steps) <= target


@pytest.mark.long
@pytest.mark.parametrize(
    ("target", "rate", "steps", "adjacency"),
    [
        (1.0, 0.001, 300, "add-remove"),
        (2.0, 0.001, 5, "add-remove"),
        (20.0, 0.001, 1, "add-remove"),
        (28.67, 0.01516, 36, "add-remove"),
        (50.0, 1.0, 1, "add-remove"),
        (50.0, 1.0, 1, "replace-one"),
        (30.0, 0.1, 1, "replace-one"),
    ],
)
def test_one_certificate_or_two_do_where_losses_are_heavy_tailed(
    target: float, rate: float, steps: int, adjacency: Adjacency, monkeypatch: pytest.MonkeyPatch
) -> None:
    pricing.epsilon([PoissonGaussian(9.0, 0.1, 1, 1.0)], DELTA)
    certificates: list[object] = []
    certify = pricing.pld_epsilon

    def counted(parts: Parts, delta: float) -> float:
        certificates.append(parts)
        return certify(parts, delta)

    monkeypatch.setattr(pricing, "pld_epsilon", counted)
    noise = calibrate(target, DELTA, rate, steps, adjacency=adjacency)
    assert len(certificates) <= 2
    found = certify(((Mechanism(noise, rate, adjacency), steps),), DELTA)
    assert target - 0.005 <= found <= target
    assert estimate(target, DELTA, rate, steps, adjacency=adjacency).epsilon == pytest.approx(found, abs=1e-3)


def test_a_target_below_the_floor_of_rdp_is_met() -> None:
    noise = calibrate(1e-3, DELTA, 0.01, 10)
    assert 0.995e-3 <= certified(noise, 0.01, 10) <= 1e-3


@pytest.mark.long
def test_clients_that_differ_each_meet_their_target() -> None:
    """Distinct sizes, batches, rounds and adjacencies; none above, none more than the window below."""
    for k in range(4):
        made = make_plan(
            client_id=f"client-{k}",
            declared_examples=700 + 901 * k,
            planned_batch_size=20 + 13 * k,
            rounds=3 + 7 * k,
            steps_per_round=2 + k,
            retry_rounds=k % 2,
            target_epsilon=0.5 + k,
            adjacency=("add-remove", "replace-one")[k % 2],
        )
        event = PoissonGaussian(
            made.noise_multiplier, made.sample_rate, made.planned_steps, 0.5, made.adjacency
        )
        certified = pricing.epsilon([event], DELTA)
        assert made.target_epsilon - 0.005 <= certified <= made.target_epsilon


def test_what_pld_cannot_price_is_planned_on_by_rdp() -> None:
    spent = [Tuning(PoissonGaussian(8.0, 0.05, 50, 1.0), 1.0, 0.1)]
    noise = calibrate(4.0, DELTA, 0.05, 100, spent=spent)
    total = pricing.epsilon([*spent, PoissonGaussian(noise, 0.05, 100, 1.0)], DELTA)
    assert 3.995 <= total <= 4.0


def test_calibration_leaves_room_for_what_is_spent() -> None:
    spent = [PoissonGaussian(6.0, 0.05, 50, 1.0)]
    noise = calibrate(1.0, DELTA, 0.05, 100, spent=spent)
    total = pricing.epsilon([*spent, PoissonGaussian(noise, 0.05, 100, 1.0)], DELTA)
    assert 0.995 <= total <= 1.0
    assert noise > calibrate(1.0, DELTA, 0.05, 100)


def test_a_spent_budget_cannot_be_planned_on() -> None:
    with pytest.raises(PlanningError, match="spent"):
        calibrate(0.1, DELTA, 0.05, 100, spent=[PoissonGaussian(2.0, 0.05, 50, 1.0)])


def test_replace_one_needs_more_noise() -> None:
    assert calibrate(0.5, DELTA, 0.05, 20, adjacency="replace-one") > 1.5 * calibrate(0.5, DELTA, 0.05, 20)


@pytest.mark.parametrize(
    ("target", "rate", "steps"),
    [(0.0, 0.1, 10), (float("nan"), 0.1, 10), (1.0, 0.0, 10), (1.0, 1.1, 10), (1.0, 0.1, 0), (1.0, 0.1, 2.5)],
)
def test_nonsense_is_refused(target: float, rate: float, steps: int) -> None:
    with pytest.raises(PlanningError):
        calibrate(target, DELTA, rate, steps)


def test_a_target_out_of_reach_is_refused() -> None:
    with pytest.raises(PlanningError, match="no noise multiplier"):
        calibrate(1e7, DELTA, 1.0, 1)


def test_a_plan_prices_the_steps_it_plans_retries_included() -> None:
    made = make_plan(retry_rounds=2)
    assert made.planned_steps == 28
    assert made.sample_rate == 0.02
    assert certified(made.noise_multiplier, made.sample_rate, 28) <= made.target_epsilon
    assert made.round_event() == PoissonGaussian(made.noise_multiplier, 0.02, 4, 0.5)
    assert pricing.epsilon([made.round_event()] * 7, DELTA) <= made.target_epsilon


def test_one_step_too_many_would_overshoot() -> None:
    """7499 steps meet the target; the 7500 that `int(epochs / q)` would run cost more than they."""
    noise = calibrate(3.0, DELTA, 0.01, 7499)
    curve = pricing.step_curve((), mechanisms.Mechanism(noise, 0.01), DELTA)
    assert curve.epsilon(7499) <= 3.0
    assert curve.epsilon(7500) > curve.epsilon(7499)


@pytest.mark.parametrize(
    "change",
    [
        {"delta": 1e-3},
        {"delta": 0.5},
        {"planned_batch_size": 1001},
        {"planned_batch_size": 0},
        {"rounds": 0},
        {"steps_per_round": 0},
        {"retry_rounds": -1},
        {"declared_examples": 0},
        {"declared_examples": 10.0},
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PlanningError):
        make_plan(**change)


def test_the_window_is_within_what_is_promised() -> None:
    assert calibration.WINDOW <= 0.005


def test_the_digest_of_a_plan_survives_json_and_changes_with_any_field() -> None:
    made = make_plan()
    stated = json.loads(json.dumps(made.to_json()))
    assert made.digest() == planning.plan_digest(stated) == planning.plan_digest(dict(sorted(stated.items())))
    for name, value in stated.items():
        edited = {**stated, name: value + "x" if isinstance(value, str) else 2 * value + 1}
        assert planning.plan_digest(edited) != made.digest()
