"""The budget: certified, refused before overspending, and cheap every round."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import mechanisms, pricing
from accounting.budget import Budget
from accounting.calibration import calibrate
from accounting.chain import Chain
from accounting.errors import BudgetExceeded, PricingError
from accounting.events import Gaussian, NonPrivate, PoissonGaussian, PrivateEvent
from accounting.ledger import Ledger
from accounting.mechanisms import Mechanism

DELTA = 1e-5
RUN = "ab" * 16


def certified(events: list[PrivateEvent]) -> float:
    """A price that owes nothing to what the budget remembered."""
    return pricing.pld_epsilon(mechanisms.compose(events), DELTA)


@pytest.fixture
def certificates(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Everything that PLD is asked to price from here on: what makes a check expensive."""
    asked: list[object] = []
    certify = pricing.pld_epsilon

    def counted(parts: mechanisms.Parts, delta: float) -> float:
        asked.append(parts)
        return certify(parts, delta)

    monkeypatch.setattr(pricing, "pld_epsilon", counted)
    return asked


def test_a_planned_run_fits_to_its_last_round_and_not_one_further(
    open_ledger: Callable[..., Ledger], certificates: list[object]
) -> None:
    noise = calibrate(0.7, DELTA, 0.03, 60)
    event = PoissonGaussian(noise, 0.03, 5, 1.0)
    budget, ledger = Budget(0.7, DELTA), open_ledger()
    certificates.clear()
    for number in range(1, 13):
        budget.require(ledger, event)
        ledger.reserve(event, round=number, run=RUN)
    assert certificates == []  # the plan's own certificate covers every round of it
    with pytest.raises(BudgetExceeded, match=r"above the budget of 0\.7") as caught:
        budget.require(ledger, event)
    assert caught.value.epsilon == pytest.approx(certified([event] * 13), abs=1e-9)
    assert caught.value.epsilon > caught.value.limit == 0.7
    assert 0 <= caught.value.steps_left < 5
    assert len(ledger.spent_events()) == 12  # a refusal records nothing


def test_the_steps_left_are_exact() -> None:
    event = PoissonGaussian(4.0, 0.05, 50, 1.0)
    spent: list[PrivateEvent] = [event] * 3
    limit = 1.1 * certified(spent)
    with pytest.raises(BudgetExceeded) as caught:
        Budget(limit, DELTA).require_events(spent, PoissonGaussian(4.0, 0.05, 5000, 1.0))
    left = caught.value.steps_left
    assert left > 0
    assert certified([*spent, PoissonGaussian(4.0, 0.05, left, 1.0)]) <= limit
    assert certified([*spent, PoissonGaussian(4.0, 0.05, left + 1, 1.0)]) > limit


@settings(deadline=None, max_examples=10)
@given(
    st.lists(st.tuples(st.sampled_from([4.0, 6.0]), st.integers(1, 60)), max_size=6),
    st.sampled_from([0.2, 0.4]),
)
def test_what_a_budget_lets_through_never_costs_more(rounds: list[tuple[float, int]], limit: float) -> None:
    spent: list[PrivateEvent] = []
    for noise, steps in rounds:
        event = PoissonGaussian(noise, 0.05, steps, 1.0)
        try:
            Budget(limit, DELTA).require_events(spent, event)
        except BudgetExceeded:
            assert certified([*spent, event]) > limit
        else:
            spent.append(event)
    assert not spent or certified(spent) <= limit


def test_warm_checks_are_cheap_without_a_plan(certificates: list[object]) -> None:
    """Nothing was calibrated here: one search finds the last affordable step, and then every round is free."""
    event = PoissonGaussian(5.0, 0.04, 10, 1.0)
    limit = certified([event] * 100)
    budget = Budget(limit, DELTA)
    budget.require_events([event] * 98, event)
    certificates.clear()
    budget.require_events([event] * 99, event)
    assert certificates == []
    with pytest.raises(BudgetExceeded):
        budget.require_events([event] * 100, event)


def test_every_run_on_the_data_counts(open_ledger: Callable[..., Ledger]) -> None:
    event = PoissonGaussian(4.0, 0.05, 100, 1.0)
    budget = Budget(certified([event]) + 1e-6, DELTA)
    ledger = open_ledger()
    budget.require(ledger, event)
    ledger.reserve(event, round=1, run="01")
    with pytest.raises(BudgetExceeded):
        budget.require(open_ledger(), event)  # a new run, a reopened file


def test_a_spent_budget_has_no_step_left() -> None:
    with pytest.raises(BudgetExceeded) as caught:
        Budget(0.01, DELTA).require_events([Gaussian(2.0, 1, 1.0)], PoissonGaussian(4.0, 0.05, 1, 1.0))
    assert caught.value.steps_left == 0


def test_a_budget_cannot_be_asked_about_what_has_no_price() -> None:
    with pytest.raises(PricingError):
        Budget(1.0, DELTA).require_events([], NonPrivate("loss", "why"))


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, DELTA), (float("inf"), DELTA), (1.0, 0.0), (1.0, 1.0)])
def test_a_budget_that_limits_nothing_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(PricingError):
        Budget(epsilon, delta)


def test_a_curve_knows_its_last_affordable_step_from_any_start() -> None:
    mechanism = Mechanism(5.0, 0.05)
    cold, warm = (pricing.StepCurve((), mechanism, DELTA) for _ in range(2))
    warm.epsilon(7)
    warm.epsilon(900)
    assert cold.affordable_steps(0.3) == warm.affordable_steps(0.3)
    assert cold.epsilon(cold.affordable_steps(0.3)) <= 0.3 < cold.epsilon(cold.affordable_steps(0.3) + 1)
    assert cold.affordable_steps(1e-9) == 0


def test_two_that_both_find_room_cannot_both_take_it(open_ledger: Callable[..., Ledger]) -> None:
    """Each process asks before the other reserves; asked again within the reservation, the second is refused."""
    event = PoissonGaussian(1.0, 0.02, 10, 1.0)
    budget = Budget(1.01 * certified([event]), DELTA)
    first, second = open_ledger(), open_ledger()

    def require(chain: Chain) -> None:
        budget.require_events(chain.spent(), event)

    for ledger in (first, second):
        budget.require(ledger, event)
    first.reserve(event, round=1, run=RUN, require=require)
    with pytest.raises(BudgetExceeded):
        second.reserve(event, round=1, run="cd" * 16, require=require)
    assert len(first.rows()) == len(second.rows()) == 2  # the refusal left nothing
    assert second.reserve(event, round=1, run="cd" * 16) == 2  # and the ledger goes on
