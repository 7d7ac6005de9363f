"""A `Trainer` with the callback takes the steps of `PrivateTrainer`, charges them all, and lets nothing else out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer, models
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from accounting import private_audit
from accounting.independent import bracket
from accounting.ledger import Ledger
from fedlora_priv.adapters import read_state
from fedlora_priv.errors import BudgetError, ConfigError, DataError, FedloraError
from fedlora_priv.training import PrivateTrainer, StepSettings
from fedlora_priv.training.huggingface import PrivacyCallback
from fedlora_priv.training.noise import gaussian_noise
from protocols.prg import SecretStream

KEY = bytes(range(32))
EPSILON, DELTA, DECLARED, BATCH = 3.0, 1e-3, 24, 6
LEARNING_RATE = 0.1
PUBLIC = {"learning_rate", "grad_norm", "epoch", "step", "privacy_epsilon", "privacy_delta"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Of the words "0" to "96", whose ids are their numbers; 0 pads."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(97)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0")


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(tmp_path) as opened:
        yield opened


def open_ledger(folder: Path, name: str = "ledger.sqlite") -> Ledger:
    return Ledger.open(folder / name, client_id="me", dataset_id="rows", partition_id="all", public=False)


def without_labels(batch: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def rows_of(examples: Any) -> list[dict[str, Any]]:
    """Rows as `datasets` gives them, unpadded."""
    rows = [{"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)} for ids in examples.input_ids]
    if examples.labels is not None:
        rows = [{**row, "label": int(label)} for row, label in zip(rows, examples.labels, strict=True)]
    return rows


@pytest.fixture
def make_trainer(tmp_path, tokenizer, tiny_model, make_examples) -> Callable[..., Any]:
    """Builds a Trainer of plain SGD on a tiny model; keyword arguments go into its `TrainingArguments`."""

    def make(
        model: Any = None, *, rows: Any = None, collator: Any = None, kind: type = Trainer, **options: Any
    ):
        given = {name: options.pop(name) for name in ("optimizers", "compute_loss_func", "model_init", "callbacks",
                                                      "eval_dataset") if name in options}  # fmt: skip
        settings = {
            "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": BATCH, "max_steps": 4,
            "learning_rate": LEARNING_RATE, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0,
            "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1,
        }  # fmt: skip
        if "model_init" not in given:
            given["model"] = tiny_model("bert") if model is None else model
        return kind(
            args=TrainingArguments(**(settings | options)),
            train_dataset=rows_of(make_examples(DECLARED)) if rows is None else rows,
            data_collator=DataCollatorWithPadding(tokenizer) if collator is None else collator,
            **given,
        )

    return make


@pytest.fixture
def private(ledger) -> Callable[..., PrivacyCallback]:
    """Builds a callback; its noise and batches are secret unless a stream is given."""

    def make(**options: Any) -> PrivacyCallback:
        settings = {"ledger": ledger, "epsilon": EPSILON, "delta": DELTA, "declared_examples": DECLARED}
        return PrivacyCallback(**(settings | options))

    return make


# --- the steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "bert-mean", "gpt2", "llama-lm"])
def test_its_steps_are_those_of_the_private_trainer(
    kind, tiny_model, make_examples, make_trainer, private, tokenizer
):
    examples = make_examples(DECLARED, labels=not kind.endswith("-lm"))
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False) if kind.endswith("-lm") else None
    trainer = make_trainer(tiny_model(kind), rows=rows_of(examples), collator=collator)
    start = read_state(trainer.model)
    callback = private(stream=SecretStream(KEY)).attach(trainer)
    trainer.train()
    settings = StepSettings(
        steps=4,
        sample_rate=BATCH / DECLARED,
        planned_batch_size=BATCH,
        noise_multiplier=callback.spent().noise_multipliers[0],
        clip_norm=1.0,
        learning_rate=LEARNING_RATE,
    )
    reference = PrivateTrainer(tiny_model(kind)).train(examples, start, settings, stream=SecretStream(KEY))
    for name, value in read_state(trainer.model).items():
        assert np.abs(value - start[name]).max() > 0.01
        np.testing.assert_allclose(value, reference.state[name], atol=1e-6)


def test_what_is_frozen_stays_and_takes_no_noise(tiny_model, make_examples, make_trainer, private):
    model, examples = tiny_model("bert"), make_examples(DECLARED)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)
    trainer, start = make_trainer(model, rows=rows_of(examples)), read_state(model)
    callback = private(stream=SecretStream(KEY)).attach(trainer)
    trainer.train()
    settings = StepSettings(
        4, BATCH / DECLARED, BATCH, callback.spent().noise_multipliers[0], 1.0, LEARNING_RATE
    )
    reference = PrivateTrainer(tiny_model("bert")).train(
        examples, start, settings, stream=SecretStream(KEY), trainable=frozenset({"B", "head"})
    )
    for name, value in read_state(model).items():
        np.testing.assert_allclose(value, reference.state[name], atol=1e-6)
        assert name.endswith("lora_A") == np.array_equal(value, start[name])


def test_an_empty_batch_is_a_step_of_noise(make_trainer, private, make_examples):
    trainer = make_trainer(rows=rows_of(make_examples(4)), per_device_train_batch_size=1, max_steps=2)
    start = read_state(trainer.model)
    callback = private(stream=SecretStream(KEY), declared_examples=10**7, delta=1e-8).attach(trainer)
    trainer.train()
    stream, noise_multiplier = SecretStream(KEY), callback.spent().noise_multipliers[0]
    noise = 0.0
    for _ in range(2):
        assert (stream.uniform(4) > 1e-7).all()
        noise = noise + gaussian_noise(stream, sum(v.size for v in start.values()), noise_multiplier)
    moved = {name: value - start[name] for name, value in read_state(trainer.model).items()}
    flat = np.concatenate([value.ravel() for value in moved.values()])
    np.testing.assert_allclose(flat, -LEARNING_RATE * noise, atol=1e-5)


def test_the_trainers_own_clipping_only_scales_noised_gradients(make_trainer, private, tmp_path):
    moved = []
    for index, max_grad_norm in enumerate((0, 0.5)):
        trainer = make_trainer(max_steps=1, max_grad_norm=max_grad_norm)
        start = read_state(trainer.model)
        with open_ledger(tmp_path, f"{index}.sqlite") as ledger:
            private(stream=SecretStream(KEY), ledger=ledger).attach(trainer)
            trainer.train()
        state = read_state(trainer.model)
        moved.append(np.concatenate([(state[name] - start[name]).ravel() for name in start]))
    norm = np.linalg.norm(moved[0]) / LEARNING_RATE
    assert norm > 1
    np.testing.assert_allclose(moved[1], moved[0] * 0.5 / norm, atol=1e-6)


@pytest.mark.parametrize("width", [0, 12])
def test_rows_are_taken_from_a_collator_that_only_stacks(width, make_trainer, private, make_examples):
    rows = [
        {
            name: value if name == "label" else value + [0] * (width - len(value))
            for name, value in row.items()
        }
        for row in rows_of(make_examples(DECLARED))
    ]
    trainer = make_trainer(rows=rows, collator=default_data_collator)
    private().attach(trainer)
    trainer.train()
    assert trainer.state.global_step == 4


def test_a_padded_width_is_a_rows_own(make_trainer, private, make_examples, tokenizer):
    """Else who else was drawn would show in the rounding; see docs/decisions/0034."""
    lengths: dict[int, set[int]] = {}

    def losses(model, batch):
        for mask in batch["attention_mask"]:
            lengths.setdefault(int(mask.sum()), set()).add(len(mask))
        return cross_entropy(model(**without_labels(batch)).logits, batch["labels"], reduction="none")

    class Forget(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            lengths.clear()

    pad = DataCollatorWithPadding(tokenizer)
    # The second pads to the longest, and nobody can ask it for anything else.
    for collator, epsilon in ((pad, 3.0), (lambda rows: pad(rows), 9.0)):  # noqa: PLW0108
        private(example_losses=losses, epsilon=epsilon).attach(trainer := make_trainer(collator=collator))
        trainer.add_callback(Forget())  # what the preflight's rows were padded to
        trainer.train()
        assert len(lengths) > 5
        assert all(len(widths) == 1 for widths in lengths.values())
    assert pad.pad_to_multiple_of is None  # the caller's own is left alone


@pytest.mark.parametrize("options", [{"mode": "ghost"}, {"mode": "hooks"}, {"gradient_checkpointing": True}])
def test_every_engine_takes_the_same_steps(options, make_trainer, private, tmp_path):
    states = []
    for index, chosen in enumerate(({}, options)):
        trainer = make_trainer()
        with open_ledger(tmp_path, f"{index}.sqlite") as ledger:
            private(stream=SecretStream(KEY), ledger=ledger, **chosen).attach(trainer)
            trainer.train()
        states.append(read_state(trainer.model))
    for name, value in states[0].items():
        np.testing.assert_allclose(value, states[1][name], atol=1e-6)


def test_columns_that_the_trainer_drops_do_not_matter(make_trainer, private, make_examples, tmp_path):
    rows = [{**row, "text": "a film", "scores": [0.5, 0.1]} for row in rows_of(make_examples(DECLARED))]
    states = []
    for index, data in enumerate((rows_of(make_examples(DECLARED)), rows, Dataset.from_list(rows))):
        trainer = make_trainer(rows=data)
        with open_ledger(tmp_path, f"{index}.sqlite") as ledger:
            private(stream=SecretStream(KEY), ledger=ledger).attach(trainer)
            trainer.train()
        states.append(read_state(trainer.model))
    for other in states[1:]:
        assert all(np.array_equal(value, states[0][name]) for name, value in other.items())


def test_a_loss_for_each_example_may_be_given(make_trainer, private, tmp_path):
    def losses(model, batch):
        return cross_entropy(model(**without_labels(batch)).logits, batch["labels"], reduction="none")

    states = []
    for index, own in enumerate((None, losses)):
        trainer = make_trainer()
        with open_ledger(tmp_path, f"{index}.sqlite") as ledger:
            private(stream=SecretStream(KEY), ledger=ledger, example_losses=own).attach(trainer)
            trainer.train()
        states.append(read_state(trainer.model))
    for name, value in states[0].items():
        np.testing.assert_allclose(value, states[1][name], atol=1e-6)


@pytest.mark.parametrize(
    ("reduce", "complaint"),
    [
        (lambda losses: losses.mean(), "one loss per example"),
        (lambda losses: losses / len(losses) ** 2, "differ from brute force"),
    ],
)
def test_a_loss_that_is_not_one_for_each_example_is_refused(reduce, complaint, make_trainer, private, ledger):
    def losses(model, batch):
        return reduce(cross_entropy(model(**without_labels(batch)).logits, batch["labels"], reduction="none"))

    trainer = make_trainer()
    private(example_losses=losses).attach(trainer)
    with pytest.raises(ConfigError, match=complaint):
        trainer.train()
    assert not ledger.charges()


def test_a_warm_up_from_zero_is_no_dead_step(make_trainer, private):
    trainer = make_trainer(lr_scheduler_type="linear", warmup_steps=2)
    start = read_state(trainer.model)
    private().attach(trainer)
    trainer.train()
    assert all((value != start[name]).any() for name, value in read_state(trainer.model).items())


def test_what_the_optimizer_leaves_out_is_noticed(tiny_model, make_trainer, private):
    model = tiny_model("bert")
    some = [p for name, p in model.named_parameters() if p.requires_grad and "classifier" not in name]
    trainer = make_trainer(model, optimizers=(torch.optim.SGD(some, lr=0.1), None))
    private().attach(trainer)
    with pytest.raises(FedloraError, match=r"classifier.*unchanged"):
        trainer.train()


def test_the_saved_adapter_loads_in_plain_peft(make_trainer, private, tiny_base, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=4)
    private().attach(trainer)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    ids = torch.tensor([[5, 9, 17]])
    for folder in (tmp_path / "final", tmp_path / "out" / "checkpoint-4"):
        loaded = PeftModel.from_pretrained(tiny_base("bert"), str(folder)).eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, trainer.model(ids).logits)
    assert not any("_forward_hooks" in m.__dict__ and m._forward_hooks for m in trainer.model.modules())


# --- the ledger --------------------------------------------------------------------------------------------


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


# --- what comes out ----------------------------------------------------------------------------------------


def test_logs_checkpoints_and_results_hold_nothing_private(make_trainer, private, tmp_path):
    class Listener(TrainerCallback):
        heard: list[dict[str, float]] = []  # noqa: RUF012

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


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps must be 1"),
        ({"bf16": True}, "fp16 and bf16"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"neftune_noise_alpha": 5.0}, "NEFTune"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"include_num_input_tokens_seen": "all"}, "include_num_input_tokens_seen"),
        ({"restore_callback_states_from_checkpoint": True}, "restore_callback_states"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing=True to PrivacyCallback"),
        ({"debug": "underflow_overflow"}, "debug prints"),
        ({"optim": "galore_adamw_layerwise", "optim_target_modules": ["query"]}, "backward pass"),
        ({"eval_strategy": "steps", "eval_dataset": [{}]}, "evaluation during training"),
        ({"eval_on_start": True, "eval_dataset": [{}]}, "evaluation during training"),
        ({"compute_loss_func": lambda *_, **__: 0}, "loss of its own"),
        ({"per_device_train_batch_size": 25}, "above the 24 declared"),
    ],
)
def test_settings_that_would_break_the_guarantee_are_refused(options, complaint, make_trainer, private):
    trainer = make_trainer(**options)
    with pytest.raises(ConfigError, match=complaint):
        private().attach(trainer)
    assert not {"training_step", "log", "get_train_dataloader"} & set(vars(trainer))


def test_settings_are_checked_again_when_training_begins(make_trainer, private, ledger):
    private().attach(trainer := make_trainer())
    trainer.args.gradient_accumulation_steps = 2
    with pytest.raises(ConfigError, match="gradient_accumulation_steps"):
        trainer.train()
    assert not ledger.charges()


def test_batches_are_drawn_at_the_rate_that_is_charged(make_trainer, private, ledger, tmp_path):
    """Whoever changes the Trainer's arguments half-way changes neither the batches nor their price."""

    class Enlarge(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            args.per_device_train_batch_size = DECLARED

    trainer, audit_file = make_trainer(max_steps=12, callbacks=[Enlarge()]), tmp_path / "private.jsonl"
    private(private_audit_file=audit_file).attach(trainer)
    trainer.train()
    [charge] = ledger.charges()
    assert charge.reserved.sample_rate == BATCH / DECLARED
    [record] = private_audit.read(audit_file)
    # At a rate of a quarter, half of all rows in 11 steps have a probability below 1e-15.
    assert sum(step.batch_size for step in record.steps[1:]) < 11 * DECLARED / 2


@pytest.mark.parametrize("method", ["training_step", "compute_loss", "get_train_dataloader"])
def test_a_trainer_with_steps_of_its_own_is_refused(method, make_trainer, private):
    own = type("Own", (Trainer,), {method: lambda self, *args, **kwargs: None})
    with pytest.raises(ConfigError, match=r"Own|loss of its own"):
        private().attach(make_trainer(kind=own))


def test_several_devices_are_refused(make_trainer, private):
    trainer = make_trainer()
    trainer.args._n_gpu = 2
    with pytest.raises(ConfigError, match="several"):
        private().attach(trainer)


def test_another_model_at_every_training_is_refused(make_trainer, private, tiny_model):
    with pytest.raises(ConfigError, match="model_init"):
        private().attach(make_trainer(model_init=lambda: tiny_model("bert")))


def test_streamed_rows_are_refused(make_trainer, private):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(ConfigError, match="length and an index"):
        private().attach(make_trainer(rows=Stream()))


def test_a_callback_that_is_not_attached_stops_the_training(make_trainer, private):
    trainer = make_trainer(callbacks=[private()])
    with pytest.raises(ConfigError, match="not attached"):
        trainer.train()
    callback = private().attach(make_trainer())
    with pytest.raises(ConfigError, match="belongs to a trainer"):
        callback.attach(make_trainer())
    with pytest.raises(ConfigError, match="nothing has been trained"):
        callback.spent()


def test_models_that_cannot_be_trained_privately_are_refused(make_trainer, private, tiny_model, tiny_base):
    dropout, hooked, coarse, frozen = (tiny_model("bert") for _ in range(4))
    dropout.peft_config["default"].lora_dropout = 0.1
    next(p for p in hooked.parameters() if p.requires_grad).register_hook(print)
    coarse.bfloat16()
    frozen.requires_grad_(False)
    for model, complaint in (
        (tiny_base("bert"), "no LoRA"), (dropout, "lora_dropout"), (hooked, "a hook on"),
        (coarse, "too coarse"), (frozen, "nothing in the model requires"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=complaint):
            private().attach(make_trainer(model))


@pytest.mark.parametrize(
    ("column", "value", "error", "complaint"),
    [
        ("position_ids", [0, 1], ConfigError, "pack of several texts"),
        ("token_weights", [[0.5]], ConfigError, "neither one number"),
    ],
)
def test_rows_that_cannot_be_understood_are_refused(
    column, value, error, complaint, make_trainer, private, make_examples, ledger
):
    rows = [{**row, column: value} for row in rows_of(make_examples(3))]
    private().attach(trainer := make_trainer(rows=rows, remove_unused_columns=False))
    with pytest.raises(error, match=complaint):
        trainer.train()
    assert not ledger.charges()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"label": 2}, "label is out of range"),
        ({"input_ids": [5, 10_000]}, "outside the model's vocabulary"),
        ({"input_ids": [5] * 500}, "more tokens than the model has positions"),
    ],
)
def test_rows_that_do_not_fit_the_model_are_refused_before_any_is_drawn(
    change, complaint, make_trainer, private, make_examples, ledger
):
    rows = rows_of(make_examples(DECLARED))
    rows[-1] = {**rows[-1], **change}
    private().attach(trainer := make_trainer(rows=rows))
    with pytest.raises(DataError, match=complaint):
        trainer.train()
    assert not ledger.charges()


def test_mixed_precision_asked_for_by_the_environment_is_refused(make_trainer, private, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "bf16")
    with pytest.raises(ConfigError, match="fp16 and bf16"):
        private().attach(trainer)


def test_checkpointing_that_cannot_be_exact_is_refused_before_anything_is_charged(
    make_trainer, private, ledger
):
    private(mode="ghost", gradient_checkpointing=True).attach(trainer := make_trainer())
    with pytest.raises(ConfigError, match="ghost clipping runs backward twice"):
        trainer.train()
    assert not ledger.charges()


def test_a_collator_that_joins_rows_is_refused(make_trainer, private, tiny_model, make_examples, ledger):
    rows = rows_of(make_examples(6, labels=False))
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows]
    private().attach(
        trainer := make_trainer(tiny_model("llama-lm"), rows=rows, collator=DataCollatorWithFlattening())
    )
    with pytest.raises(DataError, match="another number of rows"):
        trainer.train()
    assert not ledger.charges()


def test_padding_on_the_left_is_a_rows_own_too(make_trainer, private, tokenizer, tiny_model):
    """GPT-2's positions count padding on the left; it would matter if companions decided how much there is."""
    left = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="0", padding_side="left"
    )
    private().attach(trainer := make_trainer(tiny_model("gpt2"), collator=DataCollatorWithPadding(left)))
    trainer.train()
    assert trainer.state.global_step == 4


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"delta": 0.1}, "below 1/n"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"declared_examples": 0}, "declared_examples"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"max_tokens_per_microbatch": 0}, "max_tokens"),
        ({"clipping": "adaptive"}, "no clipping 'adaptive'"),
        ({"mode": "fast"}, "no mode 'fast'"),
    ],
)
def test_values_out_of_range_are_refused(options, complaint, private):
    with pytest.raises(ConfigError, match=complaint):
        private(**options)
