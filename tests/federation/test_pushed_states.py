"""Starts from which the penalty of pruned ranks would take weights where no round may begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora_priv.allocation import RankPruning
from fedlora_priv.config import Experiment
from fedlora_priv.errors import StateBeyondBounds
from fedlora_priv.federation import setup
from fedlora_priv.federation.seats import StateChecks
from fedlora_priv.federation.setup import Parts, assemble
from fedlora_priv.federation.state_check import LARGEST_ENTRY
from fedlora_priv.methods.layout import State

from .paper import LAYOUT, initial_state
from .test_pruned_runs import PRUNING


def the_parts(experiment_file: Callable[..., Path], **training: Any) -> Parts:
    whole = {**PRUNING, "training": {**PRUNING["training"], **training}}
    return assemble(Experiment.load(experiment_file(**whole)), lambda line: None)


def pulling(parts: Parts) -> State:
    """A start that changes nothing: of one module's tail A is large, and of B one entry is all but zero."""
    state, module = dict(parts.initial), parts.layout.modules[0]
    a, b = state[module.a_name].copy(), np.zeros_like(state[module.b_name])
    a[-2:], b[0, -1] = LARGEST_ENTRY, 1e-6
    return {**state, module.a_name: a, module.b_name: b}


def test_a_start_from_which_the_penalty_leaps_is_refused(experiment_file: Callable[..., Path]) -> None:
    parts = the_parts(experiment_file)
    accept = StateChecks(parts).of("client-1")
    accept(parts.initial, None)
    start, module = pulling(parts), parts.layout.modules[0]
    rule, rate = RankPruning(keep=0.5, penalty=1.0), 0.3
    leap = rate * rule.gradient(parts.layout, start)[module.b_name]
    assert np.abs(leap).max() > LARGEST_ENTRY, "or this shows nothing"
    assert max(float(np.abs(array).max()) for array in start.values()) <= LARGEST_ENTRY
    with pytest.raises(StateBeyondBounds, match="the penalty could move weights"):
        accept(start, None)


def test_what_is_rehearsed_has_the_penalty_of_its_own_rank(
    experiment_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, ranks = the_parts(experiment_file), set()

    def seen(trainer: Any, settings: Any, *, penalty: Any, **_: Any) -> None:
        state = {name: np.ones(shape, np.float32) for name, shape in trainer.layout.shapes().items()}
        gradient = penalty(state)
        module = trainer.layout.modules[0]
        assert gradient[module.a_name].shape == state[module.a_name].shape
        ranks.add(module.rank)

    monkeypatch.setattr(setup, "rehearse", seen)
    parts.rehearse()
    assert ranks == {4, 2, 1}


def test_adam_moves_an_entry_by_its_rate_whatever_pulls(experiment_file: Callable[..., Path]) -> None:
    parts = the_parts(experiment_file, optimizer="adam", learning_rate=1e-3)
    StateChecks(parts).of("client-1")(pulling(parts), None)


@pytest.mark.parametrize(("rate", "steps"), [(0.3, 1), (0.9, 6), (1.7, 5)])
def test_no_step_of_the_penalty_reaches_further(rate: float, steps: int) -> None:
    rule, state, rng = RankPruning(keep=0.5, penalty=1.0), initial_state(), np.random.default_rng(2)
    state |= {m.b_name: rng.normal(size=(m.out_features, m.rank)) * 1e-3 for m in LAYOUT.modules}
    reach, moved = rule.reach(LAYOUT, state, rate, steps), 0.0
    for _ in range(steps):
        gradient = rule.gradient(LAYOUT, state)
        moved = max(moved, *(rate * float(np.linalg.norm(array)) for array in gradient.values()))
        state = {
            name: array - rate * gradient[name] if name in gradient else array
            for name, array in state.items()
        }
    assert moved <= reach * (1 + 1e-9)
    assert moved > 0.2 * reach
