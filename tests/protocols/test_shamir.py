"""Shamir sharing against a brute-force interpolation in Python integers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError
from protocols.prg import SecretStream
from protocols.secagg.shamir import MAX_POINT, PRIME, combine, share_size, split

KEY = bytes(range(32))
SECRET = bytes(range(100, 132))


def brute_force(shares: dict[int, bytes], at: int = 0) -> list[int]:
    """Interpolate every word at a point, with exact fractions modulo the prime."""
    values = []
    for word in range(len(next(iter(shares.values()))) // 4):
        total = 0
        for j, share in shares.items():
            term = int.from_bytes(share[4 * word : 4 * word + 4], "little")
            for m in shares:
                if m != j:
                    term = term * (at - m) * pow(j - m, -1, PRIME) % PRIME
            total = (total + term) % PRIME
        values.append(total)
    return values


def test_the_field_is_a_field() -> None:
    assert all(PRIME % divisor for divisor in range(2, 65537))


def test_any_threshold_of_shares_gives_the_secret() -> None:
    shares = split(SECRET, 3, [1, 2, 5, 9, 65536], SecretStream(KEY))
    words = [int.from_bytes(SECRET[i : i + 2], "little") for i in range(0, 32, 2)]
    for chosen in itertools.combinations(shares, 3):
        subset = {point: shares[point] for point in chosen}
        assert combine(subset, 3, 32) == SECRET
        assert brute_force(subset) == words


def test_the_shares_lie_on_polynomials_of_the_exact_degree() -> None:
    shares = split(SECRET, 4, list(range(1, 9)), SecretStream(KEY))
    first = {point: shares[point] for point in (1, 2, 3, 4)}
    for point in range(5, 9):
        expected = [int.from_bytes(shares[point][4 * i : 4 * i + 4], "little") for i in range(16)]
        assert brute_force(first, at=point) == expected
    assert brute_force({point: shares[point] for point in (1, 2, 3)}) != brute_force(first)


def test_fewer_shares_fit_every_secret() -> None:
    # With 2 of 3 shares known, each candidate for a word is completed by exactly one third share: a bijection.
    shares = split(b"\x12\x34", 3, [1, 2, 3], SecretStream(KEY))
    known = {1: shares[1], 2: shares[2]}
    thirds = set()
    for candidate in range(0, 65536, 257):
        line = {0: candidate.to_bytes(4, "little"), **known}
        thirds.add(brute_force(line, at=3)[0])
    assert len(thirds) == 256


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.binary(min_size=2, max_size=64).filter(lambda s: len(s) % 2 == 0), st.data())
def test_round_trip(secret: bytes, data: st.DataObject) -> None:
    points = data.draw(st.lists(st.integers(1, MAX_POINT), min_size=1, max_size=8, unique=True))
    threshold = data.draw(st.integers(1, len(points)))
    shares = split(secret, threshold, points, SecretStream(KEY))
    assert all(len(share) == share_size(len(secret)) for share in shares.values())
    chosen = data.draw(st.permutations(points))[:threshold]
    assert combine({point: shares[point] for point in chosen}, threshold, len(secret)) == secret


def test_extreme_secrets() -> None:
    for secret in (bytes(32), b"\xff" * 32):
        shares = split(secret, 5, list(range(1, 8)), SecretStream(KEY))
        assert combine({point: shares[point] for point in (2, 3, 5, 6, 7)}, 5, 32) == secret


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [
        (b"", 1, [1]),
        (b"abc", 1, [1]),
        (SECRET, 0, [1, 2]),
        (SECRET, 3, [1, 2]),
        (SECRET, 2, [1, 1]),
        (SECRET, 2, [0, 1]),
        (SECRET, 2, [1, MAX_POINT + 1]),
        (SECRET, 2, [-1, 1]),
    ],
)
def test_wrong_splits_are_refused(secret: bytes, threshold: int, points: list[int]) -> None:
    with pytest.raises(LocalProtocolError):
        split(secret, threshold, points, SecretStream(KEY))


def test_wrong_combinations_are_refused() -> None:
    shares = split(SECRET, 3, [1, 2, 3, 4], SecretStream(KEY))
    three = {point: shares[point] for point in (1, 2, 3)}
    out_of_field = PRIME.to_bytes(4, "little") * 16
    for bad, threshold in (
        (shares, 3),  # four shares where three are needed
        ({1: shares[1], 2: shares[2]}, 3),
        ({}, 0),
        ({**three, 3: shares[3][:-1]}, 3),
        ({**three, 3: shares[3] + b"\0"}, 3),
        ({**three, 3: out_of_field}, 3),
        ({0: shares[1], 2: shares[2], 3: shares[3]}, 3),
        ({MAX_POINT + 1: shares[1], 2: shares[2], 3: shares[3]}, 3),
    ):
        with pytest.raises(LocalProtocolError):
            combine(bad, threshold, 32)


def test_a_word_beyond_16_bits_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="do not determine a secret"):
        combine({1: (65536).to_bytes(4, "little")}, 1, 2)
    assert combine({1: (65535).to_bytes(4, "little")}, 1, 2) == b"\xff\xff"


def test_an_element_has_one_encoding() -> None:
    assert combine({1: (1).to_bytes(4, "little")}, 1, 2) == b"\x01\x00"
    with pytest.raises(LocalProtocolError, match="outside the field"):
        combine({1: (PRIME + 1).to_bytes(4, "little")}, 1, 2)


def test_rejected_words_are_drawn_again() -> None:
    class Scripted:
        """A stream whose first words are outside the field."""

        def __init__(self, *parts: bytes) -> None:
            self.parts = list(parts)

        def bytes(self, n: int) -> bytes:
            part = self.parts.pop(0)
            assert len(part) == n
            return part

    bad, good = (2**32 - 1).to_bytes(4, "little"), (7).to_bytes(4, "little")
    stream = Scripted(good + bad, PRIME.to_bytes(4, "little"), good)
    shares = split(b"\x01\x00\x02\x00", 2, [1, 3], stream)
    assert shares[1] == (8).to_bytes(4, "little") + (9).to_bytes(4, "little")
    assert shares[3] == (22).to_bytes(4, "little") + (23).to_bytes(4, "little")
    assert stream.parts == []


def test_a_thousand_holders_at_once() -> None:
    shares = split(SECRET, 501, list(range(1, 1001)), SecretStream(KEY))
    assert combine({point: shares[point] for point in range(400, 901)}, 501, 32) == SECRET
