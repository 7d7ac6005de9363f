"""Many single steps: the loss that couples examples is caught, the right one is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from accounting.events import Gaussian
from accounting.many_runs import clopper_pearson_epsilon
from accounting.pricing import epsilon
from fedlora_priv.adapters import read_state
from fedlora_priv.empirical.trials import StepTrials, repeat_step
from fedlora_priv.errors import ConfigError
from fedlora_priv.training import PrivateTrainer, TokenisedExamples
from fedlora_priv.training.losses import next_token_losses
from protocols.prg import SecretStream

NOISE_MULTIPLIER = 4.0
DELTA = 1e-5
COMPANIONS = 32
TRIALS = 40
CLIP_NORM = 0.03
"""A little above what a companion contributes under the mean over all tokens: a long canary then shrinks them all."""


@pytest.fixture
def trainer() -> PrivateTrainer:
    """A language model of one layer, at adapters that are not zero."""
    config = LlamaConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = LlamaForCausalLM(config).float()
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).eval()
    return PrivateTrainer(model)


def step_trials(trainer: PrivateTrainer) -> StepTrials:
    """Thirty-two short companions that say the same, and one long canary."""
    rng = np.random.default_rng(0)
    companions = TokenisedExamples(tuple(np.array([5, 9]) for _ in range(COMPANIONS)), None, 0)
    canary = TokenisedExamples((rng.integers(1, 97, 60),), None, 0)
    start = {
        name: rng.normal(0, 0.3, array.shape).astype(np.float32)
        for name, array in read_state(trainer.model).items()
    }
    return repeat_step(
        trainer, companions, canary, start, trials=TRIALS, noise_multiplier=NOISE_MULTIPLIER,
        clip_norm=CLIP_NORM, stream=SecretStream(bytes(32)),
    )  # fmt: skip


def claim() -> float:
    return epsilon([Gaussian(noise_multiplier=NOISE_MULTIPLIER, steps=1, clip_norm=CLIP_NORM)], DELTA)


@pytest.mark.long
def test_a_right_trainer_is_not_contradicted(trainer: PrivateTrainer) -> None:
    found = step_trials(trainer)
    assert found.shift <= 1.00001  # one row moves the sum by the clip norm at most, up to float rounding
    assert clopper_pearson_epsilon(found.counts(DELTA), DELTA) <= claim()


@pytest.mark.long
def test_a_loss_that_couples_examples_is_caught(
    trainer: PrivateTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over all tokens of the batch: a long row shrinks what all others contribute.

    It can only do so in one microbatch with them, which rows of such unequal lengths never share; so here they do.
    """

    def token_mean(logits: Any, batch: Any) -> Any:
        per_example = next_token_losses(logits, batch.inputs["input_ids"], batch.targets)
        counts = batch.targets.sum(dim=1)
        return per_example * counts / counts.sum()

    monkeypatch.setattr("fedlora_priv.training.losses.example_losses", token_mean)
    monkeypatch.setattr("fedlora_priv.training.batching.WIDTH_STEP", 62)
    found = step_trials(trainer)
    assert found.shift > 10
    assert clopper_pearson_epsilon(found.counts(DELTA), DELTA) > 1.3 > claim()


def test_a_canary_without_any_effect_is_refused(trainer: PrivateTrainer) -> None:
    lone = TokenisedExamples((np.array([5]),), None, 0)  # one token: nothing to predict, no gradient
    companions = TokenisedExamples((np.array([5, 9]),), None, 0)
    with pytest.raises(ConfigError, match="changes nothing"):
        repeat_step(
            trainer,
            companions,
            lone,
            read_state(trainer.model),
            trials=4,
            noise_multiplier=1.0,
            clip_norm=1.0,
        )
