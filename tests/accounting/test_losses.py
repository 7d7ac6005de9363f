"""Fast loss distributions: the certifying accountant's figures, and curves against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from accounting import losses, pricing
from accounting.events import ADJACENCIES, Adjacency
from accounting.mechanisms import Mechanism

DELTA = 1e-5


@settings(deadline=None, max_examples=4)
@given(
    st.floats(0.9, 10.0),
    st.sampled_from([0.001, 0.05, 1.0]),
    st.integers(1, 500),
    st.sampled_from(ADJACENCIES),
)
def test_the_same_figure_as_the_certifying_accountant(
    noise: float, rate: float, steps: int, adjacency: Adjacency
) -> None:
    parts = ((Mechanism(noise, rate, adjacency), steps),)
    grid = pricing.interval(parts, DELTA)
    certified = pricing.pld_epsilon(parts, DELTA)
    assert losses.fast_epsilon(parts, DELTA, grid) == pytest.approx(certified, rel=1e-5, abs=1e-6)


def test_mixed_mechanisms_compose_to_the_same_figure() -> None:
    parts = ((Mechanism(2.0, 0.05), 20), (Mechanism(3.0, 0.1), 7), (Mechanism(9.0, 1.0), 2))
    assert losses.fast_epsilon(parts, DELTA, 1e-4) == pytest.approx(
        pricing.pld_epsilon(parts, DELTA), abs=1e-6
    )


@settings(deadline=None, max_examples=10)
@given(st.floats(0.9, 5.0), st.sampled_from([0.01, 0.3, 1.0]), st.integers(1, 100))
def test_a_coarser_grid_only_costs_more(noise: float, rate: float, steps: int) -> None:
    parts = ((Mechanism(noise, rate), steps),)
    fine, coarse = (losses.fast_epsilon(parts, DELTA, grid) for grid in (1e-3, 1e-2))
    assert fine <= coarse + 1e-6


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("rate", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.3, 1.0])
def test_the_divergences_of_one_step(noise: float, rate: float, epsilon: float) -> None:
    """Brute force: the integral of (p - e^epsilon q)+ over a grid."""
    x = np.arange(-40, 42, 1e-3)
    out, one, other = (norm.pdf(x, mean, noise) for mean in (0, 1, -1))
    mixed, opposite = (1 - rate) * out + rate * one, (1 - rate) * out + rate * other
    at = np.array([epsilon])
    for found, p, q in (
        (losses._removed(at, noise, rate), mixed, out),
        (losses._added(at, noise, rate), out, mixed),
        (losses._replaced(at, noise, rate), mixed, opposite),
    ):
        exact = np.maximum(p - np.exp(epsilon) * q, 0).sum() * 1e-3
        assert found[0] == pytest.approx(exact, abs=1e-6)


def test_no_epsilon_meets_a_delta_below_what_is_at_infinity() -> None:
    assert losses.fast_epsilon(((Mechanism(1.0, 1.0), 3),), 1e-16, 1e-3) == float("inf")
