"""One run's account with a ledger: what is reserved before a step, what a crash costs, who may go on."""

from __future__ import annotations

import shutil

import pytest

from accounting.budget import Budget
from accounting.ledger import Ledger
from fedlora_priv.errors import BudgetError
from fedlora_priv.training.spending import Spending

BUDGET, RATE = Budget(3.0, 1e-3), 0.25


def open_ledger(path):
    return Ledger.open(path, client_id="me", dataset_id="rows", partition_id="all", public=False)


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(tmp_path / "ledger.sqlite") as opened:
        yield opened


def account(ledger, **options):
    return Spending(ledger, BUDGET, sample_rate=RATE, clip_norm=1.0, **options)


def take(spending, steps, ahead):
    """Take steps; return how often a note for the auditor was asked for."""
    notes = []
    for _ in range(steps):
        spending.before_step(ahead)
        spending.after_step(lambda number, reservation: notes.append(number))
    return notes


def test_steps_are_reserved_ahead_and_committed_when_taken(ledger):
    spending = account(ledger)
    spending.plan(4)
    assert not ledger.charges()
    spending.before_step(3)
    assert [(charge.reserved.steps, charge.committed) for charge in ledger.charges()] == [(3, None)]
    spending.after_step(lambda *_: None)
    assert ledger.charges()[0].committed is None
    assert take(spending, 2, ahead=1) == [1]
    assert ledger.charges()[0].committed.steps == 3
    assert take(spending, 1, ahead=1) == [2]
    assert len(ledger.charges()) == 2
    with pytest.raises(BudgetError, match="all planned steps"):
        spending.before_step(0)


def test_two_runs_that_both_found_room_cannot_both_take_it(ledger):
    first, second = account(ledger), account(ledger)
    assert first.plan(4) == second.plan(4)
    take(first, 2, ahead=2)
    with pytest.raises(BudgetError, match="above the budget"):
        take(second, 4, ahead=4)
    assert [charge.run for charge in ledger.charges()] == [first.run]


def test_nothing_is_taken_without_a_plan(ledger):
    with pytest.raises(BudgetError, match="no noise was planned"):
        account(ledger).before_step(1)
    assert not ledger.charges()


def test_a_statement_is_good_for_the_ledger_that_it_came_from(ledger, tmp_path):
    spending = account(ledger)
    spending.plan(4)
    with open_ledger(tmp_path / "ledger.sqlite"):  # so that the copy below has all rows in one file
        ledger._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(tmp_path / "ledger.sqlite", tmp_path / "earlier.sqlite")
    take(spending, 2, ahead=2)
    statement = spending.statement()
    account(ledger).resume(statement, 2)
    resumed = account(ledger)
    resumed.resume(statement, 2)
    assert resumed.run == spending.run
    assert resumed.plan(2) == spending.spent(24).noise_multipliers[0]
    with pytest.raises(BudgetError, match="does not hold the 3 steps"):
        account(ledger).resume(statement, 3)
    with (
        open_ledger(tmp_path / "earlier.sqlite") as earlier,
        pytest.raises(BudgetError, match="does not hold the 2 steps"),
    ):
        account(earlier).resume(statement, 2)
    with pytest.raises(BudgetError, match="does not hold the 2 steps"):  # as many rows, of another history
        account(ledger).resume({**statement, "head": "0" * 64}, 2)
    for damaged in ({}, {**statement, "rows": -1}, {**statement, "run": None}):
        with pytest.raises(BudgetError, match="damaged"):
            account(ledger).resume(damaged, 2)


def test_a_damaged_ledger_is_one_line(ledger):
    spending = account(ledger)
    spending.plan(4)
    ledger._connection.execute("UPDATE rows SET line = '{}'")
    ledger._connection.commit()
    with pytest.raises(BudgetError, match="ledger row 0"):
        spending.before_step(1)
