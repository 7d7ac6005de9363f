"""Every step of a `Trainer` is charged before it is taken, also after crashes, stops and in later runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import (
    TrainerCallback,
)

from accounting import private_audit
from accounting.independent import bracket
from accounting.ledger import Ledger
from fedlora_priv.adapters import read_state
from fedlora_priv.errors import BudgetError

from .lab import BATCH, DECLARED, DELTA, EPSILON, open_ledger, rows_of


def test_every_step_is_reserved_and_committed_and_the_claim_holds(make_trainer, private, ledger):
    trainer = make_trainer(max_steps=5, save_strategy="steps", save_steps=2)
    callback = private().attach(trainer)
    result = trainer.train()
    charges, spent = ledger.charges(), callback.spent()
    assert [charge.reserved.steps for charge in charges] == [2, 2, 1]
    assert all(charge.committed == charge.reserved for charge in charges)
    assert {(c.reserved.sample_rate, c.reserved.clip_norm, c.reserved.adjacency) for c in charges} == {
        (BATCH / DECLARED, 1.0, "add-remove")
    }
    bounds = bracket(ledger.spent_events(), DELTA)  # the audit's own accountant
    assert bounds.low <= spent.epsilon <= EPSILON
    assert spent.epsilon == pytest.approx(bounds.high, rel=2e-3)
    assert result.metrics["privacy_epsilon"] == spent.epsilon == spent.run_epsilon
    assert (spent.steps, spent.declared_examples) == (5, DECLARED)
    assert str(spent).startswith("ε = 2.99")


@pytest.mark.parametrize("rows", [3, 60])
def test_epochs_are_counted_in_declared_examples(rows, make_trainer, private, ledger, make_examples):
    # 24 declared in batches of 6 are 4 steps an epoch, whatever the number of rows really is.
    trainer = make_trainer(rows=rows_of(make_examples(rows)), max_steps=-1, num_train_epochs=1.5)
    private().attach(trainer)
    assert trainer.train().global_step == 6
    assert [charge.reserved.steps for charge in ledger.charges()] == [6]


def test_a_crash_leaves_the_whole_reservation_charged(make_trainer, private, ledger):
    class Crash(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    trainer = make_trainer(max_steps=6, save_strategy="steps", save_steps=2, callbacks=[Crash()])
    private().attach(trainer)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    charges = ledger.charges()
    assert [charge.charged.steps for charge in charges] == [2, 2]
    assert [charge.committed is None for charge in charges] == [False, True]


def test_a_resumed_run_draws_afresh_and_pays_for_what_remains(make_trainer, private, ledger, tmp_path):
    class Crash(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    audit_file, options = (
        tmp_path / "private.jsonl",
        {"max_steps": 8, "save_strategy": "steps", "save_steps": 2},
    )
    trainer = make_trainer(**options, callbacks=[Crash()])
    first = private(private_audit_file=audit_file).attach(trainer)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    planned = first.spent().noise_multipliers
    resumed = make_trainer(**options)
    again = private(private_audit_file=audit_file).attach(resumed)
    assert resumed.train(resume_from_checkpoint=True).global_step == 8
    assert [charge.charged.steps for charge in ledger.charges()] == [2, 2, 2, 2, 2]
    assert len({charge.run for charge in ledger.charges()}) == 1
    spent = again.spent()
    assert spent.noise_multipliers[0] == planned[0] < spent.noise_multipliers[1]
    assert EPSILON - 0.01 < spent.epsilon <= EPSILON
    records = private_audit.read(audit_file)
    digests = [step.noise_digest for record in records for step in record.steps]
    assert len(digests) == len(set(digests)) == 8  # the crashed stretch was never committed, so never noted
    assert {record.digest for record in records} == {
        charge_digest(ledger, charge.reservation) for charge in ledger.charges() if charge.committed
    }


def charge_digest(ledger: Ledger, reservation: int) -> str | None:
    """What the ledger says of an attempt's line in the private audit file."""
    [digest] = [
        row.entry.private_audit
        for row in ledger.rows()
        if row.entry.kind == "commit" and row.entry.reservation == reservation
    ]
    return digest


def test_a_run_stopped_at_a_checkpoint_goes_on_as_planned(make_trainer, private, ledger):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer(**options, callbacks=[Stop()])
    private().attach(trainer)
    trainer.train()
    resumed = make_trainer(**options)
    callback = private().attach(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert callback.spent().steps == 8
    assert len(callback.spent().noise_multipliers) == 1
    with pytest.raises(BudgetError, match="no room"):
        resumed.train(resume_from_checkpoint=str(Path(resumed.args.output_dir) / "checkpoint-6"))


def test_a_checkpoint_goes_with_its_ledger(make_trainer, private, ledger, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    private().attach(trainer := make_trainer(**options))
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    with open_ledger(tmp_path, "other.sqlite") as other:
        private(ledger=other).attach(resumed := make_trainer(**options))
        with pytest.raises(BudgetError, match="does not hold the 2 steps"):
            resumed.train(resume_from_checkpoint=str(checkpoint))
        assert not other.charges()
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    del state["stateful_callbacks"]["PrivacyCallback"]
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    private().attach(resumed := make_trainer(**options))
    with pytest.raises(BudgetError, match="says nothing of a ledger"):
        resumed.train(resume_from_checkpoint=str(checkpoint))


def test_the_budget_belongs_to_the_data_not_to_the_run(make_trainer, private, ledger):
    private().attach(trainer := make_trainer())
    trainer.train()
    private().attach(second := make_trainer())
    start = read_state(second.model)
    with pytest.raises(BudgetError, match="is spent: no room"):
        second.train()
    assert all(np.array_equal(value, start[name]) for name, value in read_state(second.model).items())
    assert len(ledger.charges()) == 1
    callback = private(epsilon=2 * EPSILON).attach(third := make_trainer())
    third.train()
    assert callback.spent().run_epsilon < callback.spent().epsilon <= 2 * EPSILON
