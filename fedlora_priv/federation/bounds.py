"""The quantisation bounds of an exchange: one a LoRA component, from earlier sums alone, four bytes each on the wire.

The server keeps *spreads*, the standard deviation of one client's values by array and channel, and bounds are made of
them (`fedlora_priv.communication.scales`). Arrays that no map of products is made of have a channel for each LoRA
component; any other array is one channel. A spread stays as it is while its array does not travel, so that a method
whose rounds upload different arrays finds them again.

*Room.* From a mean alone nobody can tell n clients with values of one size from one client with values √n times as
large and n - 1 with none. Where a value may be clipped (it is a step, and becomes a shorter one) the first is
assumed. Where all of an upload must arrive, because it is a map of products, or because clients hold unequal parts of
the model or scale them unequally (`Contract.travels_whole`), bounds are √n times wider: then no client's spread is
beyond what the bound was made for, however unequal they are. That is log2(n)/2 of the eight bits or more that such
uploads have.

What a method states about its own numbers (`Contract.limits`) is exact and comes before all of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.communication.scales import Scales, channel_shapes, headroom, lora_channels
from fedlora_priv.errors import FederationError
from fedlora_priv.federation.vectors import dimension, flatten, unflatten
from fedlora_priv.methods.base import Contract
from fedlora_priv.methods.layout import Layout, Shapes
from protocols.sparsify import Support

_T = TypeVar("_T", bound=np.generic)

Spreads = Mapping[str, NDArray[np.float64]]
"""By array the standard deviation of one client's values in each channel, in a shape that broadcasts to the array's."""

Bounds = Mapping[str, NDArray[np.float32]]
"""By array the largest magnitude that travels in each channel, in the same shapes."""


@dataclass(frozen=True)
class ExchangeScales:
    """How the arrays of one exchange are scaled: from spreads to bounds, and from what was summed to new spreads.

    Args:
        layout: of the federation.
        shapes: of the arrays, in the order in which they are flattened.
        limits: the largest magnitude in some of them, where the method states it.
        value_bits: bits of one client's value, sign included.
        clients: no more than this are summed.
        room: how many times wider than the best bound for Gaussian values a bound is.
    """

    layout: Layout
    shapes: Shapes
    limits: Mapping[str, float]
    value_bits: int
    clients: int
    room: float

    @classmethod
    def of(
        cls, layout: Layout, contract: Contract, number: int, value_bits: int, clients: int
    ) -> ExchangeScales:
        """Return the scales of exchange `number`, 0-based, of a contract."""
        room = math.sqrt(clients) if contract.travels_whole else 1.0
        return cls(layout, contract.exchange(number), contract.limits, value_bits, clients, room)

    def bounds(self, spreads: Spreads) -> dict[str, NDArray[np.float32]]:
        """Return the bounds of spreads, which are of these arrays at least, those with a limit apart.

        Raises:
            CommunicationError: a spread is not positive and finite.
        """
        bounds = self._by_name(self._scales(spreads).bounds)
        exact = {
            name: np.full_like(bounds[name], limit) for name, limit in self.limits.items() if name in bounds
        }
        return bounds | exact

    def after(
        self, bounds: Bounds, means: Mapping[str, NDArray[np.float64]], senders: NDArray[np.int64]
    ) -> dict[str, NDArray[np.float64]]:
        """Return the spreads of these arrays, those with a limit apart, once the exchange was summed.

        Args:
            bounds: with which they travelled.
            means: by array, of each coordinate over whoever sent it.
            senders: how many clients that were, of shape (dimension,); none where it did not travel.

        Raises:
            CommunicationError: a mean is not finite.
        """
        narrow = self.room * headroom(self.value_bits)
        before = {name: bounds[name].astype(np.float64) / narrow for name in self.shapes}
        mean = flatten(self.shapes, means)
        support = Support(senders.size, np.flatnonzero(senders))
        spreads = self._by_name(self._scales(before).after(mean, support, senders[support.indices]).spreads)
        return {name: spread for name, spread in spreads.items() if name not in self.limits}

    def _scales(self, spreads: Spreads) -> Scales:
        """Return the scales of all channels, with any spread where a limit takes its place."""
        by_channel = channel_shapes(self.layout, self.shapes)
        limited = {name: np.ones(shape) for name, shape in by_channel.items() if name in self.limits}
        flat = flatten(by_channel, {**spreads, **limited})
        channels = lora_channels(self.layout, self.shapes)
        return Scales(channels, flat, self.value_bits, self.clients, self.room)

    def _by_name(self, channels: NDArray[_T]) -> dict[str, NDArray[_T]]:
        """Return numbers by channel as named arrays that broadcast."""
        return unflatten(channel_shapes(self.layout, self.shapes), channels)

    def bounds_from_bytes(self, data: bytes) -> dict[str, NDArray[np.float32]]:
        """Return bounds as `UploadChannel.bounds_to_bytes` wrote them, checked.

        Raises:
            FederationError: there is not one for each channel, one is not positive and finite, or not what the method
                states.
        """
        count = dimension(channel_shapes(self.layout, self.shapes))
        if len(data) != 4 * count:
            raise FederationError(
                f"the quantisation bounds of a round are {len(data)} bytes, not 4 for each of {count} channels"
            )
        bounds = self._by_name(np.frombuffer(data, "<f4").astype(np.float32))
        for name, bound in bounds.items():
            if not (np.isfinite(bound) & (bound > 0)).all():
                raise FederationError(f"a quantisation bound of {name!r} is not positive and finite")
            if name in self.limits and (bound != np.float32(self.limits[name])).any():
                raise FederationError(
                    f"the quantisation bound of {name!r} is not the one that the method states"
                )
        return bounds
