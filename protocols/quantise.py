"""Real vectors as integers modulo 2^b, so that sums are exact and can be masked.

A value x within a public bound c of a public centre m becomes the integer round((x-m)·L/c) in [-L, L], with
L = 2^(value_bits-1) - 1. The rounding is stochastic and so unbiased: floor(q) or floor(q)+1, with
P[up] = q - floor(q). A sum s over n clients is read as s·c/L + n·m. Bound and centre may be one number, or one
for each coordinate; `ChannelScales` makes them per channel from public arrays.

No sum overflows. With n ≤ max_clients and b = value_bits + ceil(log2 max_clients),

    |sum| ≤ n·L < n·2^(value_bits-1) ≤ 2^ceil(log2 n)·2^(value_bits-1) ≤ 2^(b-1),

so the sum modulo 2^b, read as a signed integer, is the true sum. Centres do not enter: they are added back in
the reals, after the sum was read.

Scales are public, hence a function of public things only: of an earlier *sum*, never of one client's values. A
scale that one client took from its own maximum would tell that maximum, and could not be summed under masks.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import QuantisationError
from protocols.prg import SecretStream
from protocols.sparsify import Support

MAX_MODULUS_BITS = 32
_SMALLEST_BOUND = float(np.finfo(np.float32).tiny)  # below it, float32 loses the precision of a scale
_BLOCK = 16 * 1024  # coordinates worked on at a time: a few float64 temporaries of 128 KiB stay in cache


@dataclass(frozen=True, eq=False)
class Quantiser:
    """An unbiased map from real vectors to integers modulo 2^`modulus_bits`, and from their sum back.

    Args:
        bounds: public, positive bound on |x - centre|: a float for all coordinates, or float32 of shape (d,).
        value_bits: bits of one client's value with its sign, 2 to 24.
        max_clients: no more clients than this are ever summed.
        centres: public middle of each coordinate's range: a float, or float32 of shape (d,).

    Raises:
        QuantisationError: a parameter is out of range, the modulus would need more than 32 bits, or there
            are not as many centres as bounds.

    Example:
        >>> quantiser = Quantiser(bounds=1.0, value_bits=8, max_clients=5)
        >>> quantiser.levels, quantiser.modulus_bits
        (127, 11)
        >>> ring = quantiser.quantise(np.array([1.0, -1.0, 0.0]), SecretStream())
        >>> quantiser.dequantise_sum(ring)
        array([ 1., -1.,  0.])
        >>> shifted = Quantiser(1.0, 8, 5, centres=10.0)
        >>> shifted.dequantise_sum(shifted.quantise(np.array([11.0, 9.0]), SecretStream()), clients=1)
        array([11.,  9.])
    """

    bounds: float | NDArray[np.float32]
    value_bits: int
    max_clients: int
    centres: float | NDArray[np.float32] = 0.0

    def __post_init__(self) -> None:
        if not 2 <= self.value_bits <= 24:
            raise QuantisationError(f"value_bits must be 2 to 24, not {self.value_bits}")
        if self.max_clients < 1:
            raise QuantisationError(f"max_clients must be at least 1, not {self.max_clients}")
        if self.modulus_bits > MAX_MODULUS_BITS:
            raise QuantisationError(
                f"{self.value_bits} value bits for {self.max_clients} clients need {self.modulus_bits} bits; "
                f"the modulus has at most {MAX_MODULUS_BITS}: lower value_bits"
            )
        object.__setattr__(self, "bounds", _checked_scale("bounds", self.bounds))
        object.__setattr__(self, "centres", _checked_scale("centres", self.centres))
        if not (isinstance(self.bounds, float) or isinstance(self.centres, float)) and (
            self.bounds.size != self.centres.size
        ):
            raise QuantisationError(f"{self.bounds.size} bounds do not go with {self.centres.size} centres")

    @property
    def levels(self) -> int:
        """The largest integer L that one client's value can become."""
        return int(2 ** (self.value_bits - 1)) - 1

    @property
    def modulus_bits(self) -> int:
        """Bits b of the modulus: wide enough that no sum of `max_clients` values overflows."""
        return self.value_bits + (self.max_clients - 1).bit_length()

    @property
    def is_centred(self) -> bool:
        """Whether every range is symmetric about zero, so that a sum is read without knowing of how many."""
        return isinstance(self.centres, float) and self.centres == 0.0

    def quantise(self, values: NDArray[np.floating[Any]], stream: SecretStream) -> NDArray[np.uint32]:
        """Return ring elements, uint32 of shape (d,), whose expectation is `values` clipped to their ranges.

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
        """Return how many coordinates of `values` are outside their range. The count is private data."""
        self._check_vector(values)
        return sum(int(np.count_nonzero(np.abs(q) > self.levels)) for _, q in self._scaled_blocks(values))

    def dequantise_sum(self, ring_sum: NDArray[np.uint32], clients: int | None = None) -> NDArray[np.float64]:
        """Return the SUM of the clients' values, float64 of shape (d,), from the sum of their ring elements.

        Args:
            clients: how many were summed. Needed where centres are not zero: each client's value lacks one.

        Raises:
            QuantisationError: not a uint32 vector of the right length, `clients` is missing or out of range,
                or an entry is beyond what that many honest clients can sum to.
        """
        if ring_sum.ndim != 1 or ring_sum.dtype != np.uint32 or not self._fits(ring_sum.size):
            raise QuantisationError("a ring sum is a uint32 vector with one entry per coordinate")
        if clients is None and not self.is_centred:
            raise QuantisationError(
                "say of how many clients this is the sum: each one's centre is added back"
            )
        if clients is not None and not 1 <= clients <= self.max_clients:
            raise QuantisationError(f"a sum is of 1 to {self.max_clients} clients, not of {clients}")
        half = 2 ** (self.modulus_bits - 1)
        signed = ring_sum.astype(np.int64)
        if signed.size and int(signed.max()) >= 2 * half:
            raise QuantisationError(f"the sum has an entry outside the modulus of {self.modulus_bits} bits")
        signed -= 2 * half * (signed >= half)
        largest = (self.max_clients if clients is None else clients) * self.levels
        if signed.size and int(np.abs(signed).max()) > largest:
            raise QuantisationError("the sum exceeds what honest clients can add up to: somebody spoilt it")
        total = signed * (np.asarray(self.bounds, dtype=np.float64) / self.levels)
        if clients is not None and not self.is_centred:
            total += clients * np.asarray(self.centres, dtype=np.float64)
        return total

    def digest(self) -> bytes:
        """Return 32 bytes that two quantisers share exactly when they encode alike."""
        kind, width = (b"scalar", "<f8") if isinstance(self.bounds, float) else (b"vector", "<f4")
        hasher = hashlib.sha256(b"fedlora-priv/v1/quantiser/" + kind)
        hasher.update(struct.pack("<BI", self.value_bits, self.max_clients))
        hasher.update(np.asarray(self.bounds, dtype=width).tobytes())
        if not self.is_centred:
            kind, width = (b"/scalar", "<f8") if isinstance(self.centres, float) else (b"/vector", "<f4")
            hasher.update(b"/centres" + kind + np.asarray(self.centres, dtype=width).tobytes())
        return hasher.digest()

    def _fits(self, size: int) -> bool:
        """Whether a vector of that length has one bound and one centre per coordinate."""
        return all(isinstance(scale, float) or scale.size == size for scale in (self.bounds, self.centres))

    def _check_vector(self, values: NDArray[np.floating[Any]]) -> None:
        """Raise unless `values` is a finite float vector of the right length."""
        floats = isinstance(values, np.ndarray) and values.dtype in (np.float32, np.float64)
        if not floats or values.ndim != 1 or not self._fits(values.size):
            raise QuantisationError(
                "a vector to quantise is a float array of shape (d,), as long as the bounds"
            )
        if not np.isfinite(values).all():
            raise QuantisationError(
                "the vector has a NaN or an infinity: training diverged, drop this update"
            )

    def _scaled_blocks(
        self, values: NDArray[np.floating[Any]]
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield (x-m)·L/c block by block.

        The division comes before the product, so that |x-m| ≤ c gives |q| ≤ L in spite of rounding: each
        operation rounds monotonically. What overflows is infinite, and clipped like anything too large.
        """
        for start in range(0, values.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            scaled = values[part].astype(np.float64)
            with np.errstate(over="ignore"):
                if not self.is_centred:
                    scaled -= _part(self.centres, part)
                scaled /= _part(self.bounds, part)
                scaled *= self.levels
            yield part, scaled


@dataclass(frozen=True, eq=False)
class ChannelScales:
    """One public bound and one public centre for each channel: a run of coordinates with like values.

    Args:
        sizes: how many coordinates each channel has, in order.
        bounds, centres: float32 of shape (channels,).

    Raises:
        QuantisationError: a channel without coordinates, or not one positive bound and one centre each.

    Example:
        >>> scales = ChannelScales.around([np.array([[1.0, 3.0], [-8.0, 8.0]])])
        >>> scales.centres.tolist(), scales.bounds.tolist(), scales.sizes
        ([2.0, 0.0], [1.0, 8.0], (2, 2))
        >>> scales.quantiser(value_bits=8, max_clients=5).bounds.tolist()
        [1.0, 1.0, 8.0, 8.0]
    """

    sizes: tuple[int, ...]
    bounds: NDArray[np.float32]
    centres: NDArray[np.float32]

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise QuantisationError("there is at least one channel, and each has at least one coordinate")
        for name in ("bounds", "centres"):
            scale = _checked_scale(name, getattr(self, name))
            if isinstance(scale, float) or scale.size != len(self.sizes):
                raise QuantisationError(f"{name} are float32 of shape ({len(self.sizes)},), one a channel")
            object.__setattr__(self, name, scale)

    @staticmethod
    def around(
        arrays: Sequence[NDArray[np.floating[Any]]], *, headroom: float = 1.0, floor: float = 1e-8
    ) -> ChannelScales:
        """Return scales whose ranges cover every value of public `arrays`, such as the last round's mean.

        The channels of an array are its rows (first axis); a vector or a number is one channel. Coordinates
        count in the order of the arrays, each flattened.

        Args:
            headroom: at least 1; half of each range is widened by it. One client's values are spread wider
                than the mean of n clients, by a factor of about sqrt(n) where noise dominates.
            floor: the smallest bound, so that a constant channel can move again.

        Raises:
            QuantisationError: no array, an empty one or one that is not finite, or a bad headroom or floor.

        Source: per-channel affine quantisation as in FLoCoRA (Grativol Ribeiro et al. 2024); there each client scales
            by its own range, which cannot be summed.
        """
        if not (1.0 <= headroom < np.inf and 0.0 < floor < np.inf):
            raise QuantisationError("the headroom must be at least 1 and the floor positive, both finite")
        rows = [_channels(array) for array in arrays]
        sizes = tuple(matrix.shape[1] for matrix in rows for _ in range(matrix.shape[0]))
        lows = np.concatenate([matrix.min(axis=1) for matrix in rows] or [np.zeros(0)])
        highs = np.concatenate([matrix.max(axis=1) for matrix in rows] or [np.zeros(0)])
        with np.errstate(over="ignore"):  # what is too large for float32 is refused as infinite
            centres = (lows / 2 + highs / 2).astype(np.float32)
            reach = np.maximum(highs - centres, centres - lows)  # of the rounded centre
            bounds = np.maximum(headroom * reach, floor)
            rounded = bounds.astype(np.float32)
            rounded[rounded < bounds] = np.nextafter(rounded[rounded < bounds], np.float32(np.inf))
        return ChannelScales(sizes, rounded, centres)

    def quantiser(self, value_bits: int, max_clients: int, support: Support | None = None) -> Quantiser:
        """Return the quantiser of these channels' coordinates, or of those of `support`."""
        bounds, centres = (np.repeat(scale, self.sizes) for scale in (self.bounds, self.centres))
        if support is not None:
            bounds, centres = support.take(bounds), support.take(centres)
        return Quantiser(bounds, value_bits, max_clients, centres)


def _channels(array: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return an array as one row a channel."""
    if array.size == 0 or not np.isfinite(array).all():
        raise QuantisationError("scales are made from arrays that are finite and not empty")
    return array.astype(np.float64).reshape(array.shape[0] if array.ndim > 1 else 1, -1)


def _part(scale: float | NDArray[np.float32], part: slice) -> float | NDArray[np.float64]:
    """Return a scale's block, in double precision."""
    return scale if isinstance(scale, float) else scale[part].astype(np.float64)


def _checked_scale(name: str, scale: float | NDArray[np.float32]) -> float | NDArray[np.float32]:
    """Return bounds or centres as a float or as a read-only float32 copy."""
    values = np.array(scale)
    if not (values.ndim == 0 or (values.ndim == 1 and values.dtype == np.float32)):
        raise QuantisationError(f"{name} are one number, or a float32 vector of shape (d,)")
    if not np.isfinite(values).all():
        raise QuantisationError(f"{name} must be finite")
    if name == "bounds" and not (values >= _SMALLEST_BOUND).all():
        raise QuantisationError(f"every bound must be positive, at least {_SMALLEST_BOUND:.3g}")
    values.flags.writeable = False
    return values if values.ndim else float(values)
