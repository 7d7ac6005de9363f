"""One exchange of a round: what everybody is told before it, how uploads travel in it, and what comes of it.

Which exchanges a round has is its `course`. What everybody knows from the start travels with the task: the first
exchange, and all rings where clients send different fractions. Each other one begins with what the server has made of
the sums so far (what a method announces, or the support that was voted), which enters the masks: a client that was
told anything else has masks that do not cancel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.config import Experiment
from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.ballots import BallotChannel
from fedlora_priv.federation.channel import UploadChannel
from fedlora_priv.federation.course import Leg, course, vote_rules
from fedlora_priv.methods.base import Contract, State
from protocols.errors import ProtocolError
from protocols.sparsify import Support

SUPPORT_BLOB = "support"
ANNOUNCED_PREFIX = "announced/"
LARGEST_BOUND = float(np.finfo(np.float32).max)

Channel = UploadChannel | BallotChannel


@dataclass(frozen=True)
class Exchange:
    """One exchange of a round.

    Args:
        number: 0 for the first.
        leg: what the round's course says of it.
        announced: the arrays that everybody was told before it; nothing before the first.
        channel: how uploads travel.
        optional: whether a round may do without it; only the server needs to know.
    """

    number: int
    leg: Leg
    announced: State
    channel: Channel
    optional: bool = False

    @property
    def values(self) -> UploadChannel:
        """How values travel.

        Raises:
            FederationError: votes travel, which have no bounds.
        """
        if isinstance(self.channel, BallotChannel):
            raise FederationError(f"exchange {self.number} is of votes, not of values")
        return self.channel

    @property
    def answers(self) -> bool:
        """Whether it follows from the sums before it, over whose clients it then is, and over all of them."""
        return self.number > 0 and not self.leg.is_ring

    @cached_property
    def announced_digest(self) -> bytes:
        """32 bytes over all that was told: every array, and which coordinates travel where that is new."""
        arrays = wire.arrays_digest(b"fedlora-priv announcement v1", self.announced)
        return hashlib.sha256(arrays + self.values.support.digest()).digest() if self.answers else arrays

    @property
    def recorded(self) -> str | None:
        """That digest as ledger and report have it, hex; None in an exchange before which nothing is told."""
        return self.announced_digest.hex() if self.answers else None

    def digest(self) -> bytes:
        """Return 32 bytes that differ whenever anything that both sides must agree on differs."""
        senders = "\n".join(self.leg.senders or ())
        parts = (
            self.number.to_bytes(4, "big"),
            self.announced_digest,
            hashlib.sha256(senders.encode()).digest(),
            self.channel.digest(),
        )
        return hashlib.sha256(b"fedlora-priv exchange v2" + b"".join(parts)).digest()

    def to_message(self) -> wire.Message:
        """Return the message that begins this exchange, which is not the first."""
        if not self.answers:
            return wire.Message(wire.EXCHANGE, {"exchange": self.number})
        fields = {"exchange": self.number, "bounds": dict(self.values.bounds)}
        announced = wire.pack_arrays(self.announced)
        blobs = {ANNOUNCED_PREFIX + name: blob for name, blob in announced.items()}
        return wire.Message(wire.EXCHANGE, fields, {SUPPORT_BLOB: self.values.support.to_bytes(), **blobs})

    @classmethod
    def from_message(cls, message: wire.Message, number: int, planned: Planned) -> Exchange:
        """Return exchange `number` of a server's message, which is one that answers sums.

        Raises:
            FederationError: the message does not fit the round.
        """
        leg, blobs = planned.legs[number], dict(message.blobs)
        support = blobs.pop(SUPPORT_BLOB, b"")
        announced = wire.unpack_arrays(
            wire.without_prefix(blobs, ANNOUNCED_PREFIX),
            planned.contract.announced(leg.upload),
            "the announcement",
        )
        return cls(number, leg, announced, planned.values(number, support, message.fields.get("bounds")))


@dataclass(frozen=True)
class Planned:
    """What a party knows of a round before it begins, and holds a server's messages to."""

    experiment: Experiment
    contract: Contract
    round: int

    @cached_property
    def legs(self) -> tuple[Leg, ...]:
        """The round's exchanges."""
        return course(self.experiment, self.contract, self.round)

    def next(self, message: wire.Message, current: int) -> int:
        """Return which exchange a message begins after `current`: the next one, or any later ring.

        Raises:
            FederationError: it is about another one, or the round has none of that number.
        """
        told = message.fields.get("exchange")
        if type(told) is not int or told <= current:
            raise FederationError(f"the server began exchange {told!r} where {current + 1} is the next one")
        if told >= len(self.legs):
            raise FederationError(f"a round of this method has no exchange {told}")
        if told > current + 1 and not self.legs[told].is_ring:
            raise FederationError(f"the server began exchange {told} where {current + 1} is the next one")
        return told

    def begun(self, bounds: object, supports: Mapping[str, bytes]) -> tuple[Exchange, ...]:
        """Return the exchanges that are known from a task, as a server has described them.

        Args:
            bounds, supports: its fields and blobs.

        Raises:
            FederationError: they do not fit the round.
        """
        known = [j for j, leg in enumerate(self.legs) if j == 0 or leg.is_ring]
        if self.legs[0].carries == "votes":
            if supports:
                raise FederationError("the server chose the support of a round in which clients vote for it")
            return (Exchange(0, self.legs[0], {}, self.ballots()),)
        if set(supports) != {support_blob(j) for j in known}:
            raise FederationError(f"the message that starts a round lacks {SUPPORT_BLOB}, or has too many")
        exchanges = tuple(
            Exchange(j, self.legs[j], {}, self.values(j, supports[support_blob(j)], bounds)) for j in known
        )
        _require_disjoint([exchange.values.support for exchange in exchanges])
        return exchanges

    def ballots(self) -> BallotChannel:
        """Return the channel of the round's vote, which nobody has to be told."""
        rules = vote_rules(self.experiment, self.contract, self.round)
        return BallotChannel(self.contract.uploads, rules)

    def values(self, number: int, support: bytes, bounds: object) -> UploadChannel:
        """Return the channel of an exchange of values, as a server has described it.

        Raises:
            FederationError: bounds or support do not fit the round.
        """
        leg = self.legs[number]
        try:
            coordinates = Support.from_bytes(support, leg.dimension)
        except ProtocolError as error:
            raise FederationError(f"the support of a round is garbled: {error}") from None
        if len(coordinates) != leg.coordinates:
            raise FederationError(
                f"the server lets {len(coordinates)} of {leg.dimension} coordinates travel in exchange {number}, where "
                f"the experiment has {leg.coordinates}"
            )
        return self._channel(bounds, leg, coordinates)

    def _channel(self, bounds: object, leg: Leg, support: Support) -> UploadChannel:
        """Return a channel whose bounds were checked: whatever is wrong comes out before anything is charged."""
        shapes, bits = self.contract.exchange(leg.upload), self.experiment.communication.value_bits
        checked = _bounds(bounds, leg.upload, self.contract)
        channel = UploadChannel(shapes, support, checked, bits, self.experiment.federation.clients)
        try:
            channel.digest()
        except ProtocolError as error:
            raise FederationError(f"the quantisation bounds of a round cannot be used: {error}") from None
        return channel


def support_blob(number: int) -> str:
    """Return the name of the blob that says which coordinates an exchange known from the task is on."""
    return f"{SUPPORT_BLOB}/{number}" if number else SUPPORT_BLOB


def _require_disjoint(rings: list[Support]) -> None:
    """Raise unless no coordinate is in two rings: summed over two sets of clients, it would tell them apart."""
    every = np.concatenate([ring.indices for ring in rings])
    if np.unique(every).size < every.size:
        raise FederationError(
            "the server put a coordinate into two rings, to be summed over different clients"
        )


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
class ExchangeSum:
    """What one exchange has released: the modular sum, and of how many clients it is."""

    exchange: Exchange
    ring_sum: NDArray[np.uint32]
    n: int


@dataclass(frozen=True)
class Summed:
    """What a round has released so far, exchange by exchange; a ring that was lost is not in it."""

    parts: tuple[ExchangeSum, ...]

    @property
    def n(self) -> int:
        """How many clients are in the first sum, and in any later one but those of rings."""
        return self.parts[0].n

    @property
    def last(self) -> Exchange:
        """The last exchange that gave a sum."""
        return self.parts[-1].exchange

    def with_part(self, exchange: Exchange, ring_sum: NDArray[np.uint32], n: int) -> Summed:
        """Return what there is after one more exchange."""
        return Summed((*self.parts, ExchangeSum(exchange, ring_sum, n)))

    @cached_property
    def sums(self) -> dict[str, NDArray[np.float64]]:
        """The named sums of all exchanges together: `n` times each coordinate's mean over whoever sent it.

        Zero where nobody did.

        Raises:
            SumError: that many honest clients cannot have added up to one of them.
        """
        named: dict[str, NDArray[np.float64]] = {}
        for part in self.parts:
            for name, total in part.exchange.channel.sums(part.ring_sum, part.n).items():
                whole = total if part.n == self.n else total * (self.n / part.n)
                named[name] = named[name] + whole if name in named else whole  # rings are disjoint
        return named
