"""Supports: canonical bytes, deterministic choice, and an even chance for every coordinate."""

from __future__ import annotations

import numpy as np
import pytest

from protocols.errors import SupportError
from protocols.sparsify import Support, dense, seeded_random_k, server_topk


def test_take_and_scatter_are_inverse_on_the_support() -> None:
    support = Support(6, np.array([1, 2, 5]))
    vector = np.arange(6, dtype=np.float32) + 10
    assert support.take(vector).tolist() == [11, 12, 15]
    assert support.scatter(support.take(vector)).tolist() == [0, 11, 12, 0, 0, 15]
    assert support.scatter(support.take(vector)).dtype == np.float32
    for wrong in (np.zeros(5), np.zeros((6, 1))):
        with pytest.raises(SupportError):
            support.take(wrong)
    with pytest.raises(SupportError):
        support.scatter(np.zeros(4))


@pytest.mark.parametrize("d", [1, 7, 8, 9, 100])
def test_bytes_round_trip(d: int) -> None:
    for k in {1, (d + 1) // 2, d}:
        support = seeded_random_k(d, k, b"seed")
        data = support.to_bytes()
        assert len(data) == (1 if k == d else 1 + -(-d // 8))
        restored = Support.from_bytes(data, d)
        assert restored == support
        assert restored.indices.tolist() == support.indices.tolist()


def test_the_bitmap_by_hand() -> None:
    assert Support(10, np.array([0, 3, 9])).to_bytes() == b"\x01" + bytes([0b1001, 0b10])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        b"\x00\x00",
        b"\x01",
        b"\x01\x00\x00",  # nobody
        b"\x01\x01",  # too short
        b"\x01\x01\x00\x00",  # too long
        b"\x01\x01\x04",  # a bit beyond the end
        b"\x01\xff\x03",  # everybody, not in its one-byte form
    ],
)
def test_bytes_that_are_not_canonical_are_refused(data: bytes) -> None:
    with pytest.raises(SupportError):
        Support.from_bytes(data, 10)


@pytest.mark.parametrize("indices", [[], [0, 0], [2, 1], [-1, 2], [3, 10], [0.5], [[0], [1]]])
def test_wrong_indices_are_refused(indices: list[int]) -> None:
    with pytest.raises(SupportError):
        Support(10, np.array(indices))


def test_supports_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        dense(3).indices[0] = 2


def test_the_same_seed_gives_the_same_support() -> None:
    first, again, other = (seeded_random_k(1000, 100, seed) for seed in (b"a", b"a", b"b"))
    assert first == again
    assert first != other
    assert first.digest() == again.digest() != other.digest()
    assert len(first) == 100
    # A golden value: every platform must choose alike, or masks would cover different coordinates.
    assert seeded_random_k(20, 5, b"golden").indices.tolist() == GOLDEN


GOLDEN = [4, 7, 10, 13, 16]


def test_random_k_is_even() -> None:
    # 4000 supports of 10 in 40: each coordinate is in 1000 of them, standard deviation sqrt(4000·.25·.75) = 27.
    # 40 coordinates beyond 5 standard deviations: false alarm below 40·5.8e-7 = 2.3e-5; the seeds are fixed.
    counts = np.zeros(40)
    for seed in range(4000):
        counts[seeded_random_k(40, 10, seed.to_bytes(4, "big")).indices] += 1
    assert np.abs(counts - 1000).max() < 5 * 27.4


def test_topk_takes_the_highest_and_ties_by_index() -> None:
    scores = np.array([3.0, 9.0, 3.0, 3.0, 1.0], dtype=np.float32)
    assert server_topk(scores, 3, 0.0, b"").indices.tolist() == [0, 1, 2]


def test_topk_agrees_with_sorting() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 6, 30).astype(np.float64)
        expected = sorted(sorted(range(30), key=lambda i: (-scores[i], i))[:8])
        assert server_topk(scores, 8, 0.0, b"").indices.tolist() == expected


def test_exploration_reaches_what_scores_never_would() -> None:
    scores = np.arange(50, dtype=np.float64)
    seen = set()
    for seed in range(200):
        support = server_topk(scores, 10, 0.2, bytes([seed]))
        assert len(support) == 10
        assert set(range(42, 50)) <= set(support.indices.tolist())
        seen |= set(support.indices.tolist())
    assert seen == set(range(50))
    assert len(server_topk(scores, 10, 1.0, b"x")) == 10


@pytest.mark.parametrize(("k", "fraction"), [(0, 0.1), (6, 0.1), (3, -0.1), (3, 1.1)])
def test_wrong_choices_are_refused(k: int, fraction: float) -> None:
    with pytest.raises(SupportError):
        server_topk(np.zeros(5), k, fraction, b"")


def test_nan_scores_are_refused() -> None:
    with pytest.raises(SupportError, match="NaN"):
        server_topk(np.array([1.0, np.nan]), 1, 0.0, b"")


def test_wrong_dimensions_are_refused() -> None:
    for build in (lambda: dense(0), lambda: seeded_random_k(3, 4, b"")):
        with pytest.raises(SupportError):
            build()
