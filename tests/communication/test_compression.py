"""Supports, scales, tiers and feedback together: nothing overflows, nothing is biased, nothing is lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora_priv.communication.scales import Channels, Scales
from protocols.feedback import ErrorFeedback
from protocols.prg import SecretStream
from protocols.private import PrivateAtClient
from protocols.sparsify import Support, dense, seeded_random_k, server_topk
from protocols.tiers import Tiers, nested_topk

KEY = bytes(range(32))


def signed(ring: np.ndarray, bits: int) -> list[int]:
    return [x - 2**bits if x >= 2 ** (bits - 1) else x for x in ring.tolist()]


@settings(deadline=None, max_examples=80)
@given(st.data(), st.integers(2, 16), st.integers(1, 40))
def test_no_sum_overflows_under_any_density_mix(data: st.DataObject, value_bits: int, clients: int) -> None:
    # Values far beyond every bound, all of one sign or mixed; the modular sum must be the true sum of integers.
    d = 24
    sizes = sorted(data.draw(st.sets(st.integers(1, d), min_size=1, max_size=3)))
    supports = nested_topk(np.arange(d, dtype=np.float64), sizes, 0.5, b"x")
    tier_of = {f"client-{i}": i % len(sizes) for i in range(max(clients, len(sizes)))}
    tiers = Tiers(supports, tier_of)
    channels = Channels(np.arange(d, dtype=np.int32) % 3)
    scales = Scales(channels, np.array([1e-6, 1.0, 1e6]), value_bits, len(tier_of))
    sign = data.draw(st.sampled_from([1.0, -1.0, 0.0]))
    rng, stream = np.random.default_rng(value_bits * 100 + clients), SecretStream(KEY)
    quantiser = scales.quantiser()
    truth = np.zeros(d, dtype=object)
    by_band = [np.zeros(len(band.support), dtype=np.uint32) for band in tiers.bands]
    for client_id in tier_of:
        values = rng.standard_normal(d) * 1e9
        ring = quantiser.quantise(np.abs(values) * sign if sign else values, stream)
        for total, part in zip(by_band, tiers.parts(client_id, ring), strict=False):
            total += part
        truth += tiers.support_of(client_id).scatter(
            tiers.support_of(client_id).take(np.array(signed(ring, quantiser.modulus_bits)))
        )
    mask = np.uint32(2**quantiser.modulus_bits - 1)
    total = tiers.join([part & mask for part in by_band])
    assert signed(total, quantiser.modulus_bits) == truth.tolist()


def test_random_k_times_d_over_k_is_unbiased() -> None:
    # Over 4000 seeds, coordinate i of (d/k)·P x has mean x_i and standard deviation |x_i|·√((d-k)/k) = 1.73·|x_i|; the
    # mean of 4000 deviates by more than 6·1.73·|x_i|/√4000 with probability 2e-9 a coordinate. Seeds are fixed.
    d, k, seeds = 32, 8, 4000
    x = np.random.default_rng(0).standard_normal(d)
    total = np.zeros(d)
    for seed in range(seeds):
        support = seeded_random_k(d, k, seed.to_bytes(4, "big"))
        total += d / k * support.scatter(support.take(x))
    assert (np.abs(total / seeds - x) <= 6 * math.sqrt((d - k) / k) * np.abs(x) / math.sqrt(seeds)).all()


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(3, 10), st.integers(1, 64))
def test_topk_and_rounding_together_still_contract(seed: int, value_bits: int, k: int) -> None:
    # ‖x - Q(P x)‖² ≤ (1 - k/d)·‖x‖² + k·step²: what top-k leaves out, and less than one step where it does not, as
    # long as nothing is clipped.
    d = 64
    x = np.random.default_rng(seed).standard_normal(d)
    scales = Scales(Channels(np.zeros(d, np.int32)), np.array([4.0]), value_bits, 1)
    support = server_topk(np.abs(x), k, 0.0, b"")
    quantiser = scales.quantiser(support)
    assert quantiser.clipped(support.take(x)) == 0
    sent = quantiser.dequantise_sum(quantiser.quantise(support.take(x), SecretStream(KEY)))
    step = float(scales.bounds[0]) / quantiser.levels
    left = float(np.sum((x - support.scatter(sent)) ** 2))
    assert left <= (1 - k / d) * float(x @ x) + k * step**2 * (1 + 1e-6)


@pytest.mark.parametrize("value_bits", [2, 4])
def test_over_rounds_clients_of_every_tier_lose_nothing(value_bits: int) -> None:
    # 6 clients in three tiers, 120 rounds, a new nested random support each: what a client wanted to send, less what
    # was sent, is one residual, however coarse the values and however thin the tier. Deterministic. What a thin tier
    # sends at once has waited for 16 rounds on average, and the scale must have room for that.
    d, rounds = 96, 120
    rng, stream = np.random.default_rng(value_bits), SecretStream(KEY)
    tier_of = {f"client-{i}": i // 2 for i in range(6)}
    wishes = {client_id: 0.02 * rng.standard_normal(d) for client_id in tier_of}
    feedback = {client_id: ErrorFeedback(d) for client_id in tier_of}
    arrived = {client_id: np.zeros(d) for client_id in tier_of}
    scales = Scales(Channels(np.zeros(d, np.int32)), np.array([1.0]), value_bits, 6)
    quantiser = scales.quantiser()
    for number in range(rounds):
        tiers = Tiers(nested_topk(np.zeros(d), (6, 24, 96), 1.0, number.to_bytes(4, "big")), tier_of)
        by_band = [np.zeros(len(band.support), dtype=np.uint32) for band in tiers.bands]
        total = np.zeros(d)
        for client_id, wish in wishes.items():
            wanted = feedback[client_id].compensate(PrivateAtClient(wish, accounted_as="a test"))
            ring = quantiser.quantise(wanted.values, stream)
            for part, own in zip(by_band, tiers.parts(client_id, ring), strict=False):
                part += own
            support = tiers.support_of(client_id)
            sent = support.scatter(support.take(quantiser.dequantise_sum(ring, clients=1)))
            feedback[client_id].record(wanted, sent)
            arrived[client_id] += sent
            total += sent
        mask = np.uint32(2**quantiser.modulus_bits - 1)
        sums = [
            scales.quantiser(band.support).dequantise_sum(part & mask)
            for band, part in zip(tiers.bands, by_band, strict=True)
        ]
        np.testing.assert_allclose(tiers.join(sums), total, atol=1e-9)
    for client_id, wish in wishes.items():
        wanted_in_all = rounds * wish
        assert np.linalg.norm(wanted_in_all - arrived[client_id]) < 0.3 * np.linalg.norm(wanted_in_all)
        residual = feedback[client_id].compensate(PrivateAtClient(np.zeros(d), accounted_as="a test"))
        np.testing.assert_allclose(residual.values, wanted_in_all - arrived[client_id], atol=1e-3)


def test_scales_follow_a_sparse_mean_as_they_follow_a_dense_one() -> None:
    d, clients = 4000, 8
    rng, stream = np.random.default_rng(1), SecretStream(KEY)
    thin = full = Scales(Channels(np.zeros(d, np.int32)), np.array([1.0]), 4, clients)
    for number in range(6):
        supports: tuple[Support, Support] = (seeded_random_k(d, d // 8, bytes([number])), dense(d))
        means = []
        for scales, support in zip((thin, full), supports, strict=True):
            quantiser = scales.quantiser(support)
            total = np.zeros(len(support), dtype=np.uint32)
            for _ in range(clients):
                total += quantiser.quantise(support.take(0.05 * rng.standard_normal(d)), stream)
            ring_sum = total & np.uint32(2**quantiser.modulus_bits - 1)
            means.append(support.scatter(quantiser.dequantise_sum(ring_sum)) / clients)
        thin = thin.after(means[0], supports[0], clients)
        full = full.after(means[1], supports[1], clients)
    assert thin.spreads[0] == pytest.approx(0.05, rel=0.2)
    assert full.spreads[0] == pytest.approx(0.05, rel=0.1)
