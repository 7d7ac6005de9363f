"""Error feedback: nothing is lost over rounds, the residual stays bounded, and only declared updates enter."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError
from protocols.feedback import ErrorFeedback
from protocols.prg import SecretStream
from protocols.private import PrivateAtClient
from protocols.quantise import ChannelScales, Quantiser
from protocols.sparsify import Support, dense, seeded_random_k, server_topk

KEY = bytes(range(32))


def declared(values: np.ndarray) -> PrivateAtClient:
    """An update as a client declares it."""
    return PrivateAtClient(values, accounted_as="a test")


def send(quantiser: Quantiser, support: Support, values: np.ndarray, stream: SecretStream) -> np.ndarray:
    """What the sum gets of one client's vector, on all coordinates."""
    ring = quantiser.quantise(support.take(values), stream)
    return support.scatter(quantiser.dequantise_sum(ring, clients=1))


def largest(values: np.ndarray, k: int) -> Support:
    """The k largest coordinates of a vector."""
    return server_topk(np.abs(values), k, 0.0, b"")


def test_topk_with_feedback_loses_nothing_and_stays_within_the_bound_of_the_proof() -> None:
    # Top-k of d keeps at least k/d of the squared norm; the bound is derived at the top of feedback.py.
    d, k, rounds = 200, 20, 400
    rng = np.random.default_rng(1)
    shrink = math.sqrt(1 - k / d)
    feedback, total, sent_total = ErrorFeedback(d), np.zeros(d), np.zeros(d)
    for _ in range(rounds):
        update = rng.normal(0.5, 1.0, d)
        update /= np.linalg.norm(update)  # G = 1
        wanted = feedback.compensate(declared(update))
        support = largest(wanted.values, k)
        sent = support.scatter(support.take(wanted.values))
        feedback.record(wanted, sent)
        total += update
        sent_total += sent
        residual = total - sent_total
        # Contraction of this round, and the bound over all rounds (float32 costs 2^-24 a round and coordinate).
        assert np.linalg.norm(residual) <= shrink * np.linalg.norm(wanted.values) + 1e-4
        assert np.linalg.norm(residual) <= shrink / (1 - shrink) + 1e-4
    assert np.linalg.norm(total) > 3 * shrink / (1 - shrink)  # or the bound would say little


def test_without_feedback_topk_loses_what_it_never_sends() -> None:
    d, k, rounds = 50, 5, 200
    update = np.full(d, 0.1)
    update[:k] = 1.0  # these always win
    plain, fed, feedback = np.zeros(d), np.zeros(d), ErrorFeedback(d)
    for _ in range(rounds):
        support = largest(update, k)
        plain += support.scatter(support.take(update))
        wanted = feedback.compensate(declared(update))
        support = largest(wanted.values, k)
        sent = support.scatter(support.take(wanted.values))
        feedback.record(wanted, sent)
        fed += sent
    assert plain[k:].max() == 0.0
    shrink = math.sqrt(1 - k / d)
    bound = shrink / (1 - shrink) * float(np.linalg.norm(update))
    assert np.linalg.norm(rounds * update - fed) <= bound + 1e-3
    assert np.linalg.norm(rounds * update - plain) > 3 * bound


@pytest.mark.parametrize("value_bits", [2, 4, 8])
def test_coarse_rounding_with_feedback_stays_within_one_step(value_bits: int) -> None:
    # Dense and within the bound: each residual is one rounding error, below bound/levels; deterministic.
    d, rounds = 64, 300
    rng = np.random.default_rng(value_bits)
    quantiser = Quantiser(2.0, value_bits, 4)
    step = 2.0 / quantiser.levels
    limit = 2.0 - step if value_bits > 2 else 0.9
    feedback, stream = ErrorFeedback(d), SecretStream(KEY)
    total, sent_total = np.zeros(d), np.zeros(d)
    for _ in range(rounds):
        update = rng.uniform(-limit, limit, d)
        wanted = feedback.compensate(declared(update))
        if value_bits > 2:
            assert quantiser.clipped(wanted.values) == 0
        sent = send(quantiser, dense(d), wanted.values, stream)
        feedback.record(wanted, sent)
        total, sent_total = total + update, sent_total + sent
        if value_bits > 2:
            assert np.abs(total - sent_total).max() <= step + 1e-4
    # With 2 bits values beyond the bound are clipped at times; what was clipped is caught up with later.
    assert np.abs(total - sent_total).max() <= 4 * step


def test_a_shared_random_support_with_channel_scales_tracks_the_true_sum_over_clients() -> None:
    d, k, clients, rounds = 120, 30, 4, 600
    rng = np.random.default_rng(9)
    truth = rng.normal(0, 1, (clients, d)) * 0.05
    scales = ChannelScales((60, 60), np.array([4.0, 4.0], np.float32), np.array([0.1, -0.1], np.float32))
    feedbacks, stream = [ErrorFeedback(d) for _ in range(clients)], SecretStream(KEY)
    total = np.zeros(d)
    for number in range(rounds):
        support = seeded_random_k(d, k, number.to_bytes(4, "big"))
        quantiser = scales.quantiser(8, clients, support)
        ring_sum = np.zeros(k, dtype=np.uint32)
        for client, feedback in enumerate(feedbacks):
            wanted = feedback.compensate(declared(truth[client]))
            ring = quantiser.quantise(support.take(wanted.values), stream)
            ring_sum += ring
            feedback.record(wanted, support.scatter(quantiser.dequantise_sum(ring, clients=1)))
        ring_sum &= np.uint32(2**quantiser.modulus_bits - 1)
        total += support.scatter(quantiser.dequantise_sum(ring_sum, clients))
    # A coordinate waits (k/d = 1/4) more than 64 rounds with probability 0.75^64 = 1e-8; 120 · 600 chances: 7e-4,
    # and the seeds are fixed. What waits is at most 64 updates and one rounding error of each client.
    behind = np.abs(rounds * truth.sum(axis=0) - total)
    assert (behind <= 64 * np.abs(truth).sum(axis=0) + clients * 4.0 / 127 + 1e-3).all()
    mean = total / rounds
    assert np.abs(mean - truth.sum(axis=0)).max() < 0.05 * np.abs(truth.sum(axis=0)).max()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=1, max_size=12))
def test_sent_plus_residual_is_the_sum_of_updates(updates: list[list[float]]) -> None:
    feedback, sent_total = ErrorFeedback(3), np.zeros(3)
    for number, update in enumerate(updates):
        wanted = feedback.compensate(declared(np.array(update)))
        support = seeded_random_k(3, 1, bytes([number]))
        sent = support.scatter(support.take(wanted.values))
        feedback.record(wanted, sent)
        sent_total += sent
    residual = feedback.compensate(declared(np.zeros(3))).values
    np.testing.assert_allclose(sent_total + residual, np.sum(updates, axis=0), rtol=1e-5, atol=1e-2)


def test_a_lost_round_is_sent_again_later() -> None:
    feedback = ErrorFeedback(2)
    wanted = feedback.compensate(declared(np.array([1.0, 2.0])))
    feedback.record(wanted, np.zeros(2))
    assert feedback.compensate(declared(np.array([0.5, 0.5]))).values.tolist() == [1.5, 2.5]


def test_a_snapshot_holds_the_residual_exactly() -> None:
    feedback = ErrorFeedback(5)
    values = np.random.default_rng(2).normal(size=5)
    feedback.record(feedback.compensate(declared(values)), np.zeros(5))
    restored = ErrorFeedback.restore(feedback.snapshot(), 5)
    zero = declared(np.zeros(5))
    assert restored.compensate(zero).values.tolist() == values.astype(np.float32).astype(float).tolist()
    assert restored.snapshot() == feedback.snapshot()
    assert len(feedback.snapshot()) == 9 + 4 * 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\x00",
        lambda data: b"x" + data[1:],
        lambda data: data[:4] + b"\x02" + data[5:],
        lambda data: data[:5] + b"\x04" + data[6:],
        lambda data: data[:-4] + np.array([np.nan], dtype="<f4").tobytes(),
    ],
)
def test_damaged_snapshots_are_refused(damage: object) -> None:
    with pytest.raises(LocalProtocolError):
        ErrorFeedback.restore(damage(ErrorFeedback(5).snapshot()), 5)


def test_a_snapshot_of_another_dimension_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="not a residual of 6"):
        ErrorFeedback.restore(ErrorFeedback(5).snapshot(), 6)


def test_a_bare_array_is_refused() -> None:
    feedback = ErrorFeedback(3)
    with pytest.raises(LocalProtocolError, match="PrivateAtClient"):
        feedback.compensate(np.zeros(3))
    with pytest.raises(LocalProtocolError, match="PrivateAtClient"):
        feedback.record(np.zeros(3), np.zeros(3))


@pytest.mark.parametrize(
    "sent",
    [
        np.zeros(2),
        np.zeros((3, 1)),
        np.zeros(3, dtype=np.int64),
        np.array([0.0, math.nan, 0.0]),
        np.array([0.0, 1e300, 0.0]),
        [0.0, 0.0, 0.0],
    ],
)
def test_a_wrong_record_changes_nothing(sent: np.ndarray) -> None:
    feedback = ErrorFeedback(3)
    wanted = feedback.compensate(declared(np.ones(3)))
    feedback.record(wanted, np.zeros(3))
    before = feedback.snapshot()
    with pytest.raises(LocalProtocolError):
        feedback.record(wanted, sent)
    assert feedback.snapshot() == before


def test_nothing_private_is_shown_or_pickled() -> None:
    update = declared(np.array([12345.678]))
    feedback = ErrorFeedback(1)
    feedback.record(update, np.zeros(1))
    for holder in (update, feedback):
        assert "12345" not in repr(holder)
        with pytest.raises(LocalProtocolError):
            pickle.dumps(holder)
    with pytest.raises(LocalProtocolError) as refused:
        feedback.record(update, np.array([math.nan]))
    assert "12345" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "event"),
    [
        (np.zeros(0), "e"),
        (np.zeros((2, 2)), "e"),
        (np.zeros(2, dtype=np.int64), "e"),
        (np.array([math.nan]), "e"),
        ([1.0], "e"),
        (np.zeros(2), ""),
        (np.zeros(2), "   "),
        (np.zeros(2), "e" * 257),
        (np.zeros(2), None),
    ],
)
def test_a_declaration_needs_a_vector_and_an_event(values: np.ndarray, event: str) -> None:
    with pytest.raises(LocalProtocolError):
        PrivateAtClient(values, accounted_as=event)


@pytest.mark.parametrize("dimension", [0, -1, 2**32])
def test_a_residual_has_a_dimension(dimension: int) -> None:
    with pytest.raises(LocalProtocolError):
        ErrorFeedback(dimension)
