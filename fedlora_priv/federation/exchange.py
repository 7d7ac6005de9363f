"""One exchange of a round: what everybody is told before it, how uploads travel in it, and what comes of it.

A round has as many exchanges as its method's contract says. The first travels with the task; each later one begins
with what the server has made of the sums so far, which enters the masks: a client that was told anything else has
masks that do not cancel.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.config import Experiment
from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.channel import UploadChannel
from fedlora_priv.methods.base import Contract, State
from protocols.errors import ProtocolError
from protocols.sparsify import Support, dense

SUPPORT_BLOB = "support"
ANNOUNCED_PREFIX = "announced/"
LARGEST_BOUND = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Exchange:
    """One exchange of a round.

    Args:
        number: 0 for the first.
        announced: what everybody was told before it; nothing before the first.
        channel: how uploads travel.
        optional: whether a round may do without it; only the server needs to know.
    """

    number: int
    announced: State
    channel: UploadChannel
    optional: bool = False

    @cached_property
    def announced_digest(self) -> bytes:
        """32 bytes over every array that was announced."""
        return wire.arrays_digest(b"fedlora-priv announcement v1", self.announced)

    @property
    def recorded(self) -> str | None:
        """That digest as ledger and report have it, hex; None in the first exchange, before which nothing is told."""
        return self.announced_digest.hex() if self.number else None

    def digest(self) -> bytes:
        """Return 32 bytes that differ whenever anything that both sides must agree on differs."""
        parts = (self.number.to_bytes(4, "big"), self.announced_digest, self.channel.digest())
        return hashlib.sha256(b"fedlora-priv exchange v1" + b"".join(parts)).digest()

    def to_message(self) -> wire.Message:
        """Return the message that begins this exchange, which is not the first."""
        fields = {"exchange": self.number, "bounds": dict(self.channel.bounds)}
        announced = wire.pack_arrays(self.announced)
        return wire.Message(
            wire.EXCHANGE, fields, {ANNOUNCED_PREFIX + name: blob for name, blob in announced.items()}
        )

    @classmethod
    def from_message(
        cls, message: wire.Message, number: int, contract: Contract, experiment: Experiment
    ) -> Exchange:
        """Return exchange `number` of a server's message.

        Raises:
            FederationError: the message is about another exchange, or does not fit the contract.
        """
        told = message.fields.get("exchange")
        if type(told) is not int or told != number:
            raise FederationError(f"the server began exchange {told!r} where {number} is the next one")
        if number >= contract.exchanges:
            raise FederationError(f"a round of this method has no exchange {number}")
        blobs = wire.without_prefix(message.blobs, ANNOUNCED_PREFIX)
        announced = wire.unpack_arrays(blobs, contract.announced(number), "the announcement")
        return cls(
            number, announced, later_channel(message.fields.get("bounds"), number, contract, experiment)
        )


def travelling(experiment: Experiment, contract: Contract, number: int) -> int:
    """Return how many coordinates travel in an exchange: all but in a first one that may leave some out."""
    communication, size = experiment.communication, contract.size(number)
    if number or contract.travels_whole or communication.support == "dense":
        return size
    return max(1, math.ceil(communication.density * size))


def first_channel(
    bounds: object, support: bytes, contract: Contract, experiment: Experiment
) -> UploadChannel:
    """Return the channel of a round's first exchange, as a server has described it.

    Raises:
        FederationError: bounds or support do not fit the contract.
    """
    try:
        coordinates = Support.from_bytes(support, contract.dimension)
    except ProtocolError as error:
        raise FederationError(f"the support of a round is garbled: {error}") from None
    if contract.travels_whole and not coordinates.is_dense:
        raise FederationError(
            "the server left out coordinates of what means nothing unless all of it travels"
        )
    return _channel(bounds, 0, coordinates, contract, experiment)


def later_channel(bounds: object, number: int, contract: Contract, experiment: Experiment) -> UploadChannel:
    """Return the channel of a later exchange, where every coordinate travels.

    Raises:
        FederationError: the bounds do not fit the contract.
    """
    return _channel(bounds, number, dense(contract.size(number)), contract, experiment)


def _channel(
    bounds: object, number: int, support: Support, contract: Contract, experiment: Experiment
) -> UploadChannel:
    """Return a channel whose bounds were checked: whatever is wrong comes out before anything is charged."""
    shapes, bits = contract.exchange(number), experiment.communication.value_bits
    channel = UploadChannel(
        shapes, support, _bounds(bounds, number, contract), bits, experiment.federation.clients
    )
    try:
        channel.digest()
    except ProtocolError as error:
        raise FederationError(f"the quantisation bounds of a round cannot be used: {error}") from None
    return channel


def _bounds(fields: object, number: int, contract: Contract) -> dict[str, float]:
    """Check that there is one positive bound, finite in float32, for each array that is uploaded."""
    shapes = contract.exchange(number)
    if not isinstance(fields, Mapping) or set(fields) != set(shapes):
        raise FederationError("the quantisation bounds of a round do not name the arrays that are uploaded")
    bounds = {name: fields[name] for name in shapes}
    for name, bound in bounds.items():
        if not isinstance(bound, float) or not 0 < bound <= LARGEST_BOUND:
            raise FederationError(f"the quantisation bound of {name!r} is {bound!r}, not a positive float32")
        if bound != contract.limits.get(name, bound):
            raise FederationError(f"the quantisation bound of {name!r} is not the one that the method states")
    return bounds


@dataclass(frozen=True)
class Summed:
    """What a round has released so far: its exchanges, the modular sum of each, and over how many clients."""

    exchanges: tuple[Exchange, ...]
    ring_sums: tuple[NDArray[np.uint32], ...]
    n: int

    @cached_property
    def sums(self) -> dict[str, NDArray[np.float64]]:
        """The named sums of all exchanges together.

        Raises:
            SumError: that many honest clients cannot have added up to one of them.
        """
        return {
            name: total
            for exchange, ring_sum in zip(self.exchanges, self.ring_sums, strict=True)
            for name, total in exchange.channel.sums(ring_sum, self.n).items()
        }
