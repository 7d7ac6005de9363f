"""Noise and batches: their distributions, and that nothing but the stream feeds them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy import stats

from fedlora_priv.training.noise import gaussian_noise, standard_normals
from fedlora_priv.training.sampling import poisson_draw
from protocols.prg import SecretStream

KEY = bytes(range(32))


@pytest.mark.parametrize("draw", [standard_normals, lambda s, n: gaussian_noise(s, n, 1.0)])
def test_noise_is_standard_normal(draw):
    # A fixed key makes the outcome fixed; were it redrawn, each of these would fail once in 10,000 runs.
    values = draw(SecretStream(KEY), 200_000)
    assert stats.kstest(values, "norm").pvalue > 1e-4
    assert abs(values.var() - 1) < 3.9 * np.sqrt(2 / len(values))
    assert abs(stats.kurtosis(values)) < 3.9 * np.sqrt(24 / len(values))


def test_noise_has_the_asked_deviation_across_chunks():
    values = gaussian_noise(SecretStream(KEY), 100_001, 3.5)
    assert values.shape == (100_001,)
    assert abs(values.std() / 3.5 - 1) < 3.9 / np.sqrt(2 * len(values))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 3.9 / np.sqrt(len(values))


def test_each_noise_value_sums_four_draws():
    # One Box-Muller draw takes one uniform a value; four take four. Fewer would reopen the low-bits attack.
    stream, reference = SecretStream(KEY), SecretStream(KEY)
    gaussian_noise(stream, 10, 1.0)
    reference.uniform(40)
    assert stream.bytes(8) == reference.bytes(8)
    four = standard_normals(SecretStream(KEY), 40).reshape(4, 10)
    np.testing.assert_allclose(gaussian_noise(SecretStream(KEY), 10, 2.0), four.sum(axis=0), rtol=1e-12)


def test_odd_and_zero_counts():
    assert standard_normals(SecretStream(KEY), 0).shape == (0,)
    assert standard_normals(SecretStream(KEY), 7).shape == (7,)


def test_poisson_draw_is_independent_per_example():
    stream, rate, n, rounds = SecretStream(KEY), 0.1, 50, 4000
    hits = np.zeros((rounds, n), dtype=bool)
    for row in hits:
        row[poisson_draw(stream, n, rate)] = True
    sizes = hits.sum(axis=1)
    assert abs(sizes.mean() - n * rate) < 3.9 * np.sqrt(n * rate * (1 - rate) / rounds)
    # A fixed-size or shuffled batch would have variance 0 here.
    assert abs(sizes.var() / (n * rate * (1 - rate)) - 1) < 3.9 * np.sqrt(2 / rounds) * 1.2
    assert stats.chisquare(hits.sum(axis=0)).pvalue > 1e-4


def test_poisson_draw_edges():
    assert poisson_draw(SecretStream(KEY), 0, 0.5).shape == (0,)
    np.testing.assert_array_equal(poisson_draw(SecretStream(KEY), 5, 1.0), np.arange(5))


def test_seeds_reach_neither_noise_nor_batches():
    def draw(stream: SecretStream) -> bytes:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        return gaussian_noise(stream, 8, 1.0).tobytes() + poisson_draw(stream, 64, 0.5).tobytes()

    assert draw(SecretStream()) != draw(SecretStream())
    assert draw(SecretStream(KEY)) == draw(SecretStream(KEY))
