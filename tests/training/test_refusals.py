"""What is around a model when it is trained: blocks of torch's, wrappers, hooks, modes. Refused, or without effect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedlora_priv.adapters import read_state, trainable_parameters
from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.training import PrivateTrainer, StepSettings, preflight, rehearse
from protocols.prg import SecretStream

KEY = bytes(range(32))
SETTINGS = StepSettings(
    steps=2, sample_rate=1.0, planned_batch_size=6.0, noise_multiplier=1.0, clip_norm=0.05, learning_rate=0.1
)


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        (autocast, "autocast is on"),
        (torch.no_grad, "gradients are switched off"),
        (torch.inference_mode, "gradients are switched off"),
    ],
)
def test_blocks_that_round_or_lose_gradients_are_refused(block, complaint, tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)
    for train in (
        lambda: trainer.train(make_examples(4), start, SETTINGS, stream=SecretStream()),
        lambda: rehearse(trainer, SETTINGS),
        lambda: preflight(trainer.model),
    ):
        with block(), pytest.raises(ConfigError, match=complaint):
            train()
    assert all(np.array_equal(value, start[name]) for name, value in read_state(trainer.model).items())


@pytest.mark.parametrize(
    ("wrap", "complaint"),
    [
        (nn.DataParallel, r"DataParallel is wrapped around the model.*model\.module"),
        (
            lambda model: torch.compile(model, backend="eager"),
            r"OptimizedModule is wrapped.*model\._orig_mod",
        ),
        (lambda model: model.get_base_model(), "MeanPoolingClassifier is no PEFT model"),
        (lambda model: None, "NoneType is no PEFT model"),
    ],
)
def test_something_around_the_model_is_refused(wrap, complaint, tiny_model):
    for use in (PrivateTrainer, preflight):
        with pytest.raises(ConfigError, match=complaint):
            use(wrap(tiny_model()))


def tenfold(gradient):
    return None if gradient is None else 10 * gradient


def on_a_tensor(model):
    for parameter in trainable_parameters(model).values():
        parameter.register_hook(tenfold)


def after_accumulation(model):
    for parameter in trainable_parameters(model).values():
        parameter.register_post_accumulate_grad_hook(print)


def lora_b(model):
    return next(module for name, module in model.named_modules() if name.endswith("lora_B.default"))


def mixing_rows(module, gradients):
    return tuple(gradient.mean(dim=0, keepdim=True).expand_as(gradient) for gradient in gradients)


def before_a_module(model):
    lora_b(model).register_full_backward_pre_hook(mixing_rows)


def after_the_model(model):
    model.register_full_backward_hook(lambda module, inputs, outputs: None)


@pytest.mark.parametrize("mode", ["direct", "hooks", "ghost"])
@pytest.mark.parametrize("hook", [on_a_tensor, after_accumulation, before_a_module, after_the_model])
def test_hooks_on_gradients_are_refused(hook, mode, tiny_model, make_examples, capsys):
    """In ghost mode a tensor's hook would multiply the sum after it was clipped; all of them see raw gradients."""
    trainer = PrivateTrainer(tiny_model())
    hook(trainer.model)
    with pytest.raises(ConfigError, match=r"hook on .* would see (its )?gradients? before"):
        trainer.train(
            make_examples(4),
            read_state(trainer.model),
            replace(SETTINGS, mode=mode),
            stream=SecretStream(),
        )
    assert capsys.readouterr().out == ""


def test_a_hook_that_mixes_examples_on_their_way_forward_fails_the_rehearsal(tiny_model):
    model = tiny_model()
    lora_b(model).register_forward_pre_hook(lambda module, inputs: (inputs[0] - inputs[0].mean(dim=0),))
    with pytest.raises(ConfigError, match="differ from brute force"):
        rehearse(PrivateTrainer(model), SETTINGS)


@pytest.mark.parametrize("mode", ["direct", "hooks", "ghost"])
def test_dropout_stays_off_whatever_mode_the_model_was_left_in(mode, tiny_model, make_examples):
    """Dropout draws for the whole batch: one more example would change what the others lose."""
    states = []
    for training in (False, True):
        trainer = PrivateTrainer(tiny_model())
        start = read_state(trainer.model)
        trainer.model.train(training)
        settings = replace(SETTINGS, mode=mode)
        states.append(trainer.train(make_examples(8), start, settings, stream=SecretStream(KEY)).state)
        assert not any(module.training for module in trainer.model.modules())
    assert all(np.array_equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("mode", ["direct", "hooks", "ghost"])
def test_a_model_put_into_training_mode_between_steps_is_refused(mode, tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start, settings = read_state(trainer.model), replace(SETTINGS, mode=mode)
    trainer.train(make_examples(4), start, settings, stream=SecretStream(), on_step=lambda _: None)
    with pytest.raises(ConfigError, match="put into training mode"):
        trainer.train(
            make_examples(4), start, settings, stream=SecretStream(), on_step=lambda _: trainer.model.train()
        )


def test_factors_tied_after_the_trainer_was_built_are_refused(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)
    first, second = (m for name, m in trainer.model.named_modules() if name.endswith("value.lora_B.default"))
    second.weight = first.weight
    with pytest.raises(FedloraError, match=r"state and model differ in .*lora_B"):
        trainer.train(make_examples(4), start, SETTINGS, stream=SecretStream())


@pytest.mark.parametrize("mode", ["direct", "hooks", "ghost"])
def test_layers_compiled_in_place_take_the_same_steps(mode, tiny_model, make_examples):
    states = []
    for compiled in (False, True):
        trainer = PrivateTrainer(tiny_model())
        start = read_state(trainer.model)
        if compiled:
            lora_b(trainer.model).compile(backend="eager")
        settings = replace(SETTINGS, mode=mode)
        states.append(trainer.train(make_examples(8), start, settings, stream=SecretStream(KEY)).state)
    for name, value in states[0].items():
        np.testing.assert_allclose(value, states[1][name], atol=1e-6)
