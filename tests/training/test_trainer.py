"""One trainer, many clients: what is frozen stays, what is private does not leave, nothing carries over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlora_priv.adapters import read_state
from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.training import PrivateTrainer, StepSettings, TokenisedExamples
from protocols.prg import SecretStream

KEY = bytes(range(32))
SETTINGS = {
    "steps": 2,
    "sample_rate": 0.5,
    "planned_batch_size": 6.0,
    "noise_multiplier": 1.0,
    "clip_norm": 1.0,
    "learning_rate": 0.1,
}


@pytest.mark.parametrize("roles", [{"B"}, {"B", "head"}, {"A", "B"}, {"head"}])
def test_frozen_roles_come_back_bit_identical(roles, tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)
    required = [parameter.requires_grad for parameter in trainer.model.parameters()]
    result = trainer.train(
        make_examples(12),
        start,
        StepSettings(**SETTINGS),
        stream=SecretStream(KEY),
        trainable=frozenset(roles),
    )
    assert [parameter.requires_grad for parameter in trainer.model.parameters()] == required
    for name, value in result.state.items():
        changed = not np.array_equal(value, start[name])
        assert changed == (trainer.layout.role(name) in roles)


def test_frozen_roles_take_no_noise_from_the_stream(tiny_model, make_examples):
    # FFA-LoRA's point: with A frozen the noise has fewer coordinates.
    trainer, stream, reference = PrivateTrainer(tiny_model()), SecretStream(KEY), SecretStream(KEY)
    start = read_state(trainer.model)
    settings = SETTINGS | {"steps": 1}
    trainer.train(
        make_examples(12), start, StepSettings(**settings), stream=stream, trainable=frozenset({"B"})
    )
    reference.uniform(12 + 4 * sum(v.size for name, v in start.items() if name.endswith("lora_B")))
    assert stream.bytes(8) == reference.bytes(8)


def test_clients_in_turn_equal_clients_apart(tiny_model, make_examples):
    shared = PrivateTrainer(tiny_model())
    start = read_state(shared.model)
    clients = [make_examples(10, seed=seed) for seed in range(5)]
    for i, examples in enumerate(clients):
        roles = frozenset({"B"}) if i % 2 else frozenset({"A", "B", "head"})
        settings = StepSettings(**SETTINGS, optimizer="adam" if i % 3 else "sgd")

        def trained_by(trainer, examples=examples, settings=settings, roles=roles, key=bytes([i]) * 32):
            stream = SecretStream(key)
            return trainer.train(examples, start, settings, stream=stream, trainable=roles).state

        together, apart = trained_by(shared), trained_by(PrivateTrainer(tiny_model()))
        assert all(np.array_equal(together[name], apart[name]) for name in start)


def test_a_failed_call_leaves_nothing_behind(tiny_model, make_examples, monkeypatch):
    trainer = PrivateTrainer(tiny_model())
    start, examples = read_state(trainer.model), make_examples(12)
    wanted = trainer.train(examples, start, StepSettings(**SETTINGS), stream=SecretStream(KEY)).state
    broken = TokenisedExamples(examples.input_ids, np.full(12, 9), 0)  # labels out of range
    monkeypatch.setattr("fedlora_priv.training.trainer.refuse_unfit", lambda *_: None)  # so it fails mid-step
    with pytest.raises((IndexError, RuntimeError)):
        trainer.train(broken, start, StepSettings(**SETTINGS), stream=SecretStream(KEY))
    assert not any("activations" in module.__dict__ for module in trainer.model.modules())
    assert all(
        parameter.requires_grad for name, parameter in trainer.model.named_parameters() if "lora" in name
    )
    again = trainer.train(examples, start, StepSettings(**SETTINGS), stream=SecretStream(KEY)).state
    assert all(np.array_equal(wanted[name], again[name]) for name in start)


def test_private_facts_stay_in_the_audit_record(tiny_model, make_examples):
    trainer, seen = PrivateTrainer(tiny_model()), []
    result = trainer.train(
        make_examples(24), read_state(trainer.model), StepSettings(**(SETTINGS | {"steps": 3})),
        stream=SecretStream(KEY), on_step=seen.append,
    )  # fmt: skip
    assert seen == [1, 2, 3]
    assert result.steps_taken == 3
    assert len(result.private_audit) == 3
    assert 0 < result.private_audit[0].batch_size < 24
    assert repr(result) == "TrainResult(steps_taken=3, dimension=290, clip_norm=1.0)"
    assert repr(result.private_audit[0]) == "StepRecord()"


def test_the_start_state_is_not_modified(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)
    copy = {name: value.copy() for name, value in start.items()}
    trainer.train(make_examples(6), start, StepSettings(**SETTINGS), stream=SecretStream(KEY))
    assert all(np.array_equal(copy[name], start[name]) for name in start)


def test_it_learns(tiny_model):
    ids = tuple(np.array([5, 9, 5] if i % 2 else [60, 9, 61, 62]) for i in range(32))
    examples = TokenisedExamples(ids, np.arange(32, dtype=np.int64) % 2, 0)
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)
    settings = SETTINGS | {
        "steps": 25,
        "planned_batch_size": 16.0,
        "noise_multiplier": 0.3,
        "learning_rate": 1.0,
    }
    learnt = trainer.train(examples, start, StepSettings(**settings), stream=SecretStream(KEY))
    assert trainer.evaluate(examples, start).value <= 0.5
    assert trainer.evaluate(examples, learnt.state).value == 1.0


def test_evaluation_counts_correct_labels(tiny_model, make_examples):
    trainer, examples = PrivateTrainer(tiny_model()), make_examples(11)
    predicted = []
    with torch.no_grad():
        for ids in examples.input_ids:
            logits = trainer.model(input_ids=torch.from_numpy(ids)[None]).logits
            predicted.append(int(logits.argmax()))
    wanted = float(np.mean(np.array(predicted) == examples.labels))
    found = trainer.evaluate(examples, max_tokens_per_microbatch=20)
    assert (found.metric, found.value, found.counted) == ("accuracy", pytest.approx(wanted), 11)
    with pytest.raises(ConfigError, match="do not go with these labels"):
        trainer.evaluate(make_examples(3, labels=False))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", 2.5), ("sample_rate", 0.0), ("sample_rate", 1.5), ("planned_batch_size", 0),
        ("clip_norm", -1), ("clip_norm", float("nan")), ("learning_rate", 0), ("noise_multiplier", -0.1),
        ("noise_multiplier", float("inf")), ("max_tokens_per_microbatch", 0),
        ("clipping", "ghost"), ("mode", "flat"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=name.removesuffix("_rate").replace("sample", "sample rate")):
        StepSettings(**(SETTINGS | {name: value}))


def not_a_number(model):
    with torch.no_grad():
        model.get_base_model().encoder.embeddings.LayerNorm.weight.fill_(torch.nan)


def of_two_precisions(model):
    model.get_base_model().encoder.encoder.layer[1].intermediate.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (not_a_number, "loss is not a number for any .* look for NaN in its weights"),
        (of_two_precisions, "cannot compute made-up examples.*dtype.*in one precision"),
    ],
    ids=["not a number", "two precisions"],
)
def test_a_model_that_would_train_on_noise_alone_or_not_at_all_is_refused(spoil, complaint, tiny_model):
    spoil(model := tiny_model())
    with pytest.raises(ConfigError, match=complaint) as caught:
        PrivateTrainer(model)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_frozen_in_whole_is_evaluated_but_not_trained(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model().requires_grad_(False))
    assert trainer.evaluate(make_examples(4)).counted == 4
    with pytest.raises(ConfigError, match="nothing in the model requires a gradient; unfreeze"):
        trainer.train(
            make_examples(4), read_state(trainer.model), StepSettings(**SETTINGS), stream=SecretStream(KEY)
        )


@pytest.mark.parametrize("roles", [frozenset(), frozenset({"bias"})])
def test_unknown_roles_are_refused(roles, tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)
    with pytest.raises(ConfigError, match="trainable"):
        trainer.train(
            make_examples(3), start, StepSettings(**SETTINGS), stream=SecretStream(KEY), trainable=roles
        )


def test_a_state_of_another_model_is_refused(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model(rank=2))
    for state in (read_state(tiny_model(rank=3)), {}):
        with pytest.raises(FedloraError, match="same model and LoRA"):
            trainer.train(make_examples(3), state, StepSettings(**SETTINGS), stream=SecretStream(KEY))


@pytest.mark.parametrize("kind", ["gpt2-lm", "llama-lm"])
def test_language_models_train_on_their_own_tokens(kind, tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model(kind))
    start = read_state(trainer.model)
    result = trainer.train(
        make_examples(6, labels=False), start, StepSettings(**SETTINGS), stream=SecretStream(KEY)
    )
    assert all(not np.array_equal(result.state[name], start[name]) for name in start)
    every_one = StepSettings(**(SETTINGS | {"sample_rate": 1.0}))
    with pytest.raises(ConfigError, match="logits"):
        trainer.train(make_examples(6), start, every_one, stream=SecretStream(KEY))
