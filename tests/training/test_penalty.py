"""A penalty on the weights: added to the noised gradient as it is, by any engine; without one nothing changes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_priv.adapters import read_state
from fedlora_priv.allocation import RankPruning
from fedlora_priv.errors import FedloraError, StateBeyondBounds
from fedlora_priv.methods.layout import Layout, State
from fedlora_priv.training import PrivateTrainer, StepSettings, rehearse
from protocols.prg import SecretStream

KEY = bytes(range(32))
PLANNED = 50.0
"""Far from 1, so that a penalty that is divided by it shows."""
RATE = 0.1
PRUNING = RankPruning(keep=0.5, penalty=2.0)


def settings(**changed: Any) -> StepSettings:
    plain = {
        "steps": 1, "sample_rate": 0.5, "planned_batch_size": PLANNED, "noise_multiplier": 1.0, "clip_norm": 1.0,
        "learning_rate": RATE,
    }  # fmt: skip
    return StepSettings(**plain | changed)


def a_trainer(
    tiny_model: Any, kind: str = "bert-mean"
) -> tuple[PrivateTrainer, dict[str, NDArray[np.float32]]]:
    """Return a trainer of rank 4, and a state of it that is away from zero."""
    trainer, rng = PrivateTrainer(tiny_model(kind, rank=4)), np.random.default_rng(1)
    start = {
        name: (0.3 * rng.normal(size=array.shape)).astype(np.float32)
        for name, array in read_state(trainer.model).items()
    }
    return trainer, start


def autograd(layout: Layout, state: State, keep: int, weight: float) -> dict[str, NDArray[np.float64]]:
    """Return the gradient of weight·Σ‖B_tail‖·‖A_tail‖, as torch differentiates it; zero where there is none."""
    leaves = {n: torch.tensor(a, dtype=torch.float64, requires_grad=True) for n, a in state.items()}
    tail: Tensor = torch.zeros((), dtype=torch.float64)
    for module in layout.modules:
        tail = tail + leaves[module.b_name][:, keep:].norm() * leaves[module.a_name][keep:].norm()
    (weight * tail).backward()
    return {n: np.zeros(a.shape) if a.grad is None else a.grad.numpy() for n, a in leaves.items()}


def trained(trainer: PrivateTrainer, examples: Any, start: State, penalised: bool, **changed: Any) -> Any:
    penalty = partial(PRUNING.gradient, trainer.layout) if penalised else None
    return trainer.train(examples, start, settings(**changed), stream=SecretStream(KEY), penalty=penalty)


@pytest.mark.parametrize(
    ("mode", "checkpointing"), [("direct", False), ("hooks", False), ("ghost", False), ("direct", True)]
)
def test_a_step_moves_by_the_penaltys_gradient_besides(mode, checkpointing, tiny_model, make_examples):
    trainer, start = a_trainer(tiny_model)
    options = {"mode": mode, "gradient_checkpointing": checkpointing}
    plain = trained(trainer, make_examples(12), start, False, **options)
    penalised = trained(trainer, make_examples(12), start, True, **options)
    expected = autograd(trainer.layout, start, keep=2, weight=2.0)
    assert any(gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        moved = plain.state[name].astype(np.float64) - penalised.state[name]
        # Both states are rounded to float32; the largest entries are about 1.
        np.testing.assert_allclose(moved, RATE * gradient, rtol=0, atol=5e-7)


def test_all_steps_are_those_of_a_plain_loop(tiny_model, make_examples):
    # On no examples and without noise, training is gradient descent on the penalty: λ·tail falls by what autograd says.
    trainer, start = a_trainer(tiny_model)
    result = trained(trainer, make_examples(12).subset([]), start, True, steps=5, noise_multiplier=0.0)
    state = {name: array.astype(np.float64) for name, array in start.items()}
    for _ in range(5):
        gradient = autograd(trainer.layout, state, keep=2, weight=2.0)
        state = {name: array - RATE * gradient[name] for name, array in state.items()}
    for name, array in state.items():
        np.testing.assert_allclose(result.state[name], array, rtol=0, atol=2e-6)
    assert PRUNING.tail(trainer.layout, result.state) < 0.5 * PRUNING.tail(trainer.layout, start)


def test_adam_takes_its_moments_of_both(tiny_model, make_examples):
    trainer, start = a_trainer(tiny_model)
    examples = make_examples(12).subset([])
    result = trained(trainer, examples, start, True, steps=3, noise_multiplier=0.0, optimizer="adam")
    leaves = {n: torch.tensor(a, requires_grad=True) for n, a in start.items()}
    adam = torch.optim.Adam(leaves.values(), lr=RATE)
    for _ in range(3):
        now = {name: leaf.detach().numpy() for name, leaf in leaves.items()}
        for name, gradient in autograd(trainer.layout, now, keep=2, weight=2.0).items():
            leaves[name].grad = torch.tensor(gradient, dtype=torch.float32)
        adam.step()
    for name, leaf in leaves.items():
        np.testing.assert_allclose(result.state[name], leaf.detach().numpy(), rtol=0, atol=1e-5)


def test_noise_batches_and_what_is_noted_of_them_are_as_without(tiny_model, make_examples):
    # At a penalty that is far larger than clip norm and noise: it is neither clipped nor taken for noise.
    trainer, start = a_trainer(tiny_model)
    huge = partial(RankPruning(keep=0.5, penalty=1e4).gradient, trainer.layout)
    plain = trained(trainer, make_examples(12), start, False)
    penalised = trainer.train(make_examples(12), start, settings(), stream=SecretStream(KEY), penalty=huge)
    (before,), (after,) = plain.private_audit, penalised.private_audit
    assert after == before
    assert penalised.dimension == plain.dimension
    name = trainer.layout.modules[0].a_name
    assert np.abs(penalised.state[name] - start[name]).max() > 10.0


def test_a_penalty_of_zero_changes_no_bit(tiny_model, make_examples):
    trainer, start = a_trainer(tiny_model)
    none = partial(RankPruning(keep=0.5, penalty=0.0).gradient, trainer.layout)
    plain = trained(trainer, make_examples(12), start, False, steps=3, optimizer="adam")
    zero = trainer.train(
        make_examples(12), start, settings(steps=3, optimizer="adam"), stream=SecretStream(KEY), penalty=none
    )
    assert all(np.array_equal(plain.state[name], zero.state[name]) for name in start)


def test_what_is_not_trained_has_no_penalty(tiny_model, make_examples):
    trainer, start = a_trainer(tiny_model)
    rng = np.random.default_rng(2)
    support = {name: rng.random(array.shape) < 0.5 for name, array in start.items()}
    results = [
        trainer.train(
            make_examples(12), start, settings(), stream=SecretStream(KEY), support=support, penalty=penalty
        )
        for penalty in (None, partial(PRUNING.gradient, trainer.layout))
    ]
    expected = autograd(trainer.layout, start, keep=2, weight=2.0)
    for name, gradient in expected.items():
        moved = results[0].state[name].astype(np.float64) - results[1].state[name]
        np.testing.assert_allclose(moved, RATE * np.where(support[name], gradient, 0.0), rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda state: {"nothing": np.zeros(3)}, FedloraError, "not trained so"),
        (lambda state: {name: array[:1] for name, array in state.items()}, FedloraError, "not trained so"),
        (
            lambda state: {name: array * np.nan for name, array in state.items()},
            StateBeyondBounds,
            "not finite",
        ),
    ],
)
def test_gradients_that_do_not_fit_are_refused(wrong, error, message, tiny_model, make_examples):
    trainer, start = a_trainer(tiny_model)
    with pytest.raises(error, match=message):
        trainer.train(make_examples(12), start, settings(), stream=SecretStream(KEY), penalty=wrong)


def test_a_penalty_cannot_write_to_the_weights(tiny_model, make_examples):
    trainer, start = a_trainer(tiny_model)

    def writes(state: State) -> Mapping[str, Any]:
        for array in state.values():
            array *= 0.0
        return {}

    with pytest.raises(ValueError, match="read-only"):
        trainer.train(make_examples(12), start, settings(), stream=SecretStream(KEY), penalty=writes)


def test_a_rehearsal_takes_a_step_with_the_penalty(tiny_model):
    trainer, _ = a_trainer(tiny_model)
    rehearse(trainer, settings(), penalty=partial(PRUNING.gradient, trainer.layout))
    with pytest.raises(FedloraError, match="not trained so"):
        rehearse(trainer, settings(), penalty=lambda state: {"nothing": np.zeros(3)})
