"""Shamir secret sharing of byte strings, for all holders and all words at once.

The field is GF(p), p = 2^32 - 5, and the secret is cut into 16-bit words. So products of two elements fit
into 64 bits and numpy evaluates one polynomial per word at every point together. A share of a 32-byte secret
is 16 elements of 4 bytes. Any `threshold` shares determine the secret; fewer are independent of it.
Source: Shamir 1979.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.errors import LocalProtocolError
from protocols.prg import SecretStream

PRIME = 2**32 - 5
MAX_POINT = 2**16  # keeps point · element below 2^48, so that Horner's step never overflows


def share_size(secret_size: int) -> int:
    """Return the bytes of one share of a secret of that many bytes."""
    return 2 * secret_size


def split(secret: bytes, threshold: int, points: Sequence[int], stream: SecretStream) -> dict[int, bytes]:
    """Return one share for each evaluation point; any `threshold` of them give the secret back.

    Args:
        secret: a non-empty, even number of bytes.
        points: distinct, 1 to 65536; at least `threshold` of them.
        stream: where the coefficients come from.

    Raises:
        LocalProtocolError: an argument is out of range.
    """
    if not secret or len(secret) % 2:
        raise LocalProtocolError("a secret to share is a positive, even number of bytes")
    _check_points(points)
    if not 1 <= threshold <= len(points):
        raise LocalProtocolError(f"{len(points)} shares cannot have threshold {threshold}")
    words = np.frombuffer(secret, dtype="<u2").astype(np.uint64)
    x = np.array(points, dtype=np.uint64)[:, None]
    values = np.zeros((len(points), words.size), dtype=np.uint64)
    for coefficients in _uniform_elements(threshold - 1, words.size, stream):
        values = (values + coefficients) * x % np.uint64(PRIME)  # Horner: below (2^32 + 2^32)·2^16
    values = (values + words) % np.uint64(PRIME)
    return {point: row.astype("<u4").tobytes() for point, row in zip(points, values, strict=True)}


def combine(shares: Mapping[int, bytes], threshold: int, secret_size: int) -> bytes:
    """Return the secret of `secret_size` bytes from exactly `threshold` shares by point.

    Raises:
        LocalProtocolError: the number of shares, a point, a share's length or an element is out of range, or
            the shares are not of one 16-bit secret (then their dealer or a holder lied).
    """
    if len(shares) != threshold or threshold < 1:
        raise LocalProtocolError(f"exactly {threshold} shares are combined, not {len(shares)}")
    _check_points(list(shares))
    points = tuple(sorted(shares))
    elements = np.stack([_elements(shares[point], secret_size) for point in points])
    weights = np.array(_lagrange_at_zero(points), dtype=np.uint64)[:, None]
    words: NDArray[np.uint64] = (elements * weights % np.uint64(PRIME)).sum(axis=0) % np.uint64(PRIME)
    if (words >> np.uint64(16)).any():
        raise LocalProtocolError("the shares do not determine a secret: a word is out of range")
    return words.astype("<u2").tobytes()


def _elements(share: bytes, secret_size: int) -> NDArray[np.uint64]:
    """Return a share's field elements."""
    if len(share) != share_size(secret_size):
        raise LocalProtocolError(f"a share of {secret_size} bytes takes {share_size(secret_size)} bytes")
    elements = np.frombuffer(share, dtype="<u4").astype(np.uint64)
    if (elements >= PRIME).any():
        raise LocalProtocolError("a share has an element outside the field")
    return elements


def _check_points(points: Sequence[int]) -> None:
    """Raise unless the points are distinct and in range; at the point 0 is the secret itself."""
    if len(set(points)) != len(points) or not all(1 <= point <= MAX_POINT for point in points):
        raise LocalProtocolError(f"evaluation points must be distinct, from 1 to {MAX_POINT}")


def _uniform_elements(rows: int, columns: int, stream: SecretStream) -> NDArray[np.uint64]:
    """Return uniform field elements by rejection: a 32-bit word of 2^32-5 or more is drawn again."""
    elements = np.frombuffer(stream.bytes(4 * rows * columns), dtype="<u4").astype(np.uint64)
    while (rejected := np.flatnonzero(elements >= PRIME)).size:
        elements[rejected] = np.frombuffer(stream.bytes(4 * rejected.size), dtype="<u4")
    return elements.reshape(rows, columns)


@functools.lru_cache(maxsize=64)  # the same survivors recover many secrets; points are public
def _lagrange_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Return the weights λ_j = Π x_m / (x_m - x_j) that evaluate the interpolant at zero."""
    x = np.array(points, dtype=np.int64)
    numerator = np.ones(x.size, dtype=np.uint64)
    denominator = np.ones(x.size, dtype=np.uint64)
    for m, point in enumerate(points):
        others = np.arange(x.size) != m
        difference = ((point - x) % PRIME).astype(np.uint64)
        numerator[others] = numerator[others] * np.uint64(point) % np.uint64(PRIME)
        denominator[others] = denominator[others] * difference[others] % np.uint64(PRIME)
    pairs = zip(numerator.tolist(), denominator.tolist(), strict=True)
    return tuple(top * pow(bottom, -1, PRIME) % PRIME for top, bottom in pairs)
