"""The known ways in which DP-SGD on LoRA silently breaks, each with the handling switched off or provoked."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from fedlora_priv.adapters import read_state, trainable_parameters
from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.training import PrivateTrainer, StepSettings, exactness, preflight
from fedlora_priv.training import losses as losses_module
from fedlora_priv.training.checks import StepCheck
from fedlora_priv.training.losses import next_token_losses
from fedlora_priv.training.noise import gaussian_noise
from protocols.prg import SecretStream

KEY = bytes(range(32))
STEP = {
    "steps": 1,
    "sample_rate": 1.0,
    "planned_batch_size": 8.0,
    "noise_multiplier": 1.0,
    "clip_norm": 1.0,
    "learning_rate": 0.1,
}
KINDS = ("bert-mean", "bert", "gpt2", "llama", "gpt2-lm", "llama-lm")


@pytest.mark.parametrize("kind", KINDS)
def test_per_example_gradients_are_exact_and_independent(kind, tiny_model):
    model = tiny_model(kind)
    before = read_state(model)
    report = preflight(model)
    assert report.brute_force_error < 1e-4
    assert report.companion_error < 1e-4
    assert report.arrays == len(before)
    assert all(np.array_equal(value, before[name]) for name, value in read_state(model).items())


# Trap 1: a loss averaged over the batch's tokens couples examples.
def _token_mean(logits, batch):
    per_example = next_token_losses(logits, batch.inputs["input_ids"], batch.targets)
    counts = batch.targets.sum(dim=1)
    return per_example * counts / counts.sum()


def _batch_mean(logits, batch):
    return losses_module.cross_entropy(logits, batch.labels, reduction="none") / len(logits)


@pytest.mark.parametrize(("kind", "coupled"), [("llama-lm", _token_mean), ("bert-mean", _batch_mean)])
def test_trap_1_a_loss_that_couples_examples_is_caught(kind, coupled, tiny_model):
    with pytest.raises(ConfigError, match="differ from brute force"):
        preflight(tiny_model(kind), losses=lambda model, batch: coupled(model(**batch.inputs).logits, batch))


def test_trap_1_a_pooling_that_counts_padding_is_caught(tiny_model, monkeypatch):
    monkeypatch.setattr("fedlora_priv.pooling.masked_mean", lambda hidden, mask: hidden.mean(dim=1))
    with pytest.raises(ConfigError, match="per-example gradients"):
        preflight(tiny_model("bert-mean"))


def test_trap_1_the_next_token_loss_is_a_mean_within_each_sequence():
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0]]).bool()
    logs = logits.log_softmax(dim=-1)
    wanted = [-(logs[0, 0, 2] + logs[0, 1, 3] + logs[0, 2, 4]) / 3, -logs[1, 0, 2]]
    torch.testing.assert_close(next_token_losses(logits, ids, mask), torch.stack(wanted))
    assert next_token_losses(logits[:, :1], ids[:, :1], mask[:, :1]).tolist() == [0, 0]


# Trap 2: an empty Poisson batch crashes models; skipping it breaks the analysis.
@pytest.mark.parametrize("kind", KINDS)
def test_trap_2_an_empty_batch_is_a_step_of_noise(kind, tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model(kind))
    start = read_state(trainer.model)
    examples = make_examples(4, labels=not kind.endswith("-lm"))
    settings = StepSettings(**(STEP | {"sample_rate": 1e-12}))
    result = trainer.train(examples, start, settings, stream=SecretStream(KEY))
    assert result.steps_taken == 1
    assert result.private_audit[0].batch_size == 0
    stream = SecretStream(KEY)
    stream.uniform(4)  # the draw came first
    noise = gaussian_noise(stream, sum(v.size for v in start.values()), 1.0)
    moved = np.concatenate([(start[name] - result.state[name]).ravel() for name in start])
    np.testing.assert_allclose(moved, 0.1 * noise / 8.0, rtol=1e-3, atol=1e-6)


# Trap 3: LoRA that silently stays as it was, or something else that changes.
def test_trap_3_an_optimizer_that_does_not_reach_the_model_is_caught(tiny_model, make_examples, monkeypatch):
    trainer = PrivateTrainer(tiny_model())
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, closure=None: None)
    with pytest.raises(FedloraError, match="unchanged, so it is not being trained"):
        trainer.train(
            make_examples(4), read_state(trainer.model), StepSettings(**STEP), stream=SecretStream(KEY)
        )


def test_trap_3_parameters_replaced_after_the_optimizer_was_built_are_caught(tiny_model):
    model = tiny_model()
    trained = trainable_parameters(model)
    check = StepCheck(model, trained)
    owner = next(m for name, m in model.named_modules() if name.endswith("lora_B.default"))
    owner.weight = nn.Parameter(owner.weight.detach().clone())  # what a careless move to a device does
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 1.0  # the step: it reaches the parameters of before
    with pytest.raises(FedloraError, match="unchanged"):
        check.require_changes(noised=True)


def test_trap_3_a_parameter_without_per_example_gradients_is_an_error(tiny_model, make_examples):
    model = tiny_model()
    trainer = PrivateTrainer(model)
    unused = next(m for name, m in model.named_modules() if name.endswith("lora_B.default"))
    unused.forward = lambda x: torch.zeros(*x.shape[:-1], 16)  # in the model, but not in its graph
    with pytest.raises(FedloraError, match="no per-example gradient"):
        trainer.train(make_examples(4), read_state(model), StepSettings(**STEP), stream=SecretStream(KEY))


def test_trap_3_a_change_to_the_frozen_base_is_caught(tiny_model, make_examples):
    model = tiny_model()
    frozen = model.get_base_model().encoder.embeddings.word_embeddings
    trainer = PrivateTrainer(model)

    def drift(module, inputs, output):
        with torch.no_grad():
            module.weight[3, 3] += 1e-3

    frozen.register_forward_hook(drift)
    with pytest.raises(FedloraError, match=r"changed .*word_embeddings.*, which is frozen"):
        trainer.train(make_examples(4), read_state(model), StepSettings(**STEP), stream=SecretStream(KEY))


def test_trap_3_the_check_runs_once_for_each_set_of_roles(tiny_model, make_examples, monkeypatch):
    calls = []
    monkeypatch.setattr(StepCheck, "require_changes", lambda self, noised: calls.append(noised))
    trainer = PrivateTrainer(tiny_model())
    for roles in ({"B"}, {"B"}, {"A", "B"}):
        trainer.train(
            make_examples(4), read_state(trainer.model), StepSettings(**(STEP | {"steps": 2})),
            stream=SecretStream(KEY), trainable=frozenset(roles),
        )  # fmt: skip
    assert calls == [True, True]


def test_trap_3_the_check_runs_once_for_each_part(tiny_model, make_examples, monkeypatch):
    """Layers that a client is first given in a later round are looked at then."""
    calls = []
    monkeypatch.setattr(StepCheck, "require_changes", lambda self, noised: calls.append(self._trained))
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)
    parts = [
        {n: np.full(a.shape, keep in n) for n, a in start.items()} for keep in ("query", "query", "value")
    ]
    for part in parts:
        trainer.train(
            make_examples(4), start, StepSettings(**STEP), stream=SecretStream(KEY), support=part,
        )  # fmt: skip
    assert [{n for n, mask in part.items() if mask.all()} for part in (parts[0], parts[2])] == calls
    assert all(calls)


# Trap 4: noise and batches from a generator that somebody else can seed.
def test_trap_4_global_seeds_decide_nothing(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start, examples = read_state(trainer.model), make_examples(24)

    def run(stream):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        settings = StepSettings(**(STEP | {"sample_rate": 0.5, "steps": 3}))
        return trainer.train(examples, start, settings, stream=stream)

    first, second = run(SecretStream()), run(SecretStream())
    assert all(not np.array_equal(first.state[name], second.state[name]) for name in start)
    again = [run(SecretStream(KEY)) for _ in range(2)]
    assert all(np.array_equal(again[0].state[name], again[1].state[name]) for name in start)


def test_trap_4_training_leaves_global_generators_alone(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    trainer.train(make_examples(6), read_state(trainer.model), StepSettings(**STEP), stream=SecretStream())
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


# Trap 5: the normaliser is the planned batch size, not the drawn one.
def test_trap_5_the_drawn_size_does_not_scale_the_step(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start, examples = read_state(trainer.model), make_examples(12)

    def moved(count, planned):
        changes = {"noise_multiplier": 0.0, "planned_batch_size": planned, "clip_norm": 1e6}
        settings = StepSettings(**(STEP | changes))
        result = trainer.train(examples.subset(range(count)), start, settings, stream=SecretStream(KEY))
        return {name: result.state[name].astype(np.float64) - start[name] for name in start}

    twelve, half_planned, six = moved(12, 8.0), moved(12, 4.0), moved(6, 8.0)
    rest = trainer.train(
        examples.subset(range(6, 12)), start,
        StepSettings(**(STEP | {"noise_multiplier": 0.0, "clip_norm": 1e6})),
        stream=SecretStream(KEY),
    ).state  # fmt: skip
    for name in start:
        np.testing.assert_allclose(half_planned[name], 2 * twelve[name], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(six[name] + (rest[name] - start[name]), twelve[name], rtol=1e-3, atol=1e-6)


# Trap 6: gradient checkpointing can lose per-example gradients.
@pytest.mark.parametrize("reentrant", [True, False])
def test_trap_6_gradient_checkpointing_is_refused(reentrant, tiny_model):
    model = tiny_model("llama")
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
    with pytest.raises(ConfigError, match="gradient checkpointing is on"):
        preflight(model)


# Trap 7: bf16 adapters would take bf16 noise.
def test_trap_7_adapters_must_be_float32(tiny_model, make_examples):
    with pytest.raises(ConfigError, match="bfloat16"):
        PrivateTrainer(tiny_model().to(torch.bfloat16))
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)
    trainer.model.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="moved or cast"):
        trainer.train(make_examples(4), start, StepSettings(**STEP), stream=SecretStream(KEY))


# Trap 8 (saving through Opacus' wrapper): see test_adapters.py; here, that no wrapper stays behind.
def test_trap_8_the_model_is_a_plain_peft_model_after_training(tiny_model, make_examples):
    model = tiny_model()
    names = set(model.state_dict())
    trainer = PrivateTrainer(model)
    trainer.train(make_examples(4), read_state(model), StepSettings(**STEP), stream=SecretStream(KEY))
    assert trainer.model is model
    assert set(model.state_dict()) == names
    assert not any(hasattr(p, "grad_sample") or p.grad is not None for p in model.parameters())
    assert not any(m.training or m._forward_hooks or m._backward_hooks for m in model.modules())
    assert not hasattr(model, "autograd_grad_sample_hooks")


# Trap 9: dropout inside the frozen model.
def test_trap_9_dropout_is_off_while_training(tiny_model, make_examples):
    model = tiny_model("bert-mean")
    assert model.get_base_model().config.hidden_dropout_prob > 0
    trainer = PrivateTrainer(model)
    start, examples = read_state(model), make_examples(6)
    settings = StepSettings(**(STEP | {"noise_multiplier": 0.0}))
    runs = [trainer.train(examples, start, settings, stream=SecretStream(KEY)).state for _ in range(2)]
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in start)


def test_preflight_refuses_gradients_that_are_not_numbers(tiny_model, monkeypatch):
    monkeypatch.setattr(exactness, "difference", lambda *_: math.nan)
    with pytest.raises(ConfigError, match="per-example gradients"):
        preflight(tiny_model())
