"""Real vectors as integers modulo 2^b, so that sums are exact and can be masked.

A value x with public bound c becomes the integer round(x·L/c) in [-L, L], L = 2^(value_bits-1) - 1, where the
rounding is stochastic and so unbiased: floor(q) or floor(q)+1, with P[up] = q - floor(q).

No sum overflows. With n ≤ max_clients and b = value_bits + ceil(log2 max_clients),

    |sum| ≤ n·L < n·2^(value_bits-1) ≤ 2^ceil(log2 n)·2^(value_bits-1) ≤ 2^(b-1),

so the sum modulo 2^b, read as a signed integer, is the true sum.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import QuantisationError
from protocols.prg import SecretStream

MAX_MODULUS_BITS = 32
_BLOCK = 16 * 1024  # coordinates worked on at a time: a few float64 temporaries of 128 KiB stay in cache


@dataclass(frozen=True, eq=False)
class Quantiser:
    """An unbiased map from real vectors to integers modulo 2^`modulus_bits`, and from their sum back.

    Args:
        bounds: public, positive bound on |x|: a float for all coordinates, or float32 of shape (d,).
        value_bits: bits of one client's value with its sign, 2 to 24.
        max_clients: no more clients than this are ever summed.

    Raises:
        QuantisationError: a parameter is out of range, or the modulus would need more than 32 bits.

    Example:
        >>> quantiser = Quantiser(bounds=1.0, value_bits=8, max_clients=5)
        >>> quantiser.levels, quantiser.modulus_bits
        (127, 11)
        >>> ring = quantiser.quantise(np.array([1.0, -1.0, 0.0]), SecretStream())
        >>> quantiser.dequantise_sum(ring)
        array([ 1., -1.,  0.])
    """

    bounds: float | NDArray[np.float32]
    value_bits: int
    max_clients: int

    def __post_init__(self) -> None:
        if not 2 <= self.value_bits <= 24:
            raise QuantisationError(f"value_bits must be 2 to 24, not {self.value_bits}")
        if self.max_clients < 1:
            raise QuantisationError(f"max_clients must be at least 1, not {self.max_clients}")
        if self.modulus_bits > MAX_MODULUS_BITS:
            raise QuantisationError(
                f"{self.value_bits} value bits for {self.max_clients} clients need {self.modulus_bits} bits; "
                f"the ring has at most {MAX_MODULUS_BITS}: lower value_bits"
            )
        object.__setattr__(self, "bounds", _checked_bounds(self.bounds))

    @property
    def levels(self) -> int:
        """The largest integer L that one client's value can become."""
        return int(2 ** (self.value_bits - 1)) - 1

    @property
    def modulus_bits(self) -> int:
        """Bits b of the ring: wide enough that no sum of `max_clients` values overflows."""
        return self.value_bits + (self.max_clients - 1).bit_length()

    def quantise(self, values: NDArray[np.floating[Any]], stream: SecretStream) -> NDArray[np.uint32]:
        """Return ring elements, uint32 of shape (d,), whose expectation is `values` clipped to the bounds.

        Raises:
            QuantisationError: not a float vector of the right length, or a NaN or an infinity in it.
        """
        self._check_vector(values)
        ring = np.empty(values.size, dtype=np.uint32)
        modulus_mask = np.int64(2**self.modulus_bits - 1)
        for part, scaled in self._scaled_blocks(values):
            np.clip(scaled, -self.levels, self.levels, out=scaled)
            below = np.floor(scaled)
            scaled -= below  # P[up], exact but for one rounding of at most 2^-54
            below += stream.uniform(scaled.size) < scaled
            ring[part] = below.astype(np.int64) & modulus_mask
        return ring

    def clipped(self, values: NDArray[np.floating[Any]]) -> int:
        """Return how many coordinates of `values` exceed their bound. The count is private data."""
        self._check_vector(values)
        return sum(int(np.count_nonzero(np.abs(q) > self.levels)) for _, q in self._scaled_blocks(values))

    def dequantise_sum(self, ring_sum: NDArray[np.uint32]) -> NDArray[np.float64]:
        """Return the SUM of the clients' values, float64 of shape (d,), from the sum of their ring elements.

        Raises:
            QuantisationError: not a uint32 vector of the right length, or an entry that no `max_clients`
                honest clients can sum to.
        """
        if ring_sum.ndim != 1 or ring_sum.dtype != np.uint32 or not self._fits(ring_sum.size):
            raise QuantisationError("a ring sum is a uint32 vector with one entry per coordinate")
        half = 2 ** (self.modulus_bits - 1)
        signed = ring_sum.astype(np.int64)
        if signed.size and int(signed.max()) >= 2 * half:
            raise QuantisationError(f"the sum has an entry outside the ring of {self.modulus_bits} bits")
        signed -= 2 * half * (signed >= half)
        if signed.size and int(np.abs(signed).max()) > self.max_clients * self.levels:
            raise QuantisationError("the sum exceeds what honest clients can add up to: somebody spoilt it")
        return signed * (np.asarray(self.bounds, dtype=np.float64) / self.levels)

    def digest(self) -> bytes:
        """Return 32 bytes that two quantisers share exactly when they encode alike."""
        kind, width = (b"scalar", "<f8") if isinstance(self.bounds, float) else (b"vector", "<f4")
        hasher = hashlib.sha256(b"fedlora-priv/v1/quantiser/" + kind)
        hasher.update(struct.pack("<BI", self.value_bits, self.max_clients))
        hasher.update(np.asarray(self.bounds, dtype=width).tobytes())
        return hasher.digest()

    def _fits(self, size: int) -> bool:
        """Whether a vector of that length has one bound per coordinate."""
        return isinstance(self.bounds, float) or self.bounds.size == size

    def _check_vector(self, values: NDArray[np.floating[Any]]) -> None:
        """Raise unless `values` is a finite float vector of the right length."""
        if values.ndim != 1 or values.dtype not in (np.float32, np.float64) or not self._fits(values.size):
            raise QuantisationError("a vector to quantise is float32 of shape (d,), as long as the bounds")
        if not np.isfinite(values).all():
            raise QuantisationError(
                "the vector has a NaN or an infinity: training diverged, drop this update"
            )

    def _scaled_blocks(
        self, values: NDArray[np.floating[Any]]
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield x·L/c block by block; x/c comes first, so that |x| ≤ c gives |q| ≤ L in spite of rounding."""
        for start in range(0, values.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            bound = self.bounds if isinstance(self.bounds, float) else self.bounds[part].astype(np.float64)
            scaled = values[part].astype(np.float64)
            scaled /= bound
            scaled *= self.levels
            yield part, scaled


def _checked_bounds(bounds: float | NDArray[np.float32]) -> float | NDArray[np.float32]:
    """Return the bounds as a float or as a read-only float32 copy."""
    values = np.array(bounds)
    if not (values.ndim == 0 or (values.ndim == 1 and values.dtype == np.float32)):
        raise QuantisationError("bounds are one number, or a float32 vector of shape (d,)")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise QuantisationError("every bound must be positive and finite")
    values.flags.writeable = False
    return values if values.ndim else float(values)
