"""The p-values behind checks 6 and 7: exact where they say so, silent on honest steps, loud on broken ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from accounting.checks import plausible

LEVEL = 1e-6 / 2 / 6  # of one test, where a client is audited alone
DIMENSION = 500


def sizes(steps: int, examples: int = 400, rate: float = 0.05, seed: int = 0) -> list[int]:
    return [int(size) for size in np.random.default_rng(seed).binomial(examples, rate, steps)]


def measured(noise: np.ndarray) -> tuple[list[float], list[float]]:
    """Squared norms and largest coordinates of unit noise, (steps, coordinates)."""
    return list((noise**2).sum(axis=1)), list(np.abs(noise).max(axis=1))


def smallest(values: plausible.PValues) -> float:
    return min(values.values())


# --- exactness ---


@pytest.mark.parametrize(
    ("observed", "trials", "chance"), [(0, 10, 0.3), (3, 10, 0.3), (10, 10, 0.3), (7, 8, 0.5)]
)
def test_a_binomial_tail_is_summed_term_by_term(observed: int, trials: int, chance: float) -> None:
    mass = [math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(trials + 1)]
    expected = min(1.0, 2 * min(sum(mass[: observed + 1]), sum(mass[observed:])))
    assert plausible.two_sided(observed, trials, chance) == pytest.approx(expected, rel=1e-9)


def require_valid(found: list[plausible.PValues]) -> None:
    """P[p <= x] <= x for every test: no share of p-values is more than 5 standard errors too large (3e-7 each)."""
    for name in found[0]:
        values = np.array([each[name] for each in found])
        for level in (0.01, 0.05, 0.2):
            assert np.mean(values <= level) <= level + 5 * math.sqrt(level / len(found)), (name, level)


def test_p_values_of_batch_sizes_are_no_smaller_than_they_may_be() -> None:
    drawn = np.random.default_rng(7).binomial(30, 0.1, (800, 12))
    require_valid([plausible.batch_size_p_values(row.tolist(), 30, 0.1) for row in drawn])


def test_p_values_of_noise_are_no_smaller_than_they_may_be() -> None:
    noise = np.random.default_rng(8).normal(size=(800, 8, 40))
    require_valid([plausible.noise_p_values(*measured(steps), 40) for steps in noise])


def test_p_values_of_noise_on_counts_are_no_smaller_than_they_may_be() -> None:
    noise = np.random.default_rng(10).normal(size=(800, 12))
    require_valid([plausible.count_noise_p_values(steps) for steps in noise])


def test_the_largest_of_many_normals() -> None:
    """Against scipy's distribution of an absolute normal, raised to the number of coordinates."""
    for largest in (0.5, 2.0, 4.5):
        expected = stats.halfnorm.cdf(largest) ** 1000
        assert plausible._largest_cdf(np.array([largest]), 1000).item() == pytest.approx(expected, rel=1e-9)


# --- honest steps ---


@pytest.mark.parametrize("rate", [0.002, 0.05, 0.5, 1.0])
def test_honest_batches_are_believed(rate: float) -> None:
    assert smallest(plausible.batch_size_p_values(sizes(200, rate=rate), 400, rate)) > LEVEL


def test_honest_noise_is_believed() -> None:
    noise = np.random.default_rng(1).normal(size=(40, DIMENSION))
    assert smallest(plausible.noise_p_values(*measured(noise), DIMENSION)) > LEVEL


# --- broken steps: which test speaks, and that it is loud enough to be heard through all corrections ---


def test_batches_of_one_fixed_size() -> None:
    values = plausible.batch_size_p_values([20] * 40, 400, 0.05)
    assert values["most common size"] < LEVEL
    assert values["total"] == 1.0
    assert plausible.fixed_size_p_value(40, 400, 0.05) <= values["most common size"]


def test_a_few_steps_cannot_show_a_fixed_size() -> None:
    assert plausible.fixed_size_p_value(3, 400, 0.05) > LEVEL


def test_shuffled_batches_with_a_smaller_last_one() -> None:
    assert smallest(plausible.batch_size_p_values([21, 21, 21, 21, 16] * 12, 400, 0.05)) < LEVEL


def test_another_sampling_rate() -> None:
    assert plausible.batch_size_p_values(sizes(40, rate=0.07), 400, 0.05)["total"] < LEVEL


def test_empty_batches_that_were_left_out() -> None:
    drawn = [size for size in sizes(300, rate=0.002) if size]
    assert plausible.batch_size_p_values(drawn, 400, 0.002)["empty batches"] < LEVEL


def test_batches_that_vary_too_much() -> None:
    assert smallest(plausible.batch_size_p_values([8, 32] * 30, 400, 0.05)) < LEVEL


def test_one_step_on_all_the_data() -> None:
    assert plausible.batch_size_p_values([*sizes(60), 400], 400, 0.05)["one step"] < LEVEL


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_noise_of_another_size(factor: float) -> None:
    noise = factor * np.random.default_rng(2).normal(size=(40, DIMENSION))
    assert plausible.noise_p_values(*measured(noise), DIMENSION)["size of the noise"] < LEVEL


def test_one_step_without_noise() -> None:
    noise = np.random.default_rng(3).normal(size=(40, DIMENSION))
    noise[17] = 0
    assert plausible.noise_p_values(*measured(noise), DIMENSION)["size of one step's noise"] < LEVEL


def test_noise_scaled_to_exactly_its_expected_norm() -> None:
    noise = np.random.default_rng(4).normal(size=(60, DIMENSION))
    noise *= np.sqrt(DIMENSION) / np.linalg.norm(noise, axis=1, keepdims=True)
    assert plausible.noise_p_values(*measured(noise), DIMENSION)["spread of the noise's sizes"] < LEVEL


@pytest.mark.parametrize("limit", [2.0, 3.0, 3.5])
def test_clamped_noise_is_caught(limit: float) -> None:
    """Clamping at 3.5 hardly changes the norm (its variance is 0.1 % less); the largest coordinates tell."""
    noise = np.clip(np.random.default_rng(5).normal(size=(40, 2000)), -limit, limit)
    values = plausible.noise_p_values(*measured(noise), 2000)
    assert min(values["largest coordinate"], values["spread of the largest coordinates"]) < LEVEL
    assert limit < 3 or values["size of the noise"] > LEVEL


def test_laplace_noise_of_the_same_variance() -> None:
    noise = np.random.default_rng(6).laplace(scale=math.sqrt(0.5), size=(40, DIMENSION))
    assert smallest(plausible.noise_p_values(*measured(noise), DIMENSION)) < LEVEL


def counted(steps: int = 60) -> np.ndarray:
    noise = np.random.default_rng(11).normal(size=steps)
    assert smallest(plausible.count_noise_p_values(noise)) > LEVEL
    return noise


@pytest.mark.parametrize("sign", [1, -1])
def test_noise_on_counts_that_comes_again(sign: int) -> None:
    """After rounding: one more example in each batch, and a count of hundreds before it was taken off again."""
    again = np.concatenate([noise := counted(6), ((400.5 + sign * 3 * noise) - 400.5) / 3])
    values = plausible.count_noise_p_values(again)
    assert values["noise that comes again"] < LEVEL
    assert min(value for name, value in values.items() if "again" not in name) > LEVEL


def test_noise_on_counts_that_only_adds() -> None:
    """Squares and largest values are those of a Gaussian; but no count is ever below the true one."""
    values = plausible.count_noise_p_values(np.abs(counted()))
    assert max(values["mean of the noise"], values["distribution of the noise"]) < LEVEL
    assert values["size of the noise"] > LEVEL


def test_the_smallest_visible_change_is_seen_half_of_the_time() -> None:
    level, steps = 1e-4, 20
    change, generator, seen = (
        plausible.smallest_visible_change(steps * DIMENSION, level),
        np.random.default_rng(9),
        0,
    )
    for _ in range(200):
        noise = (1 - change) * generator.normal(size=(steps, DIMENSION))
        seen += plausible.noise_p_values(*measured(noise), DIMENSION)["size of the noise"] < level
    assert 60 <= seen <= 140  # 200 fair coins leave that range with probability 2e-8
