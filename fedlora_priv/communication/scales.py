"""How coarse a value may be: public scales, one a channel, that follow the sums of earlier rounds.

A value travels as one of 2L + 1 integers in ±L, L = 2^(bits-1) - 1, between the bounds ±c of its channel
(`protocols.quantise`). c is a trade: too small clips, too large rounds coarsely. For Gaussian values of standard
deviation σ there is a best c/σ for each number of bits, `headroom`; what is left is to know σ, the *spread* of one
client's values, of which the server has only sums.

*From a sum to the spread.* Values of n clients that are independent about zero, as noised updates are, have a mean of
variance σ²/n. So n·mean² estimates σ²; but it also holds the variance of stochastic rounding, which at few bits is
the larger part (with two bits nearly all of it), and it lacks what was clipped. A scale that took that for signal would
grow from round to round without end. Both effects depend on u = σ/c alone: an integer that came of a Gaussian value
has the second moment

    E[Q²]/L² = g(u) = E[min(u|x|, 1)²] + E[f(1 - f)]/L²,    f the fractional part of L·min(u|x|, 1),

which grows with u, so u = g⁻¹(n·mean²/c²). Where clients agree instead of being independent, n·mean² is up to n times
too much and c up to √n too wide: that costs bits, never a bias.

*Channels.* FLoCoRA scales each output channel by its own range. A row of a LoRA B has only r entries, too few to
estimate anything from, and a scale each would cost as much as the values. Here a channel is a LoRA *component*: a row
of A, and the column of B that goes with it (`lora_channels`); components are what differs in size.

*Noise shares.* Where noise is added by all together, clipping one coordinate's noise would break the guarantee, so
there is one scale for all, made of the planned noise: `noise_share_scale`.

Sources: FLoCoRA (Grativol Ribeiro et al. 2024) for scales by channel; Kairouz, Liu, Steinke 2021, section 4 for noise
shares; the estimate from sums is ours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.methods.layout import Layout, Shapes
from protocols.quantise import Quantiser
from protocols.sparsify import Support

MEMORY = 16
"""As many earlier observations count as the last spread does: a channel of which little travelled moves little."""

LARGEST_STEP = 4.0
"""A spread grows or shrinks by at most this factor in a round."""

FINE = 100.0
"""With so many integers to a standard deviation, the points of an integral would alias with them; f(1 - f) is 1/6 on
average, up to exp(-2π²·100²)."""

SMALLEST_SPREAD = 1e-12
"""Below this a channel counts as standing still."""


@dataclass(frozen=True)
class Channels:
    """Which channel each coordinate of an upload belongs to.

    Args:
        index: int32 of shape (dimension,), from 0.

    Raises:
        CommunicationError: not such a vector, or a channel without coordinates.
    """

    index: NDArray[np.int32]

    def __post_init__(self) -> None:
        index = np.array(self.index, dtype=np.int32)
        if index.ndim != 1 or index.size == 0 or index.min() < 0 or not np.bincount(index).all():
            raise CommunicationError(
                "channels are numbered from 0, and each has a coordinate", "renumber them"
            )
        index.flags.writeable = False
        object.__setattr__(self, "index", index)

    @property
    def count(self) -> int:
        """How many channels there are."""
        return int(self.index.max()) + 1

    @staticmethod
    def along(shapes: Shapes, axes: Mapping[str, int | None]) -> Channels:
        """Return one channel for each place on an array's axis, or one for the whole array where the axis is None.

        Args:
            shapes: the arrays in the order in which an upload is flattened.
            axes: by name.
        """
        parts, start = [], 0
        for name, shape in shapes.items():
            axis = axes[name]
            grid = np.zeros(shape, np.int32)
            if axis is not None:
                along = np.arange(shape[axis], dtype=np.int32)
                grid += along.reshape([-1 if i == axis else 1 for i in range(len(shape))])
            parts.append(start + grid.ravel())
            start += 1 if axis is None else shape[axis]
        return Channels(np.concatenate(parts or [np.zeros(0, np.int32)]))


def lora_channels(layout: Layout, shapes: Shapes) -> Channels:
    """Return the channels of an upload: rows of A and the head, columns of B; else whole arrays."""
    return Channels.along(shapes, {name: _axis(layout, name, shape) for name, shape in shapes.items()})


def channel_shapes(layout: Layout, shapes: Shapes) -> Shapes:
    """Return for each array the shape of one number a channel, with ones on all other axes: it broadcasts.

    The numbers of all arrays one after another are in the order of `lora_channels`.

    Example:
        >>> from fedlora_priv.methods.layout import LoraModule
        >>> layout = Layout((LoraModule("m", 30, 40, 8, 1.0),), {})
        >>> channel_shapes(layout, {"m.lora_A": (8, 40), "m.lora_B": (30, 8), "m.sketch": (30, 8)})
        {'m.lora_A': (8, 1), 'm.lora_B': (1, 8), 'm.sketch': (1, 1)}
    """
    axes = {name: _axis(layout, name, shape) for name, shape in shapes.items()}
    return {
        name: tuple(size if i == axes[name] else 1 for i, size in enumerate(shape))
        for name, shape in shapes.items()
    }


def _axis(layout: Layout, name: str, shape: tuple[int, ...]) -> int | None:
    """Return along which axis an array's channels are; None where it is one channel."""
    try:
        role = layout.role(name)
    except KeyError:  # a map of a product, or a count
        return None
    if len(shape) < 2 or role in ("R", "base"):  # R is small: its rows are too short to tell them apart
        return None
    return 1 if role == "B" else 0


@dataclass(frozen=True)
class Scales:
    """The spread of one client's values in every channel: public, from sums.

    Args:
        channels: which coordinate is in which.
        spreads: standard deviations, float64 of shape (channels,), positive.
        value_bits: bits of one client's value, sign included, 2 to 16.
        max_clients: no more clients than this are summed.
        room: how many times wider than the best bound for Gaussian values a bound is, at least 1.

    Raises:
        CommunicationError: a spread is zero, negative or not finite, there is not one for each channel,
            value_bits is out of range, or there is less room than 1.

    Example:
        >>> channels = Channels(np.array([0, 0, 1]))
        >>> scales = Scales(channels, np.array([1.0, 0.1]), value_bits=4, max_clients=10)
        >>> quantiser = scales.quantiser()
        >>> quantiser.modulus_bits, [round(float(c), 3) for c in quantiser.bounds]
        (8, [2.27, 2.27, 0.227])
    """

    channels: Channels
    spreads: NDArray[np.float64] = field(repr=False)
    value_bits: int
    max_clients: int
    room: float = 1.0

    def __post_init__(self) -> None:
        spreads = np.array(self.spreads, dtype=np.float64)
        if spreads.shape != (self.channels.count,):
            raise CommunicationError(f"there are {self.channels.count} channels and {spreads.size} spreads")
        if not np.isfinite(spreads).all() or not (spreads > 0).all():
            raise CommunicationError(
                "a spread is zero, negative or not finite", "training diverged: start again"
            )
        if not 1.0 <= self.room < math.inf:
            raise CommunicationError(f"a bound has room for 1 time the best one or more, not for {self.room}")
        _check_bits(self.value_bits)
        spreads.flags.writeable = False
        object.__setattr__(self, "spreads", spreads)

    @property
    def bounds(self) -> NDArray[np.float32]:
        """The largest magnitude that travels, by channel, float32."""
        return np.asarray(self.room * headroom(self.value_bits) * self.spreads, dtype=np.float32)

    def quantiser(self, support: Support | None = None) -> Quantiser:
        """Return the quantiser of all coordinates, or of those of `support`."""
        bounds = self.bounds[self.channels.index]
        return Quantiser(
            bounds if support is None else support.take(bounds), self.value_bits, self.max_clients
        )

    def after(
        self, mean: NDArray[np.float64], support: Support, clients: int | NDArray[np.integer[Any]]
    ) -> Scales:
        """Return the scales of the next round, from the mean of this one: a function of public things only.

        Args:
            mean: over the survivors, float64 of shape (dimension,).
            support: what travelled.
            clients: how many survivors there were; of shape (k,), in the support's order, where some sent less.

        Raises:
            CommunicationError: the mean has another length or is not finite, or is over no client.
        """
        if mean.shape != self.channels.index.shape or not np.isfinite(mean).all():
            raise CommunicationError("a mean has one finite value for each coordinate", "drop this round")
        n = np.broadcast_to(np.asarray(clients), (len(support),))
        if len(support) and not 1 <= n.min() <= n.max() <= self.max_clients:
            raise CommunicationError(f"a mean is over 1 to {self.max_clients} clients, not over {clients}")
        index, count = support.take(self.channels.index), self.channels.count
        travelled = np.bincount(index, minlength=count)
        relative = support.take(mean) / self.bounds[index].astype(np.float64)
        moments = np.bincount(index, n * relative**2, minlength=count) / np.maximum(travelled, 1)
        seen = self.bounds * relative_spread(moments, self.value_bits)
        seen = np.clip(seen, self.spreads / LARGEST_STEP, self.spreads * LARGEST_STEP)
        weight = travelled / (travelled + MEMORY)
        spreads = np.sqrt(weight * seen**2 + (1 - weight) * self.spreads**2)
        return replace(self, spreads=np.maximum(spreads, SMALLEST_SPREAD))

    def to_bytes(self) -> bytes:
        """Return what a client needs to have the same quantiser: the bounds as little-endian float32."""
        return self.bounds.astype("<f4").tobytes()


@functools.cache
def headroom(value_bits: int) -> float:
    """Return the best c/σ for Gaussian values of that many bits: it minimises the mean squared error.

    Example:
        >>> [round(headroom(bits), 2) for bits in (2, 3, 4, 8, 16)]
        [1.02, 1.73, 2.27, 3.77, 5.83]
    """
    _check_bits(value_bits)
    candidates = np.arange(0.3, 8.0, 0.01)
    return float(candidates[int(np.argmin([_error(value_bits, c) for c in candidates]))])


@functools.cache
def relative_error(value_bits: int) -> float:
    """Return the mean squared error of one client's Gaussian value at the best bound, relative to its variance."""
    return _error(value_bits, headroom(value_bits))


def relative_spread(moments: NDArray[np.float64], value_bits: int) -> NDArray[np.float64]:
    """Return u = σ/c where n·mean²/c² is `moments`: g⁻¹ of the module's docstring; 0 and the largest u beyond it."""
    moment_table, spread_table = _spread_table(value_bits)
    return np.interp(moments, moment_table, spread_table)


def noise_share_scale(
    *,
    modulus_bits: int,
    clients: int,
    clip_norm: float,
    noise_stddev: float,
    dimension: int,
    tails: float = 5.0,
    flattening: float = 1.0,
) -> float:
    """Return the one public scale of a round with noise shares: integers per unit of the update.

    The largest scale at which `tails` standard deviations of the sum, of signal, noise and rounding together, fit into
    half the modulus. A sum beyond it wraps around, which costs utility and no privacy; noise is never clamped.

    Args:
        modulus_bits: b of the modulus.
        clients: how many may be summed, n.
        clip_norm: of one client's update, c.
        noise_stddev: of one client's own share, in the update's units.
        dimension: of the rotated, padded vector.
        tails: k.
        flattening: the sum's variance on one coordinate after the rotation is at most this times c²n²/d.

    Raises:
        CommunicationError: an argument is not positive and finite, or rounding alone fills the modulus.

    Source: Kairouz, Liu, Steinke 2021, section 4: γ² = 4k²(ρc²n²/d + nσ²)/(2^{2b} - nk²), and the scale is 1/γ.

    Example:
        >>> round(noise_share_scale(modulus_bits=16, clients=100, clip_norm=1.0, noise_stddev=0.1, dimension=65536), 1)
        6104.4
    """
    numbers = (modulus_bits, clients, clip_norm, noise_stddev, dimension, tails, flattening)
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise CommunicationError("a scale for noise shares is made of positive finite numbers")
    room = 4.0**modulus_bits - clients * tails**2
    if room <= 0:
        raise CommunicationError(
            f"{modulus_bits} bits cannot hold the rounding of {clients} clients", "use more bits"
        )
    variance = flattening * (clip_norm * clients) ** 2 / dimension + clients * noise_stddev**2
    return math.sqrt(room / variance) / (2 * tails)


# numerical integrals over x = |a standard normal|, as fine as the table that is made of them


@functools.cache
def _half_normal() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points and weights whose weighted sums are means over |x|, x standard normal."""
    x = np.linspace(0.0, 9.0, 8192, endpoint=False) + 9.0 / 16384
    weights = np.asarray(np.exp(-(x**2) / 2), dtype=np.float64)
    return x, weights / weights.sum()


def _rounding(value_bits: int, u: float) -> NDArray[np.float64]:
    """Return, for every point, the variance that stochastic rounding adds, relative to c²."""
    levels = 2 ** (value_bits - 1) - 1
    x, _ = _half_normal()
    scaled = levels * np.minimum(u * x, 1.0)
    fraction = scaled - np.floor(scaled)
    variance: NDArray[np.float64] = fraction * (1 - fraction)
    if levels * u > FINE:
        variance = np.where(scaled < levels, 1 / 6, 0.0)
    variance /= levels**2
    return variance


def _error(value_bits: int, c: float) -> float:
    """Return the mean squared error of standard normal values, clipped to ±c and rounded."""
    x, weights = _half_normal()
    clipped = np.maximum(x - c, 0.0) ** 2
    return float(weights @ (clipped + c**2 * _rounding(value_bits, 1 / c)))


@functools.cache
def _spread_table(value_bits: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return g of the module's docstring as a table: moments, increasing, and the u that each belongs to."""
    _check_bits(value_bits)
    x, weights = _half_normal()
    spreads = np.zeros(1201, dtype=np.float64)
    spreads[1:] = np.geomspace(1e-8, 1e3, 1200)
    moments = np.array([weights @ (np.minimum(u * x, 1.0) ** 2 + _rounding(value_bits, u)) for u in spreads])
    increasing: NDArray[np.float64] = np.maximum.accumulate(moments)
    return increasing, spreads


def _check_bits(value_bits: int) -> None:
    """Raise unless so many bits can be chosen."""
    if not 2 <= value_bits <= 16:
        raise CommunicationError(f"a value travels in 2 to 16 bits, not in {value_bits}")
