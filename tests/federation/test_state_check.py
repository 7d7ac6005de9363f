"""How much examples depend on each other at a state: rounding at honest ones, anything at hostile ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedlora_priv.adapters import read_state
from fedlora_priv.errors import StateBeyondBounds
from fedlora_priv.federation.state_check import StateCheck
from fedlora_priv.modeling import LoraSettings, load_model
from fedlora_priv.training import coupling, coupling_tolerance


@pytest.fixture
def model(tiny_model: Path) -> object:
    return load_model(
        tiny_model, pooling="mean", num_labels=2, lora=LoraSettings(("query", "value"), rank=2), seed=0
    )


def scaled(model: object, scale: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a random state whose LoRA factors have that scale; a small head keeps the loss from saturating."""
    rng = np.random.default_rng(seed)
    return {
        name: ((scale if "lora" in name else 0.1) * rng.normal(size=array.shape)).astype(np.float32)
        for name, array in read_state(model).items()
    }


def test_honest_states_couple_by_rounding_only_and_stay_as_they_were(model: object) -> None:
    before = read_state(model)
    for state in (before, scaled(model, 0.1), scaled(model, 1.0)):
        assert coupling(model, state) < 0.1 * coupling_tolerance(model)
        StateCheck(model)(state)
    after = read_state(model)
    assert all((after[name] == before[name]).all() for name in before)


def test_examples_that_see_their_companions_padding_are_refused(
    model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding, which padded widths that are multiples of 8 all but remove, is not the only way to be coupled."""
    monkeypatch.setattr("fedlora_priv.pooling.masked_mean", lambda hidden, mask: hidden.mean(dim=1))
    state = scaled(model, 1.0)
    assert coupling(model, state) > 100 * coupling_tolerance(model)
    with pytest.raises(StateBeyondBounds, match="depend on each other"):
        StateCheck(model)(state)


def test_a_hostile_state_is_refused(model: object) -> None:
    with pytest.raises(StateBeyondBounds, match="entries up to"):
        StateCheck(model)(scaled(model, 1e4))
