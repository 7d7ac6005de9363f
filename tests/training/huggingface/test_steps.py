"""Steps of a `Trainer` with the callback are those of `PrivateTrainer`, whatever the model, rows and engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    TrainerCallback,
    default_data_collator,
)

from fedlora_priv.adapters import read_state
from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.training import PrivateTrainer, StepSettings
from fedlora_priv.training.noise import gaussian_noise
from protocols.prg import SecretStream

from .lab import BATCH, DECLARED, KEY, LEARNING_RATE, open_ledger, rows_of, without_labels


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
    for collator, epsilon in ((pad, 3.0), (lambda rows: pad(rows), 9.0)):  # noqa: PLW0108  # a lambda is the case
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
