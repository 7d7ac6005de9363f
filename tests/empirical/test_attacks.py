"""Canaries and attacks by themselves: public rows, fair hidden coins, counts recovered, nothing else looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accounting.planning import Plan
from fedlora_priv.adapters import read_state
from fedlora_priv.empirical.attacks import ATTACKERS, UpdateAttack, loss_drop, losses
from fedlora_priv.empirical.canaries import Canaries, random_rows
from fedlora_priv.errors import ConfigError
from fedlora_priv.modeling import LoraSettings, load_model
from fedlora_priv.training import PrivateTrainer, StepSettings, TokenisedExamples
from protocols.prg import SecretStream

PLAN = {
    "client_id": "client-1", "target_epsilon": 1.0, "delta": 1e-5, "declared_examples": 40,
    "planned_batch_size": 20.0, "sample_rate": 0.5, "rounds": 1, "retry_rounds": 0, "steps_per_round": 1,
    "noise_multiplier": 1.0, "clip_norm": 0.05,
}  # fmt: skip


@pytest.fixture
def trainer(diverse_model: Path) -> PrivateTrainer:
    lora = LoraSettings(("query", "value"), rank=8)
    return PrivateTrainer(load_model(diverse_model, pooling="mean", num_labels=2, lora=lora, seed=1))


def make_rows(count: int = 30, seed: int = 5) -> TokenisedExamples:
    return random_rows(count, seed=seed, vocabulary=400, labels=2, longest=16, pad_id=0)


def test_canaries_are_public_rows_and_their_coins_are_not() -> None:
    first, second, other = make_rows(), make_rows(), make_rows(seed=6)
    assert all(np.array_equal(a, b) for a, b in zip(first.input_ids, second.input_ids, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first.input_ids, other.input_ids, strict=True))
    assert all(0 not in ids for ids in first.input_ids)
    with pytest.raises(ConfigError, match="canaries"):
        make_rows(1)
    canaries = Canaries.toss(first, SecretStream())
    assert "True" not in repr(canaries)
    assert "False" not in repr(canaries)
    inside = canaries.inside()
    chosen = [ids for ids, included in zip(first.input_ids, canaries.included, strict=True) if included]
    assert [ids.tolist() for ids in inside.input_ids] == [ids.tolist() for ids in chosen]


def test_coins_are_fair_and_fresh() -> None:
    """20,000 fair coins: more than 500 off the half has odds of 2e-12."""
    rows = make_rows(20_000)
    first, second = (Canaries.toss(rows, SecretStream()).included for _ in range(2))
    assert abs(int(first.sum()) - 10_000) < 500
    assert abs(int((first ^ second).sum()) - 10_000) < 500


def test_the_update_attack_reads_the_counts_off_an_update_without_noise(trainer: PrivateTrainer) -> None:
    rows, start = make_rows(), read_state(trainer.model)
    roles: Any = frozenset({"B", "head"})
    inside = np.arange(0, 30, 2)
    update = trainer.train(
        rows.subset(inside), start,
        StepSettings(
            steps=1, sample_rate=1.0, planned_batch_size=20.0, noise_multiplier=0.0,
            clip_norm=0.05, learning_rate=0.5,
        ),
        stream=SecretStream(bytes(32)), trainable=roles,
    ).state  # fmt: skip
    scores = UpdateAttack(trainer, rows, Plan(**PLAN), roles, 0.5).scores(start, update)
    expected = np.isin(np.arange(30), inside)
    np.testing.assert_allclose(scores, expected, atol=0.05)


def test_the_update_attack_shrinks_to_nothing_under_much_noise(trainer: PrivateTrainer) -> None:
    rows, start = make_rows(), read_state(trainer.model)
    roles: Any = frozenset({"B", "head"})
    update = trainer.train(
        rows, start,
        StepSettings(
            steps=1, sample_rate=1e-9, planned_batch_size=20.0, noise_multiplier=100.0,
            clip_norm=0.05, learning_rate=0.5,
        ),
        stream=SecretStream(bytes(32)), trainable=roles,
    ).state  # fmt: skip
    scores = UpdateAttack(trainer, rows, Plan(**PLAN), roles, 0.5).scores(start, update)
    assert np.abs(scores).max() < 0.3


def test_loss_drop_is_larger_for_rows_that_were_trained_on(trainer: PrivateTrainer) -> None:
    rows, start = make_rows(), read_state(trainer.model)
    inside = np.arange(0, 30, 2)
    state = trainer.train(
        rows.subset(inside), start,
        StepSettings(
            steps=20, sample_rate=1.0, planned_batch_size=15.0, noise_multiplier=0.0,
            clip_norm=10.0, learning_rate=0.3,
        ),
        stream=SecretStream(bytes(32)),
    ).state  # fmt: skip
    drop = loss_drop(trainer, rows, start, state)
    outside = np.setdiff1d(np.arange(30), inside)
    assert drop[inside].mean() > drop[outside].mean() + 0.3
    np.testing.assert_allclose(drop, losses(trainer, rows, start) - losses(trainer, rows, state))
    assert set(ATTACKERS) == {"update", "loss-drop"}
