"""Quantising is unbiased, bounded, and never overflows the ring."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import QuantisationError
from protocols.prg import SecretStream
from protocols.quantise import ChannelScales, Quantiser
from protocols.sparsify import Support

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
        quantiser.bounds[0] = 2.0


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


@pytest.mark.parametrize(
    "values", [np.zeros(3, dtype=np.int64), np.zeros((2, 2), dtype=np.float32), [0.5, 0.25]]
)
def test_what_is_no_float_vector_is_refused(values: np.ndarray) -> None:
    with pytest.raises(QuantisationError, match=r"a float array of shape \(d,\)"):
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


# affine ranges: a bound around a public centre


def test_a_centre_is_added_back_once_for_each_client() -> None:
    bounds = np.array([1.0, 0.5, 8.0], dtype=np.float32)
    centres = np.array([10.0, -3.0, 0.0], dtype=np.float32)
    quantiser = Quantiser(bounds, 16, 4, centres)
    stream = SecretStream(KEY)
    values = [centres + bounds * np.float32(share) for share in (-1.0, 1.0, 0.0)]
    ring = np.sum([quantiser.quantise(value, stream) for value in values], axis=0, dtype=np.uint32)
    ring &= np.uint32(2**quantiser.modulus_bits - 1)
    np.testing.assert_allclose(quantiser.dequantise_sum(ring, clients=3), 3 * centres, rtol=0, atol=1e-9)
    with pytest.raises(QuantisationError, match="how many clients"):
        quantiser.dequantise_sum(ring)
    for clients in (0, 5):
        with pytest.raises(QuantisationError, match="1 to 4 clients"):
            quantiser.dequantise_sum(ring, clients)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    st.integers(2, 24),
    st.integers(1, 200),
    st.floats(-1e6, 1e6, width=32),
    st.floats(2.0**-20, 1e6, width=32),
    st.sampled_from([-1.0, 1.0]),
)
def test_affine_extremes_of_all_clients_never_overflow(
    value_bits: int, clients: int, centre: float, bound: float, side: float
) -> None:
    if value_bits + math.ceil(math.log2(clients)) > 32:
        return
    scale, middle = np.array([bound], dtype=np.float32), np.array([centre], dtype=np.float32)
    quantiser = Quantiser(scale, value_bits, clients, middle)
    extreme = middle.astype(np.float64) + side * scale.astype(np.float64)
    ring = quantiser.quantise(extreme, SecretStream(KEY))
    # The last bit of centre + bound may round inwards, never outwards: the extreme level or the one below it.
    level = signed(ring, quantiser.modulus_bits)[0]
    assert abs(level) <= quantiser.levels
    assert quantiser.clipped(extreme) in (0, 1)
    total = np.array([int(ring[0]) * clients % 2**quantiser.modulus_bits], dtype=np.uint32)
    step = bound / quantiser.levels
    tolerance = clients * (step + 1e-6 * (abs(centre) + bound))
    assert abs(quantiser.dequantise_sum(total, clients)[0] - clients * extreme[0]) <= tolerance


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.integers(1, 9), st.integers(0, 3), st.integers(2, 16), st.integers(1, 20), st.integers(0, 2**32 - 1)
)
def test_a_sum_is_that_of_the_clipped_values_to_a_step_a_client(
    clients: int, absent: int, value_bits: int, d: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bounds = (10.0 ** rng.uniform(-3, 3, d)).astype(np.float32)
    centres = (rng.normal(0, 1, d) * 10.0 ** rng.uniform(-3, 3, d)).astype(np.float32)
    quantiser = Quantiser(bounds, value_bits, clients + absent, centres)
    values = centres + bounds * rng.uniform(-1.5, 1.5, (clients, d))  # a third beyond the range
    stream = SecretStream(KEY)
    total = sum(quantiser.quantise(value, stream).astype(np.int64) for value in values)
    ring = (total % 2**quantiser.modulus_bits).astype(np.uint32)
    wide, middle = bounds.astype(np.float64), centres.astype(np.float64)
    clipped = np.clip(values, middle - wide, middle + wide).sum(axis=0)
    error = np.abs(quantiser.dequantise_sum(ring, clients) - clipped)
    assert (error <= clients * (wide / quantiser.levels + 1e-9 * (np.abs(middle) + wide))).all()


def test_affine_rounding_is_unbiased() -> None:
    # As above: 200,000 draws, 5 standard deviations of at most 0.5/sqrt(n) levels, fixed key.
    n, stream = 200_000, SecretStream(KEY)
    quantiser = Quantiser(0.5, 4, 2, centres=3.0)
    for value in (2.51, 2.9, 3.0, 3.123, 3.49):
        ring = quantiser.quantise(np.full(n, value), stream)
        level = signed(ring, quantiser.modulus_bits).mean()
        assert abs(level - (value - 3.0) / 0.5 * quantiser.levels) < 5 * 0.5 / math.sqrt(n)


def test_fewer_clients_bound_the_sum_more_tightly() -> None:
    quantiser = Quantiser(1.0, 4, 3)
    ring = np.array([15], dtype=np.uint32)
    assert quantiser.dequantise_sum(ring, clients=3)[0] == pytest.approx(15 / 7)
    with pytest.raises(QuantisationError, match="spoilt"):
        quantiser.dequantise_sum(ring, clients=2)


def test_a_centre_of_zero_changes_nothing() -> None:
    values = np.random.default_rng(3).uniform(-2, 2, 20_000).astype(np.float32)
    plain, centred = Quantiser(1.0, 8, 3), Quantiser(1.0, 8, 3, centres=0.0)
    assert plain.digest() == centred.digest()
    rings = [quantiser.quantise(values, SecretStream(KEY)) for quantiser in (plain, centred)]
    assert rings[0].tolist() == rings[1].tolist()


def test_the_digest_tells_centres_apart() -> None:
    one = np.ones(1, dtype=np.float32)
    quantisers = [
        Quantiser(1.0, 8, 2),
        Quantiser(1.0, 8, 2, 1.0),
        Quantiser(1.0, 8, 2, one),
        Quantiser(1.0, 8, 2, 2 * one),
        Quantiser(one, 8, 2, one),
        Quantiser(one, 8, 2, 1.0),
    ]
    assert len({quantiser.digest() for quantiser in quantisers}) == len(quantisers)


@pytest.mark.parametrize(
    ("bounds", "centres"),
    [
        (1.0, math.nan),
        (1.0, math.inf),
        (1.0, np.array([0.0, np.nan], dtype=np.float32)),
        (1.0, np.zeros(2)),
        (1.0, np.zeros((2, 2), dtype=np.float32)),
        (np.ones(3, dtype=np.float32), np.zeros(2, dtype=np.float32)),
        (1e-40, 0.0),
    ],
)
def test_wrong_centres_and_vanishing_bounds_are_refused(bounds: float, centres: float) -> None:
    with pytest.raises(QuantisationError):
        Quantiser(bounds, 8, 2, centres)


def test_centres_fix_the_length_of_a_vector() -> None:
    quantiser = Quantiser(1.0, 8, 2, np.zeros(3, dtype=np.float32) + 1)
    with pytest.raises(QuantisationError):
        quantiser.quantise(np.zeros(4, dtype=np.float32), SecretStream(KEY))
    with pytest.raises(QuantisationError):
        quantiser.dequantise_sum(np.zeros(4, dtype=np.uint32), clients=1)


def test_what_overflows_is_clipped() -> None:
    quantiser = Quantiser(1e-3, 8, 2)
    ring = quantiser.quantise(np.array([1e308, -1e308]), SecretStream(KEY))
    assert signed(ring, quantiser.modulus_bits).tolist() == [127, -127]


# scales per channel, from public arrays


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_scales_cover_every_value_they_were_made_from(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(rng.normal(0, 100), 10.0 ** rng.uniform(-6, 6), (rows, columns)).astype(np.float32)
    bias = rng.normal(5, 1, rows)
    scales = ChannelScales.around([matrix, bias])
    assert scales.sizes == (columns,) * rows + (rows,)
    quantiser = scales.quantiser(8, 4)
    assert quantiser.clipped(np.concatenate([matrix.ravel().astype(np.float64), bias])) == 0
    for channel, row in enumerate([*matrix.astype(np.float64), bias]):
        half = (row.max() - row.min()) / 2
        bound = float(scales.bounds[channel])
        assert bound <= half + 1e-6 * np.abs(row).max() + 1e-8 * 1.01  # no wider than float32 makes it


def test_scales_repeat_over_a_channel_and_follow_the_support() -> None:
    scales = ChannelScales.around(
        [np.array([[0.0, 2.0], [4.0, 4.0]]), np.array([-1.0])], headroom=3.0, floor=0.5
    )
    quantiser = scales.quantiser(8, 4)
    assert np.asarray(quantiser.bounds).tolist() == [3.0, 3.0, 0.5, 0.5, 0.5]
    assert np.asarray(quantiser.centres).tolist() == [1.0, 1.0, 4.0, 4.0, -1.0]
    chosen = scales.quantiser(8, 4, Support(5, np.array([1, 4])))
    assert np.asarray(chosen.bounds).tolist() == [3.0, 0.5]
    assert np.asarray(chosen.centres).tolist() == [1.0, -1.0]


def test_scales_per_channel_round_finer_than_one_scale_for_all() -> None:
    # Rows on scales from 1 to 1000: the mean squared rounding error falls by the square of the ratio in most rows.
    rng = np.random.default_rng(5)
    matrix = rng.uniform(-1, 1, (4, 5000)) * np.array([[1.0], [10.0], [100.0], [1000.0]]) + 7.0
    flat = matrix.ravel()
    errors = []
    for quantiser in (
        Quantiser(float(np.abs(flat).max()), 8, 2),
        ChannelScales.around([matrix]).quantiser(8, 2),
    ):
        ring = quantiser.quantise(flat, SecretStream(KEY))
        errors.append((quantiser.dequantise_sum(ring, clients=1) - flat).reshape(4, -1))
    rms = [np.sqrt((error**2).mean(axis=1)) for error in errors]
    assert (rms[1] <= np.ptp(matrix, axis=1) / 2 / 127).all()
    assert (rms[0][:3] > 5 * rms[1][:3]).all()


@pytest.mark.parametrize(
    ("arrays", "arguments"),
    [
        ([], {}),
        ([np.zeros((0, 2))], {}),
        ([np.array([1.0, np.nan])], {}),
        ([np.array([np.inf])], {}),
        ([np.array([1e300])], {}),
        ([np.array([-1e38, 3e38])], {"headroom": 10.0}),
        ([np.ones(2)], {"headroom": 0.5}),
        ([np.ones(2)], {"headroom": math.nan}),
        ([np.ones(2)], {"floor": 0.0}),
        ([np.ones(2)], {"floor": math.inf}),
    ],
)
def test_scales_refuse_what_they_cannot_be_made_of(
    arrays: list[np.ndarray], arguments: dict[str, float]
) -> None:
    with pytest.raises(QuantisationError):
        ChannelScales.around(arrays, **arguments)


@pytest.mark.parametrize(
    ("sizes", "bounds"),
    [((), np.ones(0)), ((2, 0), np.ones(2)), ((2,), np.ones(2)), ((2, 2), np.array([1.0, 0.0]))],
)
def test_wrong_channels_are_refused(sizes: tuple[int, ...], bounds: np.ndarray) -> None:
    with pytest.raises(QuantisationError):
        ChannelScales(sizes, bounds.astype(np.float32), np.zeros(len(sizes), dtype=np.float32))
