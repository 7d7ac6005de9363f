"""The private step against brute force and against Opacus' own optimizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizer
from torch import nn

from fedlora_priv.adapters import read_state, trainable_parameters
from fedlora_priv.errors import FedloraError
from fedlora_priv.training.dpsgd import SecretNoiseOptimizer, make_optimizer
from fedlora_priv.training.engine import ClippingEngine, GradientRows
from fedlora_priv.training.hooks import per_example_gradients, take_gradients
from fedlora_priv.training.losses import model_losses
from fedlora_priv.training.noise import gaussian_noise
from fedlora_priv.training.settings import StepSettings
from fedlora_priv.training.trainer import PrivateTrainer
from protocols.prg import SecretStream

from .brute_force import clipped_sum, difference, gradients_alone

KEY = bytes(range(32))
SETTINGS = {"steps": 1, "sample_rate": 1.0, "planned_batch_size": 10.0, "learning_rate": 0.5}


class GivenGradients(ClippingEngine):
    """An engine whose microbatches are given."""

    name = "given"

    def add(self, losses, clip_norm):
        rows = losses(None)
        return self._clip_and_add([GradientRows(g.clone()) for g in rows], len(rows[0]), clip_norm)


def _parameters(gradients):
    """Zero parameters of the shapes of the given per-example gradients, by name."""
    return {f"{i}.weight": nn.Parameter(torch.zeros(g.shape[1:])) for i, g in enumerate(gradients)}


def _clip(gradients, clip_norm=1.0):
    """Parameters with the clipped sums of the given per-example gradients, and what clipping did."""
    parameters = _parameters(gradients)
    counts = GivenGradients(parameters, "flat").add(lambda _: gradients, clip_norm)
    return list(parameters.values()), counts


def _optimizer(parameters, *, clip_norm=1.0, noise_multiplier=0.0, planned=4.0):
    return SecretNoiseOptimizer(
        torch.optim.SGD(parameters, lr=1.0), stream=SecretStream(KEY), noise_multiplier=noise_multiplier,
        clip_norm=clip_norm, planned_batch_size=planned,
    )  # fmt: skip


def _random_gradients(n=6, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(n, 3, 4, generator=generator), scale * torch.randn(n, 5, generator=generator)]


@pytest.mark.parametrize("scale", [0.05, 0.3, 100.0])
def test_clipped_sum_equals_opacus(scale):
    gradients = _random_gradients(scale=scale)
    ours, counts = _clip(gradients)
    parameters = [nn.Parameter(torch.zeros(g.shape[1:])) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad_sample = gradient.clone()
    oracle = DPOptimizer(
        torch.optim.SGD(parameters, lr=1.0), noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=4
    )
    oracle.clip_and_accumulate()
    for own, theirs in zip(ours, parameters, strict=True):
        torch.testing.assert_close(own.summed_grad.float(), theirs.summed_grad, rtol=1e-4, atol=1e-6)
    norms = torch.cat([g.flatten(1) for g in gradients], dim=1).norm(dim=1)
    assert (counts.examples, counts.clipped) == (6, int((norms > 1).sum()))
    assert counts.unclipped == 6 - counts.clipped


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e15])
def test_no_example_exceeds_the_clip_norm_over_all_parameters_together(scale):
    parameters, counts = _clip(_random_gradients(n=1, scale=scale), clip_norm=0.7)
    norm = sum(float(p.summed_grad.double().pow(2).sum()) for p in parameters) ** 0.5
    assert 0.699 < norm <= 0.7
    assert counts.largest_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_non_finite_examples_become_zero_and_the_others_stay(bad):
    gradients = _random_gradients()
    clean, _ = _clip([g[1:] for g in gradients])
    gradients[0][0, 1, 1] = gradients[0][0, 1, 2] = bad
    parameters, counts = _clip(gradients)
    assert counts.non_finite == 1
    for own, reference in zip(parameters, clean, strict=True):
        torch.testing.assert_close(own.summed_grad, reference.summed_grad)


def test_a_step_is_sum_plus_noise_over_the_planned_size():
    gradients = _random_gradients(scale=0.01)
    parameters = _parameters(gradients)
    optimizer = _optimizer(list(parameters.values()), noise_multiplier=2.0, clip_norm=1.5, planned=4.0)
    GivenGradients(parameters, "flat").add(lambda _: gradients, 1.5)
    optimizer.step()
    noise = gaussian_noise(SecretStream(KEY), 17, 3.0)
    wanted = (
        -(torch.cat([g.sum(dim=0).flatten() for g in gradients]).double() + torch.from_numpy(noise)) / 4.0
    )
    moved = torch.cat([p.detach().flatten() for p in optimizer.params])
    torch.testing.assert_close(moved.double(), wanted, rtol=1e-5, atol=1e-6)


def test_gradients_are_used_once():
    gradients = _random_gradients()
    parameters = _parameters(gradients)
    optimizer = _optimizer(list(parameters.values()))
    GivenGradients(parameters, "flat").add(lambda _: gradients, 1.0)
    optimizer.step()
    first = [p.detach().clone() for p in optimizer.params]
    optimizer.step()  # noise multiplier 0 and an empty batch: nothing may move
    assert all(torch.equal(a, b) for a, b in zip(first, optimizer.params, strict=True))


def test_per_example_gradients_are_rows_and_taken_once(tiny_model, make_examples):
    model, examples = tiny_model(), make_examples(3)
    parameters = trainable_parameters(model)
    with per_example_gradients(model, parameters) as hooked:
        model_losses(hooked, examples.collate(torch.device("cpu"))).sum().backward()
        taken = take_gradients(parameters)
        with pytest.raises(FedloraError, match="no per-example gradient"):
            take_gradients(parameters)
    for i, alone in enumerate(gradients_alone(model, examples)):
        rows = {name: gradient.rows[i] for name, gradient in zip(parameters, taken, strict=True)}
        assert difference(rows, alone) < 1e-6


@pytest.mark.parametrize("max_tokens", [1, 30, 10_000])
def test_a_whole_step_equals_brute_force_however_it_is_cut(max_tokens, tiny_model, make_examples):
    model, examples = tiny_model(), make_examples(8)
    trainer = PrivateTrainer(model)
    start = _away_from_zero(read_state(model))
    result = trainer.train(
        examples, start,
        StepSettings(**SETTINGS, noise_multiplier=0.0, clip_norm=0.05, max_tokens_per_microbatch=max_tokens),
        stream=SecretStream(KEY),
    )  # fmt: skip
    parameters = trainable_parameters(model)
    _write(parameters, start)
    total = clipped_sum(gradients_alone(model, examples), 0.05)
    for name, value in result.state.items():
        wanted = start[name] - 0.5 * total[name].numpy() / 10.0
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-7)
    assert result.private_audit[0].clipped == 8  # the bound was really in force


def test_adam_steps_on_the_noised_gradient_and_starts_afresh(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)

    def one_step():
        return trainer.train(
            make_examples(4), start,
            StepSettings(**SETTINGS, noise_multiplier=1.0, clip_norm=1.0, optimizer="adam"),
            stream=SecretStream(KEY),
        ).state  # fmt: skip

    first, second = one_step(), one_step()
    for name in start:  # Adam's first step has the size of the learning rate, whatever the gradient
        np.testing.assert_allclose(np.abs(first[name] - start[name]), 0.5, rtol=1e-3)
        np.testing.assert_array_equal(first[name], second[name])


def test_unknown_optimizer_and_rate_are_refused():
    with pytest.raises(FedloraError, match='use "sgd" or "adam"'):
        make_optimizer("lion", [nn.Parameter(torch.zeros(1))], 0.1)
    with pytest.raises(FedloraError, match="learning rate"):
        make_optimizer("sgd", [nn.Parameter(torch.zeros(1))], 0.0)


def _away_from_zero(state):
    generator = np.random.default_rng(5)
    return {k: generator.normal(0, 0.1, v.shape).astype(np.float32) for k, v in state.items()}


def _write(parameters, state):
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(state[name]))
