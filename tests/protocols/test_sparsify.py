"""Supports: canonical bytes, deterministic choice, and an even chance for every coordinate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import SupportError
from protocols.sparsify import Support, dense, seeded_random_k, server_topk, support_bytes


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


@pytest.mark.parametrize("d", [1, 7, 8, 9, 100, 1000, 4097])
def test_bytes_round_trip(d: int) -> None:
    for k in {1, (d + 15) // 16, (d + 5) // 6, (d + 1) // 2, d}:
        support = seeded_random_k(d, k, b"seed")
        data = support.to_bytes()
        assert len(data) == support_bytes(d, k)
        assert len(data) <= (1 if k == d else 1 + -(-d // 8))
        restored = Support.from_bytes(data, d)
        assert restored == support
        assert restored.indices.tolist() == support.indices.tolist()


@settings(deadline=None)
@given(st.sets(st.integers(0, 299), min_size=1), st.integers(300, 5000))
def test_any_support_has_one_encoding(indices: set[int], d: int) -> None:
    support = Support(d, np.array(sorted(indices)))
    data = support.to_bytes()
    assert len(data) == support_bytes(d, len(indices))
    assert Support.from_bytes(data, d).indices.tolist() == sorted(indices)
    for at in range(len(data)):  # whatever a flipped bit gives is refused, or another support's own encoding
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            assert Support.from_bytes(flipped, d).to_bytes() == flipped
        except SupportError:
            continue


def test_the_bitmap_by_hand() -> None:
    assert Support(10, np.array([0, 3, 9])).to_bytes() == b"\x01" + bytes([0b1001, 0b10])


def test_few_of_many_by_hand() -> None:
    # d = 1000, k = 2: low = floor(log2 500) = 8 bits. 5 = 0·256 + 5 and 999 = 3·256 + 231, so bits 0 and 3 + 1 of
    # the unary part are set, which has 2 + 3 bits.
    expected = b"\x02" + bytes([2, 0, 0, 0, 5, 231, 0b10001])
    assert Support(1000, np.array([5, 999])).to_bytes() == expected


def test_few_of_many_take_an_eighth_of_a_bitmap() -> None:
    assert support_bytes(1_000_000, 15_625) < 15_700 < 125_000 / 7.9


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        b"\x03",
        b"\x00\x00",
        b"\x01",
        b"\x01\x00\x00",  # nobody
        b"\x01\x01",  # too short
        b"\x01\x01\x00\x00",  # too long
        b"\x01\x01\x04",  # a bit beyond the end
        b"\x01\xff\x03",  # everybody, not in its one-byte form
        b"\x02\x01\x00\x00\x00\x05\x01",  # one index, where a bitmap is shorter
    ],
)
def test_bytes_that_are_not_canonical_are_refused(data: bytes) -> None:
    with pytest.raises(SupportError):
        Support.from_bytes(data, 10)


@pytest.mark.parametrize(
    "data",
    [
        b"\x01" + bytes([0b100000]) + bytes(124),  # a bitmap, where indices are shorter
        bytes([2, 0, 0, 0, 0]),  # nobody
        bytes([2, 0, 0, 0, 255, 5, 231, 0b10001]),  # more than there are
        bytes([2, 2, 0, 0, 0, 5, 231]),  # too short
        bytes([2, 2, 0, 0, 0, 5, 231, 0b10001, 0]),  # too long
        bytes([2, 2, 0, 0, 0, 5, 231, 0b00001]),  # one index less than it says
        bytes([2, 2, 0, 0, 0, 5, 5, 0b00011]),  # the same index twice
        bytes([2, 2, 0, 0, 0, 9, 5, 0b00011]),  # out of order
        bytes([2, 2, 0, 0, 0, 5, 232, 0b10001]),  # 1000 of 1000
        bytes([2, 2, 0, 0, 0, 5, 231, 0b110001]),  # an unused bit
    ],
)
def test_bytes_of_few_indices_that_are_not_canonical_are_refused(data: bytes) -> None:
    with pytest.raises(SupportError):
        Support.from_bytes(data, 1000)


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
