"""Server optimisers against torch's, which take −Δ for a gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.optimizers import Adam, Average, Momentum, ServerOptimizer
from fedlora_priv.methods.rolora import RoLoRA
from tests.methods.lab import TWO_SHAPES, random_state

CASES: list[tuple[ServerOptimizer, Any, dict[str, float]]] = [
    (Average(0.5), torch.optim.SGD, {"lr": 0.5}),
    (Momentum(0.5, 0.8), torch.optim.SGD, {"lr": 0.5, "momentum": 0.8}),
    (Adam(0.01, weight_decay=0.1), torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES)
def test_five_steps_are_torchs(ours: ServerOptimizer, theirs: Any, options: dict[str, float]) -> None:
    rng = np.random.default_rng(0)
    state = random_state(TWO_SHAPES, rng)
    moments: dict = {}
    parameters = {k: torch.nn.Parameter(torch.from_numpy(v.astype(np.float64))) for k, v in state.items()}
    reference = theirs(parameters.values(), **options)
    for _ in range(5):
        changes = random_state(TWO_SHAPES, rng, 0.1)
        combined = {k: state[k] + changes[k] for k in state}
        state, moments = ours.step(FedIT(), TWO_SHAPES, state, combined, moments)
        for k, parameter in parameters.items():
            parameter.grad = torch.from_numpy(-changes[k].astype(np.float64))
        reference.step()
    for k, parameter in parameters.items():
        assert_allclose(state[k], parameter.detach().numpy(), rtol=1e-4, atol=2e-6)


def test_average_is_what_combine_says() -> None:
    rng = np.random.default_rng(0)
    state, combined = random_state(TWO_SHAPES, rng), random_state(TWO_SHAPES, rng)
    after, moments = Average().step(FedIT(), TWO_SHAPES, state, combined, {})
    for k in state:
        assert_allclose(after[k], combined[k], rtol=1e-6, atol=1e-6)
    assert not moments


def test_an_array_that_did_not_travel_keeps_value_and_moments() -> None:
    """RoLoRA sends one factor a round; frozen ones are never stepped, decay included."""
    rng = np.random.default_rng(0)
    state, adam, moments = random_state(TWO_SHAPES, rng), Adam(0.1, weight_decay=0.5), {}
    for number in (1, 2, 3):
        method = RoLoRA().at(number)
        travels = method.contract(TWO_SHAPES).uploads
        moved = {k: v + (k in travels) * np.float32(0.1) for k, v in state.items()}
        before, earlier = state, dict(moments)
        state, moments = adam.step(method, TWO_SHAPES, state, moved, moments)
        for k in state:
            if k in travels:
                assert not np.allclose(state[k], before[k])
            else:
                assert_array_equal(state[k], before[k])
                assert all(moments[name] is earlier[name] for name in earlier if name.startswith(f"{k}/"))
    assert moments["layer.0.query.lora_B/steps"] == 2
    assert moments["layer.0.query.lora_A/steps"] == 1
    frozen = adam.step(FFALoRA(), TWO_SHAPES, state, state, {})[0]
    assert_array_equal(frozen["layer.0.query.lora_A"], state["layer.0.query.lora_A"])
