"""Public scales: they find the spread of one client's values from sums alone, at any number of bits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.communication.scales import (
    Channels,
    Scales,
    headroom,
    lora_channels,
    noise_share_scale,
    relative_error,
    relative_spread,
)
from fedlora_priv.methods.layout import Layout, LoraModule
from protocols.errors import QuantisationError
from protocols.prg import SecretStream
from protocols.quantise import Quantiser
from protocols.sparsify import dense, seeded_random_k

KEY = bytes(range(32))
CLIENTS = 10


def mean_of_clients(
    scales: Scales, spreads: np.ndarray, rng: np.random.Generator, stream: SecretStream
) -> np.ndarray:
    """The mean that a server sees of independent values with these spreads, quantised."""
    quantiser = scales.quantiser()
    total = np.zeros(scales.channels.index.size, dtype=np.uint32)
    for _ in range(CLIENTS):
        values = rng.standard_normal(total.size) * spreads[scales.channels.index]
        total += quantiser.quantise(values, stream)
    return quantiser.dequantise_sum(total & np.uint32(2**quantiser.modulus_bits - 1)) / CLIENTS


@pytest.mark.parametrize("value_bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("wrong_by", [1 / 50, 50.0])
def test_scales_find_the_spread_of_every_channel_from_wherever_they_begin(
    value_bits: int, wrong_by: float
) -> None:
    # 1600 coordinates a channel: their mean square has a relative deviation of √(2/1600) = 3.5 %, σ of half that with
    # many bits and of about twice it with two, where g is flat; seeds are fixed. 3 rounds of a factor 4 cover 50.
    channels = Channels(np.repeat(np.arange(4, dtype=np.int32), 1600))
    spreads = np.array([1.0, 0.01, 30.0, 1e-4])
    rng, stream = np.random.default_rng(value_bits), SecretStream(KEY)
    scales = Scales(channels, spreads * wrong_by, value_bits, CLIENTS)
    for _ in range(8):
        scales = scales.after(mean_of_clients(scales, spreads, rng, stream), dense(6400), CLIENTS)
    assert np.abs(np.log(scales.spreads / spreads)).max() < 0.25
    np.testing.assert_allclose(scales.bounds, headroom(value_bits) * scales.spreads, rtol=1e-6)


def test_a_rule_that_takes_rounding_for_signal_grows_without_end() -> None:
    # What `Scales.after` must not do: at two bits the mean's largest entry is mostly rounding.
    channels = Channels(np.zeros(2000, np.int32))
    rng, stream = np.random.default_rng(0), SecretStream(KEY)
    naive = ours = Scales(channels, np.ones(1), 2, CLIENTS)
    for _ in range(12):
        loudest = np.abs(mean_of_clients(naive, np.ones(1), rng, stream)).max()
        naive = Scales(channels, np.array([2 * math.sqrt(CLIENTS) * loudest / headroom(2)]), 2, CLIENTS)
        ours = ours.after(mean_of_clients(ours, np.ones(1), rng, stream), dense(2000), CLIENTS)
    assert naive.spreads[0] > 20
    assert 0.8 < ours.spreads[0] < 1.25


def test_what_did_not_travel_keeps_its_scale_and_a_little_moves_it_little() -> None:
    channels = Channels(np.array([0] * 50 + [1] * 50, dtype=np.int32))
    scales = Scales(channels, np.array([1.0, 1.0]), 8, CLIENTS)
    support = seeded_random_k(50, 4, b"x")  # of the first channel
    wide = type(support)(100, support.indices)
    after = scales.after(np.full(100, 0.5), wide, CLIENTS)
    assert after.spreads[1] == 1.0
    assert 1.0 < after.spreads[0] < 1.4  # 4 observations against a memory of 16
    assert (
        scales.after(np.zeros(100), dense(100), CLIENTS).spreads.min() >= 0.25
    )  # no more than a factor of 4


@pytest.mark.parametrize("value_bits", [2, 3, 5, 8])
def test_the_second_moment_of_what_travels_is_as_stated(value_bits: int) -> None:
    # The quantiser itself against the integral. Squares lie in [0, 1], so the mean of 200,000 has a standard deviation
    # of at most 0.5/√200,000 = 1.1e-3; 6 of those are exceeded with probability 2e-9.
    x = np.random.default_rng(1).standard_normal(200_000)
    for u in (0.05, 0.3, 1.0, 3.0):
        quantiser = Quantiser(1.0, value_bits, 1)
        sent = quantiser.dequantise_sum(quantiser.quantise(u * x, SecretStream(KEY)))
        moment = float(np.mean(sent**2))
        low, high = relative_spread(np.array([moment - 6.7e-3, moment + 6.7e-3]), value_bits)
        assert low < u < high


@pytest.mark.parametrize("value_bits", [2, 4, 6])
def test_the_headroom_is_the_best_one_and_its_error_is_as_stated(value_bits: int) -> None:
    x = np.random.default_rng(2).standard_normal(100_000)

    def error(c: float) -> float:
        quantiser = Quantiser(c, value_bits, 1)
        sent = quantiser.dequantise_sum(quantiser.quantise(x, SecretStream(KEY)))
        return float(np.mean((sent - x) ** 2))

    best = error(headroom(value_bits))
    assert best == pytest.approx(relative_error(value_bits), rel=0.03)
    assert best < error(0.7 * headroom(value_bits))
    assert best < error(1.5 * headroom(value_bits))


def test_more_bits_are_never_worse() -> None:
    errors = [relative_error(bits) for bits in range(2, 17)]
    assert all(a > b for a, b in itertools.pairwise(errors))


def test_channels_of_a_lora_are_its_components() -> None:
    layout = Layout((LoraModule("m", 3, 4, 2, 1.0),), {"head.weight": (2, 3), "head.bias": (2,)})
    shapes = layout.shapes()
    assert list(shapes) == ["head.bias", "head.weight", "m.lora_A", "m.lora_B"]
    index = lora_channels(layout, shapes).index.tolist()
    assert index == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 6, 5, 6, 5, 6]
    sketch = lora_channels(layout, {"m.lora_B": (3, 2), "m.sketch": (3, 2)})
    assert sketch.index.tolist() == [0, 1, 0, 1, 0, 1, 2, 2, 2, 2, 2, 2]


def test_channels_of_a_convolution_are_its_output_channels() -> None:
    index = Channels.along({"conv": (2, 3, 2, 2)}, {"conv": 0}).index
    assert index.tolist() == [0] * 12 + [1] * 12


def test_clients_get_the_same_quantiser_from_four_bytes_a_channel() -> None:
    scales = Scales(Channels(np.array([0, 1, 1])), np.array([0.3, 7.0]), 4, CLIENTS)
    bounds = np.frombuffer(scales.to_bytes(), "<f4")
    assert len(scales.to_bytes()) == 8
    same = Quantiser(bounds[scales.channels.index].astype(np.float32), 4, CLIENTS)
    assert same.digest() == scales.quantiser().digest()


def test_a_scale_for_noise_shares_puts_the_tails_at_half_the_ring() -> None:
    arguments = {"clients": 20, "clip_norm": 0.7, "noise_stddev": 0.02, "dimension": 4096}
    for bits, tails in ((12, 4.0), (20, 6.0)):
        scale = noise_share_scale(modulus_bits=bits, tails=tails, **arguments)
        signal = 0.7**2 * 20**2 / 4096
        stddev = scale * math.sqrt(signal + 20 * 0.02**2 + 20 / (4 * scale**2))  # in integers
        assert tails * stddev == pytest.approx(2 ** (bits - 1), rel=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"spreads": np.array([1.0, 0.0])},
        {"spreads": np.array([1.0, -1.0])},
        {"spreads": np.array([1.0, math.nan])},
        {"spreads": np.array([1.0, math.inf])},
        {"spreads": np.array([1.0])},
        {"value_bits": 1},
        {"value_bits": 17},
    ],
)
def test_scales_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    arguments = {"spreads": np.ones(2), "value_bits": 8, "max_clients": 5, **changes}
    with pytest.raises(CommunicationError):
        Scales(Channels(np.array([0, 1])), **arguments)


def test_bits_that_cannot_hold_the_sum_are_refused() -> None:
    with pytest.raises(QuantisationError, match="lower value_bits"):
        Scales(Channels(np.zeros(1, np.int32)), np.ones(1), 16, 2**17).quantiser()
    with pytest.raises(CommunicationError, match="cannot hold the rounding"):
        noise_share_scale(modulus_bits=4, clients=100, clip_norm=1.0, noise_stddev=1.0, dimension=10)


def test_what_is_no_mean_is_refused() -> None:
    scales = Scales(Channels(np.array([0, 0])), np.ones(1), 8, 5)
    for mean, clients in (
        (np.zeros(3), 5),
        (np.array([0.0, math.nan]), 5),
        (np.zeros(2), 0),
        (np.zeros(2), 6),
    ):
        with pytest.raises(CommunicationError):
            scales.after(mean, dense(2), clients)
    for index in (np.array([0, 2]), np.array([-1, 0]), np.zeros(0), np.zeros((2, 2))):
        with pytest.raises(CommunicationError):
            Channels(index.astype(np.int32))
    for bad in (0.0, math.nan, math.inf, -1.0):
        with pytest.raises(CommunicationError):
            noise_share_scale(modulus_bits=16, clients=5, clip_norm=bad, noise_stddev=1.0, dimension=10)
