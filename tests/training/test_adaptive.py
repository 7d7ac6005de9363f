"""Adaptive clipping: what is counted, what is noised, where the clip norm goes, and that nothing else moves it.

Statistical tests have fixed seeds; bounds at 6 standard errors would fail an honest draw once in 5e8.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from accounting.adaptive_clip import AdaptiveClip
from fedlora_priv.adapters import read_state
from fedlora_priv.errors import ConfigError
from fedlora_priv.modeling import LoraSettings, attach_lora
from fedlora_priv.precision import cast_base
from fedlora_priv.training import PrivateTrainer, StepSettings
from fedlora_priv.training import trainer as trainer_module
from fedlora_priv.training.adaptive import ClipNorm
from fedlora_priv.training.engine import ClipCounts
from fedlora_priv.training.noise import gaussian_noise
from protocols.prg import SecretStream

KEY = bytes(range(32))
RULE = AdaptiveClip(
    target_quantile=0.5,
    learning_rate=0.2,
    count_noise_stddev=3.0,
    smallest_clip_norm=1e-3,
    largest_clip_norm=1e3,
)
SETTINGS = StepSettings(
    steps=30,
    sample_rate=0.4,
    planned_batch_size=10.0,
    noise_multiplier=1.5,
    clip_norm=0.05,
    learning_rate=0.1,
    adaptive=RULE,
)


def counts_of(norms: np.ndarray, clip_norm: float) -> list[ClipCounts]:
    """What clipping does to gradients of these norms, in microbatches of at most 16."""
    groups = [norms[start : start + 16] for start in range(0, len(norms), 16)]
    return [
        ClipCounts(
            examples=len(group),
            clipped=int((group > clip_norm).sum()),
            non_finite=int((~np.isfinite(group)).sum()) if len(group) else 0,
            largest_norm=0.0,
        )
        for group in groups
    ]


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.05, 50.0])
def test_a_known_quantile_is_found_from_either_side(quantile, start):
    rule = replace(RULE, target_quantile=quantile, count_noise_stddev=5.0)
    settings = replace(SETTINGS, clip_norm=start, planned_batch_size=100.0, adaptive=rule)
    generator, clip = np.random.default_rng(5), ClipNorm(settings, SecretStream(KEY))
    norms, late = np.exp(generator.normal(0.3, 0.7, size=2000)), []
    for step in range(400):
        drawn = norms[generator.random(len(norms)) < 0.05]
        clip.follow(counts_of(drawn, clip.value))
        if step >= 200:
            late.append(math.log(clip.value))
    assert np.mean(late) == pytest.approx(math.log(np.quantile(norms, quantile)), abs=0.1)


def test_the_estimated_share_is_unbiased_over_batches_of_any_size():
    """Dividing by the planned size; with the shift an empty batch says one half, and errors average out."""
    settings = replace(SETTINGS, planned_batch_size=20.0)
    generator, norms = np.random.default_rng(6), np.linspace(0, 1, 400)
    stream, shares = SecretStream(KEY), []
    for _ in range(4000):
        clip = ClipNorm(replace(settings, clip_norm=0.7), stream)
        drawn = norms[generator.random(400) < 0.05]
        record = clip.follow(counts_of(drawn, clip.value))
        shares.append(record.noised / 20.0 + 0.5)
    error = np.std(shares) / math.sqrt(len(shares))
    assert np.mean(shares) == pytest.approx(0.7, abs=6 * error)
    assert error < 0.005


@pytest.mark.parametrize(("norm", "moved"), [(0.5, 0.5), (2.0, -0.5), (math.inf, -0.5)])
def test_one_example_moves_the_count_by_one_half(norm, moved):
    """What the price rests on: without the shift an example within the clip norm would move it by 1."""
    others = np.array([0.2, 3.0, 0.9])
    noised = []
    for norms in (others, np.append(others, norm)):
        clip = ClipNorm(replace(SETTINGS, clip_norm=1.0), SecretStream(KEY))  # the same noise twice
        finite = np.where(np.isfinite(norms), norms, 0.0)
        counts = ClipCounts(
            examples=len(norms),
            clipped=int((finite > 1).sum()),
            non_finite=int((~np.isfinite(norms)).sum()),
            largest_norm=1.0,
        )
        noised.append(clip.follow([counts]).noised)
    assert noised[1] - noised[0] == pytest.approx(moved, abs=1e-12)


@given(st.lists(st.floats(0, 10), max_size=40), st.floats(0, 10), st.floats(0.1, 5), st.integers(1, 40))
def test_whoever_is_drawn_and_however_they_are_batched_one_more_moves_the_count_by_one_half(
    others, norm, clip_norm, size
):
    settings, noised = replace(SETTINGS, clip_norm=clip_norm), []
    for norms, batch in ((others, 16), (others, size), ([*others, norm], size)):
        groups = [np.array(norms[start : start + batch]) for start in range(0, len(norms), batch)]
        counts = [count for group in groups for count in counts_of(group, clip_norm)]
        noised.append(ClipNorm(settings, SecretStream(KEY)).follow(counts).noised)
    assert noised[0] == noised[1]
    assert abs(noised[2] - noised[1]) == pytest.approx(0.5, abs=1e-9)


def test_the_noise_on_counts_is_gaussian_as_stated_and_independent_of_the_gradients():
    stream, steps, dimension = SecretStream(KEY), 4000, 5
    gradients, counts = np.empty((steps, dimension)), np.empty(steps)
    for step in range(steps):
        gradients[step] = gaussian_noise(stream, dimension, 1.0)
        record = ClipNorm(SETTINGS, stream).follow([])
        counts[step] = record.noised / RULE.count_noise_stddev
    assert 1e-7 < chi2.cdf(float(counts @ counts), steps) < 1 - 1e-7
    assert abs(counts.mean()) < 6 / math.sqrt(steps)
    for shift in (0, 1):  # of the same step, and of the next
        correlation = counts[: steps - shift] @ gradients[shift:] / (steps - shift)
        assert np.abs(correlation).max() < 6 / math.sqrt(steps - shift)
    assert len(set(counts)) == steps


def trained(tiny_model, make_examples, settings, stream=None):
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)
    return trainer.train(make_examples(24), start, settings, stream=stream or SecretStream(KEY))


def test_every_step_clips_and_noises_with_the_clip_norm_of_that_step(tiny_model, make_examples):
    result = trained(tiny_model, make_examples, SETTINGS)
    assert result.private_audit[0].count.clip_norm == SETTINGS.clip_norm
    for step, after in pairwise(result.private_audit):
        due = RULE.next_clip_norm(step.count.clip_norm, step.count.noised, SETTINGS.planned_batch_size)
        assert after.count.clip_norm == due
    assert result.clip_norm != result.private_audit[-1].count.clip_norm
    for step in result.private_audit:
        assert step.largest_norm <= step.count.clip_norm
        assert step.count.unclipped == step.batch_size - step.clipped - step.non_finite
        scale = SETTINGS.noise_multiplier * step.count.clip_norm
        assert 1e-9 < chi2.cdf(step.noise_squares / scale**2, result.dimension) < 1 - 1e-9
    clip_norms = [step.count.clip_norm for step in result.private_audit]
    assert max(clip_norms) > 2 * min(clip_norms)  # it began too small, and was not noised for that


def test_a_constant_clip_norm_counts_nothing_and_draws_nothing(tiny_model, make_examples):
    """The first step is the same but for the count's four uniforms, which come last."""
    one = replace(SETTINGS, steps=1)
    fixed, adaptive = SecretStream(KEY), SecretStream(KEY)
    without = trained(tiny_model, make_examples, replace(one, adaptive=None), fixed)
    counted = trained(tiny_model, make_examples, one, adaptive)
    assert without.private_audit[0].count is None
    assert without.clip_norm == SETTINGS.clip_norm
    assert replace(counted.private_audit[0], count=None) == without.private_audit[0]
    for name, array in without.state.items():
        assert np.array_equal(array, counted.state[name])
    standing = SecretStream(KEY)
    standing.uniform(24 + 4 * without.dimension)
    assert standing.bytes(8) == fixed.bytes(8)


def test_counts_over_a_base_in_bfloat16_are_refused(tiny_base, make_examples, monkeypatch):
    monkeypatch.setattr(
        trainer_module, "refuse_emulated_bfloat16", lambda *_: None
    )  # it comes first elsewhere
    base = tiny_base("bert-mean")
    cast_base(base, "bfloat16")
    trainer = PrivateTrainer(attach_lora(base, LoraSettings(("query", "value"), rank=2), seed=7))
    start = read_state(trainer.model)
    with pytest.raises(ConfigError, match="companions can carry it across"):
        trainer.train(make_examples(8), start, SETTINGS, stream=SecretStream(KEY))


def test_a_batch_of_nobody_counts_noise_alone(tiny_model, make_examples):
    result = trained(tiny_model, make_examples, replace(SETTINGS, sample_rate=1e-12))
    counts = [step.count for step in result.private_audit]
    assert {(step.batch_size, step.count.unclipped) for step in result.private_audit} == {(0, 0)}
    assert len({count.noised for count in counts}) == len(counts)
    squares = sum((count.noised / RULE.count_noise_stddev) ** 2 for count in counts)
    assert 1e-7 < chi2.cdf(squares, len(counts)) < 1 - 1e-7


def test_training_again_draws_other_counts_noise(tiny_model, make_examples):
    """A retried round: same rows, same start, fresh stream."""
    results = [trained(tiny_model, make_examples, SETTINGS, SecretStream()) for _ in range(2)]
    noise = [
        step.count.noised - (step.count.unclipped - step.batch_size / 2)
        for result in results
        for step in result.private_audit
    ]
    assert len({round(value, 9) for value in noise}) == len(noise)


def test_gradients_that_are_not_finite_count_as_outside(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start = read_state(trainer.model)
    with torch.no_grad():
        trainer.model.base_model.model.encoder.embeddings.word_embeddings.weight[:] = math.nan
    result = trainer.train(make_examples(24), start, replace(SETTINGS, steps=2), stream=SecretStream(KEY))
    assert all(step.count.unclipped == 0 for step in result.private_audit)
    assert sum(step.non_finite for step in result.private_audit) > 0
    assert result.clip_norm != SETTINGS.clip_norm


def test_counts_of_layers_are_refused():
    with pytest.raises(ConfigError, match="counts gradients clipped as a whole"):
        replace(SETTINGS, clipping="per-layer")


def test_nothing_private_shows(tiny_model, make_examples):
    result = trained(tiny_model, make_examples, replace(SETTINGS, steps=1))
    assert repr(result.private_audit[0].count) == "CountRecord()"
