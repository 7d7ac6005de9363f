"""Logs, checkpoints and results of a `Trainer` with the callback hold nothing private."""

from __future__ import annotations

import json
import math

import pytest
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
)

from accounting import private_audit

from .lab import BATCH, DECLARED, KEY, PUBLIC, rows_of


def test_logs_checkpoints_and_results_hold_nothing_private(make_trainer, private, tmp_path):
    class Listener(TrainerCallback):
        heard: list[dict[str, float]] = []  # noqa: RUF012  # one class, one test

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.heard.append(dict(logs))

    trainer = make_trainer(
        save_strategy="steps",
        save_steps=2,
        skip_memory_metrics=False,
        callbacks=[Listener()],
        logging_first_step=True,
    )
    private(private_audit_file=tmp_path / "private.jsonl").attach(trainer)
    result = trainer.train()
    state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert len(Listener.heard) == 5
    for logs in (*Listener.heard, *trainer.state.log_history, *state["log_history"], result.metrics):
        assert set(logs) <= PUBLIC
    assert (state["total_flos"], state["num_input_tokens_seen"], result.training_loss) == (0, 0, 0)
    assert set(state["stateful_callbacks"]["PrivacyCallback"]["attributes"]["ledger"]) == {
        "run",
        "rows",
        "head",
    }
    assert (tmp_path / "private.jsonl").stat().st_mode & 0o777 == 0o600
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    [first, _] = private_audit.read(tmp_path / "private.jsonl")
    assert str(first.steps[0].largest_norm).encode() not in written
    assert KEY not in written


def test_the_trainer_never_holds_a_private_row(make_trainer, private):
    private().attach(trainer := make_trainer())
    given = []

    class Spy(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
            given.extend(train_dataloader)

    trainer.add_callback(Spy())
    trainer.train()
    assert given == [{}] * math.ceil(DECLARED / BATCH)


@pytest.mark.parametrize("kind", ["bert", "bert-mean"])
def test_evaluation_on_declared_public_rows_is_logged(kind, make_trainer, private, make_examples, tiny_model):
    rows = rows_of(make_examples(8, seed=9))
    trainer = make_trainer(
        tiny_model(kind), eval_dataset=rows, eval_strategy="steps", eval_steps=2, save_strategy="best",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss", callbacks=[EarlyStoppingCallback(early_stopping_patience=5)],
    )  # fmt: skip
    private(public_evaluation=True).attach(trainer)
    trainer.train()
    assert sum("eval_loss" in logs for logs in trainer.state.log_history) == 2
    assert not any("loss" in logs or "train_loss" in logs for logs in trainer.state.log_history)
