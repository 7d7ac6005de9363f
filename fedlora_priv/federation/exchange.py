"""One exchange of a round: what everybody is told before it, how uploads travel in it, and what comes of it.

Which exchanges a round has is its `course`. What everybody knows from the start travels with the task: the first
exchange, and all bands where clients send different fractions. Each other one begins with what the server has made of
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

from fedlora_priv.allocation.findings import Findings
from fedlora_priv.allocation.groups import Contributors, contributors
from fedlora_priv.config import Experiment
from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.allocating import allocation
from fedlora_priv.federation.ballots import BallotChannel
from fedlora_priv.federation.bounds import ExchangeScales
from fedlora_priv.federation.channel import UploadChannel
from fedlora_priv.federation.course import Leg, course, vote_rules
from fedlora_priv.federation.supports import bands as drawn_bands
from fedlora_priv.federation.supports import random_supports
from fedlora_priv.methods.base import Contract
from fedlora_priv.methods.layout import Layout, State
from protocols.errors import ProtocolError
from protocols.secagg.codec import least_size
from protocols.secagg.session import INDEX_BYTES, ClientPolicy, CoordinateGroup
from protocols.sparsify import Support

SUPPORT_BLOB = "support"
BOUNDS_BLOB = "bounds"
ANNOUNCED_PREFIX = "announced/"

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
        return self.number > 0 and not self.leg.is_band

    @cached_property
    def announced_digest(self) -> bytes:
        """32 bytes over all that was told: every array, and which coordinates travel where that is new."""
        arrays = wire.arrays_digest(b"fedlora-priv announcement v1", self.announced)
        return hashlib.sha256(arrays + self.values.support.digest()).digest() if self.answers else arrays

    @property
    def recorded(self) -> str | None:
        """That digest as ledger and report have it, hex; None in an exchange before which nothing is told."""
        return self.announced_digest.hex() if self.answers else None

    @property
    def most_proposal_bytes(self) -> int:
        """How long a proposal of this exchange's session may be: with everybody in the groups that a client expects."""
        held = () if isinstance(self.channel, BallotChannel) else self.channel.contributors
        groups = (least_size(CoordinateGroup) + INDEX_BYTES * len(clients) for _, clients in held)
        return ClientPolicy.max_proposal_bytes + sum(groups)

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
        announced = wire.pack_arrays(self.announced)
        blobs = {ANNOUNCED_PREFIX + name: blob for name, blob in announced.items()}
        how = {SUPPORT_BLOB: self.values.support.to_bytes(), BOUNDS_BLOB: self.values.bounds_to_bytes()}
        return wire.Message(wire.EXCHANGE, {"exchange": self.number}, how | blobs)

    @classmethod
    def from_message(cls, message: wire.Message, number: int, planned: Planned) -> Exchange:
        """Return exchange `number` of a server's message, which is one that answers sums.

        Raises:
            FederationError: the message does not fit the round.
        """
        leg, blobs = planned.legs[number], dict(message.blobs)
        support, bounds = blobs.pop(SUPPORT_BLOB, b""), blobs.pop(BOUNDS_BLOB, b"")
        announced = wire.unpack_arrays(
            wire.without_prefix(blobs, ANNOUNCED_PREFIX),
            planned.contract.announced(leg.upload),
            "the announcement",
        )
        return cls(number, leg, announced, planned.values(number, support, bounds))


@dataclass(frozen=True)
class Planned:
    """What a party knows of a round before it begins, and holds a server's messages to."""

    experiment: Experiment
    layout: Layout
    contract: Contract
    round: int
    findings: Findings

    @cached_property
    def legs(self) -> tuple[Leg, ...]:
        """The round's exchanges."""
        return course(self.experiment, self.contract, self.round)

    def next(self, message: wire.Message, current: int) -> int:
        """Return which exchange a message begins after `current`: the next one, or any later band.

        Raises:
            FederationError: it is about another one, or the round has none of that number.
        """
        told = message.fields.get("exchange")
        if type(told) is not int or told <= current:
            raise FederationError(f"the server began exchange {told!r} where {current + 1} is the next one")
        if told >= len(self.legs):
            raise FederationError(f"a round of this method has no exchange {told}")
        if told > current + 1 and not self.legs[told].is_band:
            raise FederationError(f"the server began exchange {told} where {current + 1} is the next one")
        return told

    def scales(self, upload: int) -> ExchangeScales:
        """Return how the arrays of one of the method's uploads are scaled."""
        bits, clients = self.experiment.communication.value_bits, self.experiment.federation.clients
        return ExchangeScales.of(self.layout, self.contract, upload, bits, clients)

    def begun(self, bounds: bytes, supports: Mapping[str, bytes]) -> tuple[Exchange, ...]:
        """Return the exchanges that are known from a task, as a server has described them.

        Args:
            bounds, supports: its blobs; no bounds are as good as none of that name.

        Raises:
            FederationError: they do not fit the round.
        """
        known = [j for j, leg in enumerate(self.legs) if j == 0 or leg.is_band]
        if self.legs[0].carries == "votes":
            if supports or bounds:
                raise FederationError(
                    "the server chose support or bounds of a round in which clients vote for it"
                )
            return (Exchange(0, self.legs[0], {}, self.ballots()),)
        if set(supports) != {support_blob(j) for j in known}:
            raise FederationError(f"the message that starts a round lacks {SUPPORT_BLOB}, or has too many")
        exchanges = tuple(
            Exchange(j, self.legs[j], {}, self.values(j, supports[support_blob(j)], bounds)) for j in known
        )
        self._require_supports(tuple(exchange.values.support for exchange in exchanges))
        return exchanges

    def _require_supports(self, bands: tuple[Support, ...]) -> None:
        """Raise unless bands share no coordinate, and are those of the public seed where anybody can draw them."""
        every = np.concatenate([band.indices for band in bands])
        if np.unique(every).size < every.size:
            raise FederationError(
                "the server put a coordinate into two bands, to be summed over different clients"
            )
        if self.experiment.communication.support == "seeded-random-k" and bands != drawn_bands(
            self.experiment, random_supports(self.experiment, self.contract, self.round)
        ):
            raise FederationError("the support of a round is not the one that the public seed draws")

    def contributors(self, upload: int) -> Contributors:
        """Return who contributes where to one of the method's uploads; nothing where everybody does everywhere."""
        dealt = allocation(self.experiment, self.layout, self.round, self.findings)
        return () if dealt is None else contributors(dealt, self.layout, self.contract.exchange(upload))

    def ballots(self) -> BallotChannel:
        """Return the channel of the round's vote, which nobody has to be told."""
        rules = vote_rules(self.experiment, self.contract, self.round)
        return BallotChannel(self.contract.uploads, rules)

    def values(self, number: int, support: bytes, bounds: bytes) -> UploadChannel:
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

    def _channel(self, bounds: bytes, leg: Leg, support: Support) -> UploadChannel:
        """Return a channel whose bounds were checked: whatever is wrong comes out before anything is charged."""
        scales = self.scales(leg.upload)
        checked = scales.bounds_from_bytes(bounds)
        who = self.contributors(leg.upload)
        channel = UploadChannel(scales.shapes, support, checked, scales.value_bits, scales.clients, who)
        try:
            channel.digest()
        except ProtocolError as error:
            raise FederationError(f"the quantisation bounds of a round cannot be used: {error}") from None
        return channel


def support_blob(number: int) -> str:
    """Return the name of the blob that says which coordinates an exchange known from the task is on."""
    return f"{SUPPORT_BLOB}/{number}" if number else SUPPORT_BLOB


@dataclass(frozen=True)
class ExchangeSum:
    """What one exchange has released: the modular sum, and of how many clients it is."""

    exchange: Exchange
    ring_sum: NDArray[np.uint32]
    n: int


@dataclass(frozen=True)
class Summed:
    """What a round has released so far, exchange by exchange; a band that was lost is not in it."""

    parts: tuple[ExchangeSum, ...]

    @property
    def n(self) -> int:
        """How many clients are in the first sum, and in any later one but those of bands."""
        return self.parts[0].n

    @property
    def last(self) -> Exchange:
        """The last exchange that gave a sum."""
        return self.parts[-1].exchange

    def with_part(self, exchange: Exchange, ring_sum: NDArray[np.uint32], n: int) -> Summed:
        """Return what there is after one more exchange."""
        return Summed((*self.parts, ExchangeSum(exchange, ring_sum, n)))

    def uploads(self) -> dict[int, Exchange]:
        """Return which of the method's uploads were summed, each with its first exchange; votes are none."""
        exchanges = [part.exchange for part in self.parts if part.exchange.leg.carries == "values"]
        return {exchange.leg.upload: exchange for exchange in reversed(exchanges)}

    def senders(self, upload: int) -> NDArray[np.int64]:
        """Return of how many clients the sum on each coordinate of an upload is, int64 of shape (dimension,)."""
        first = self.uploads()[upload]
        senders = np.zeros(first.leg.dimension, dtype=np.int64)
        for part in self.parts:
            if part.exchange.leg.carries == "values" and part.exchange.leg.upload == upload:
                senders[part.exchange.values.support.indices] = part.n
        return senders

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
                named[name] = named[name] + whole if name in named else whole  # bands are disjoint
        return named
