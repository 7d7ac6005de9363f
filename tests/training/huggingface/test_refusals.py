"""What would break the guarantee inside a `Trainer` is refused, one clear line each, before anything is charged."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from torch import nn
from torch.utils.data import IterableDataset
from transformers import (
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
)

from accounting import private_audit
from fedlora_priv.adapters import read_state
from fedlora_priv.errors import ConfigError, DataError
from fedlora_priv.training.huggingface import PrivacyCallback
from protocols.errors import LocalProtocolError

from .lab import BATCH, DECLARED, rows_of


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


@pytest.mark.parametrize("name", ["training_step", "get_train_dataloader", "log"])
@pytest.mark.parametrize("half_way", [False, True])
def test_a_method_replaced_once_more_stops_the_training(name, half_way, make_trainer, private, ledger):
    """Before the second call of train(), when rows are known from the first; or in the middle of the first."""

    def replace_it() -> None:
        setattr(trainer, name, getattr(Trainer, name).__get__(trainer))

    class Late(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                replace_it()

    trainer = make_trainer(max_steps=2, callbacks=[Late()] if half_way else [])
    private().attach(trainer)
    if not half_way:
        trainer.train()
        replace_it()
    start = read_state(trainer.model)
    # Half-way the Trainer's own step fails by itself, on a batch of no columns.
    fails_itself = half_way and name == "training_step"
    error, complaint = (ValueError, "empty") if fails_itself else (ConfigError, f"{name} was replaced")
    with pytest.raises(error, match=complaint):
        trainer.train()
    assert len(ledger.charges()) == 1
    unmoved = all(np.array_equal(value, start[key]) for key, value in read_state(trainer.model).items())
    assert unmoved != half_way


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_callback_is_never_duplicated(duplicate, make_trainer, private):
    """Two copies of its stream would draw the same noise, and a difference would be without any."""
    private().attach(trainer := make_trainer())
    trainer.train()
    (callback,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, PrivacyCallback))
    with pytest.raises(LocalProtocolError, match="neither copied nor pickled"):
        duplicate(callback)
    assert "secret" in repr(callback)


def test_models_that_cannot_be_trained_privately_are_refused(make_trainer, private, tiny_model, tiny_base):
    dropout, hooked, coarse, frozen = (tiny_model("bert") for _ in range(4))
    dropout.peft_config["default"].lora_dropout = 0.1
    next(p for p in hooked.parameters() if p.requires_grad).register_hook(print)
    coarse.bfloat16()
    frozen.requires_grad_(False)
    for model, complaint in (
        (tiny_base("bert"), "no LoRA"), (nn.DataParallel(tiny_model("bert")), "wrapped around"),
        (dropout, "lora_dropout"), (hooked, "a hook on"),
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
