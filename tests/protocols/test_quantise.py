"""Quantising is unbiased, bounded, and never overflows the ring."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import QuantisationError
from protocols.prg import SecretStream
from protocols.quantise import Quantiser

KEY = bytes(range(32))


def signed(ring: np.ndarray, bits: int) -> np.ndarray:
    """Ring elements as signed integers, by Python."""
    return np.array([x - 2**bits if x >= 2 ** (bits - 1) else x for x in ring.tolist()])


@settings(deadline=None, derandomize=True)
@given(st.integers(2, 24), st.integers(1, 300))
def test_the_extreme_sum_of_all_clients_never_overflows(value_bits: int, clients: int) -> None:
    if value_bits + math.ceil(math.log2(clients)) > 32:
        with pytest.raises(QuantisationError):
            Quantiser(1.0, value_bits, clients)
        return
    quantiser = Quantiser(1.0, value_bits, clients)
    assert quantiser.modulus_bits == value_bits + math.ceil(math.log2(clients))
    assert clients * quantiser.levels < 2 ** (quantiser.modulus_bits - 1)
    for extreme in (1.0, -1.0):
        ring = quantiser.quantise(np.array([extreme], dtype=np.float32), SecretStream(KEY))
        total = np.uint32(int(ring[0]) * clients % 2**quantiser.modulus_bits)
        assert quantiser.dequantise_sum(np.array([total]))[0] == pytest.approx(extreme * clients, rel=1e-12)


def test_both_bounds_and_zero_are_exact() -> None:
    quantiser = Quantiser(0.3, 10, 4)
    ring = quantiser.quantise(np.array([0.3, -0.3, 0.0]), SecretStream(KEY))
    assert signed(ring, quantiser.modulus_bits).tolist() == [511, -511, 0]


def test_beyond_the_bound_is_clipped_and_counted() -> None:
    quantiser = Quantiser(1.0, 8, 4)
    values = np.array([5.0, -1e30, 1.0, 0.5], dtype=np.float32)
    ring = quantiser.quantise(values, SecretStream(KEY))
    assert signed(ring, quantiser.modulus_bits).tolist()[:3] == [127, -127, 127]
    assert quantiser.clipped(values) == 2


def test_rounding_goes_to_a_neighbouring_level() -> None:
    quantiser = Quantiser(1.0, 12, 8)
    values = np.random.default_rng(0).uniform(-1, 1, 50_000).astype(np.float32)
    levels = signed(quantiser.quantise(values, SecretStream(KEY)), quantiser.modulus_bits)
    assert np.abs(levels - values.astype(np.float64) * quantiser.levels).max() < 1.0


def test_rounding_is_unbiased() -> None:
    # 200,000 draws at each of 9 values. The mean of n rounding errors has standard deviation ≤ 0.5/sqrt(n);
    # a bound of 5 of those is crossed with probability below 2·2.9e-7 each (Hoeffding is no looser here than
    # the normal tail), so a false alarm in this test has probability below 1e-5. The key is fixed anyway.
    quantiser = Quantiser(1.0, 4, 2)
    n = 200_000
    stream = SecretStream(KEY)
    for value in (-0.99, -0.5, -0.123, -1e-6, 1e-6, 0.01, 0.3333, 0.77, 0.999):
        ring = quantiser.quantise(np.full(n, value), stream)
        mean = signed(ring, quantiser.modulus_bits).mean()
        assert abs(mean - value * quantiser.levels) < 5 * 0.5 / math.sqrt(n)


def test_a_bound_for_each_coordinate() -> None:
    bounds = np.array([1.0, 0.001, 1000.0], dtype=np.float32)
    quantiser = Quantiser(bounds, 16, 3)
    ring = quantiser.quantise(bounds, SecretStream(KEY))
    np.testing.assert_allclose(quantiser.dequantise_sum(ring), bounds, rtol=1e-7)
    with pytest.raises(QuantisationError):
        quantiser.quantise(np.zeros(4, dtype=np.float32), SecretStream(KEY))
    with pytest.raises(ValueError, match="read-only"):
        quantiser.bounds[0] = 2.0  # type: ignore[index]


def test_blocks_do_not_show() -> None:
    quantiser = Quantiser(1.0, 16, 2)
    values = np.random.default_rng(1).uniform(-1, 1, 40_001).astype(np.float32)
    errors = quantiser.dequantise_sum(quantiser.quantise(values, SecretStream(KEY))) - values
    assert np.abs(errors).max() <= 1 / quantiser.levels


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    values = np.zeros(5, dtype=np.float32)
    values[3] = bad
    with pytest.raises(QuantisationError, match="NaN"):
        Quantiser(1.0, 8, 2).quantise(values, SecretStream(KEY))


@pytest.mark.parametrize("values", [np.zeros(3, dtype=np.int64), np.zeros((2, 2), dtype=np.float32)])
def test_what_is_no_float_vector_is_refused(values: np.ndarray) -> None:
    with pytest.raises(QuantisationError):
        Quantiser(1.0, 8, 2).quantise(values, SecretStream(KEY))


@pytest.mark.parametrize(
    ("bounds", "value_bits", "clients"),
    [
        *[(bound, 8, 2) for bound in (0.0, -1.0, math.nan, math.inf)],
        *[(1.0, value_bits, 2) for value_bits in (-1, 0, 1, 25)],
        (1.0, 8, 0),
        (np.zeros(2, dtype=np.float32), 8, 2),
        (np.ones(2), 8, 2),
        (np.ones((2, 2), dtype=np.float32), 8, 2),
    ],
)
def test_wrong_parameters_are_refused(bounds: float, value_bits: int, clients: int) -> None:
    with pytest.raises(QuantisationError):
        Quantiser(bounds, value_bits, clients)


def test_a_sum_that_nobody_can_reach_is_refused() -> None:
    quantiser = Quantiser(1.0, 4, 3)  # |sum| ≤ 21 of 31
    assert quantiser.dequantise_sum(np.array([21], dtype=np.uint32))[0] == pytest.approx(3.0)
    for spoilt in (22, 2**quantiser.modulus_bits):
        with pytest.raises(QuantisationError):
            quantiser.dequantise_sum(np.array([spoilt], dtype=np.uint32))


def test_the_digest_tells_quantisers_apart() -> None:
    quantisers = [
        Quantiser(1.0, 8, 2),
        Quantiser(1.0, 8, 3),
        Quantiser(1.0, 9, 2),
        Quantiser(1.5, 8, 2),
        Quantiser(np.ones(1, dtype=np.float32), 8, 2),
        Quantiser(np.ones(2, dtype=np.float32), 8, 2),
    ]
    assert len({quantiser.digest() for quantiser in quantisers}) == len(quantisers)
    assert Quantiser(1.0, 8, 2).digest() == quantisers[0].digest()
