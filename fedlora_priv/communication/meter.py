"""Bytes of a round by kind, in both directions: of real messages, and beforehand from a round's parameters alone.

    kind      up                                            down
    keys      a client's public keys                        those of its neighbours, with their paths
    shares    what it deals to its neighbours and reveals   what they dealt to it
    votes     its packed, masked votes                      -
    values    its packed, masked values                     the global state, and what is announced between exchanges
    support   -                                             which coordinates travel
    framing   envelopes, signatures, statements, anchors    envelopes, proposals, statements, bounds

A message of secure aggregation counts whole as the kind it is for, but for a masked vector: its packed words are votes
or values, the rest of it framing. Envelopes are those of `federation.wire`. `sort` says this of a message that went
over the wire, `wire_bytes` of one that will; both by the same rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any, Literal

from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire
from protocols.errors import LocalProtocolError
from protocols.secagg.codec import least_size
from protocols.secagg.interface import PHASES, Phase
from protocols.secagg.messages import MaskedVector
from protocols.secagg.session import SessionParameters, recommended
from protocols.secagg.sizes import Direction, longest_sizes, session_sizes
from protocols.tiers import Tiers

Kind = Literal["keys", "shares", "votes", "values", "support", "framing"]
KINDS: tuple[Kind, ...] = ("keys", "shares", "votes", "values", "support", "framing")
Table = Counter[tuple[str, Direction, Kind]]
"""Bytes by client_id, direction and kind."""

Carries = Literal["values", "votes"]
"""What the masked vectors of a session are."""

_SUPPORT, _BOUNDS = "support", "bounds"
_MASKED_FRAMING = 2 + least_size(MaskedVector)
"""Bytes of a masked vector's message besides its packed words."""
_KIND_OF: Mapping[tuple[Direction, Phase], Kind] = {
    ("up", "advertise"): "keys", ("down", "share"): "keys",
    ("up", "share"): "shares", ("down", "mask"): "shares", ("up", "reveal"): "shares",
}  # fmt: skip
"""What the messages of secure aggregation are for; others are framing."""


@dataclass(frozen=True)
class Told:
    """One message to some clients and their answer, outside of secure aggregation.

    Args:
        request: as it is sent, such as `RoundTask.to_message`.
        answer: as it is answered.
        asked, answered: client_ids; who did not answer was still asked.
    """

    request: wire.Message
    answer: wire.Message
    asked: tuple[str, ...]
    answered: Set[str]


@dataclass(frozen=True)
class Summed:
    """One session of secure aggregation.

    Args:
        parameters: as they are proposed.
        carries: whether its vectors are values or votes.
        begun_by: the message that brings the proposal, and the answer that an advertisement comes with, without them;
            None if both travel alone.
        answered, t1, attachment_bytes: as in `session_sizes`.
        longest: whether every message is as long as any order of a ring makes it, of clients none of whom is lost.
    """

    parameters: SessionParameters
    carries: Carries = "values"
    answered: Mapping[Phase, Set[str]] | None = None
    t1: bytes = bytes(32)
    attachment_bytes: int | Mapping[str, int] = 0
    longest: bool = False
    begun_by: tuple[wire.Message, wire.Message] | None = None


def wire_bytes(steps: Iterable[Told | Summed]) -> Table:
    """Return the bytes of a round's steps by client, direction and kind, as `engines.base.Metered` counts them."""
    table: Table = Counter()
    for step in steps:
        table.update(_told(step) if isinstance(step, Told) else _summed(step))
    return table


def sort(data: bytes, way: Direction, carries: Carries = "values") -> Counter[Kind]:
    """Return the bytes of one message that went over the wire by kind; what nobody can read is framing.

    Args:
        data: the message, envelope and all.
        way: "up" if a client sent it.
        carries: what a masked vector in it would be.
    """
    sizes: Counter[Kind] = Counter()
    try:
        message = wire.decode(data)
    except FederationError:
        message = wire.Message("")
    for name, blob in message.blobs.items():
        sizes.update(_blob(message.kind, message.fields, name, len(blob), way, carries))
    sizes["framing"] += len(data) - sizes.total()
    return sizes


def by_direction(table: Table, client_id: str) -> dict[Direction, dict[Kind, int]]:
    """Return one client's part of a table; every kind is there."""
    return {way: {kind: table[client_id, way, kind] for kind in KINDS} for way in ("up", "down")}


def most_uploaded(table: Table) -> int:
    """Return the bytes of the client that sends the most."""
    totals: Counter[str] = Counter()
    for (client_id, way, _), size in table.items():
        totals[client_id] += size if way == "up" else 0
    return max(totals.values(), default=0)


def band_sessions(parameters: SessionParameters, tiers: Tiers) -> tuple[SessionParameters, ...]:
    """Return one session for each band of `tiers`: its clients, its coordinates, the smallest safe counts for them.

    Raises:
        CommunicationError: a band has too few clients to hide any of them.
    """
    _require_roster(parameters, tiers)
    sessions = []
    for j, band in enumerate(tiers.bands):
        n = len(band.clients)
        try:
            counts = recommended(n, parameters.max_colluders, min(parameters.degree, n - 1))
            session = replace(
                parameters,
                exchange=parameters.exchange + j,
                roster=band.clients,
                vector_length=len(band.support),
                quorum=counts.quorum,
                threshold=counts.threshold,
                min_survivors=counts.min_survivors,
                degree=counts.degree,
                groups=(),
                min_contributors=0,
            )
            session.validate()
        except LocalProtocolError as error:
            raise CommunicationError(
                f"tier {j} cannot be summed by itself: {error}", "put more clients into the wide tiers"
            ) from None
        sessions.append(session)
    return tuple(sessions)


def one_session(parameters: SessionParameters, tiers: Tiers) -> SessionParameters:
    """Return one session of all tiers, whose vectors are as long as the widest support.

    Raises:
        CommunicationError: a band has fewer clients than `parameters.min_contributors`.
    """
    _require_roster(parameters, tiers)
    session = replace(parameters, vector_length=len(tiers.supports[-1]), groups=tiers.groups())
    try:
        session.validate()
    except LocalProtocolError as error:
        raise CommunicationError(f"these tiers cannot be summed: {error}") from None
    return session


def _require_roster(parameters: SessionParameters, tiers: Tiers) -> None:
    """Raise unless the session is of the clients of `tiers`."""
    if parameters.roster != tuple(tiers.tier_of):
        raise CommunicationError("the session's roster is not the clients that have tiers, in that order")


def _told(step: Told) -> Table:
    """Return the bytes of a request and its answers."""
    table: Table = Counter()
    for client_id in step.asked:
        table.update(_message(client_id, "down", step.request))
        if client_id in step.answered:
            table.update(_message(client_id, "up", step.answer))
    return table


def _message(client_id: str, way: Direction, message: wire.Message) -> Table:
    """Return the bytes of one message."""
    return Counter({(client_id, way, kind): size for kind, size in sort(wire.encode(message), way).items()})


def _blob(
    message: str, fields: Mapping[str, Any], name: str, size: int, way: Direction, carries: Carries
) -> dict[Kind, int]:
    """Return the bytes of one blob of a message by kind, without those that are framing."""
    if message == wire.PHASE:
        phase = fields.get("phase")
        return next((_body(one, size, way, carries) for one in PHASES if one == phase), {})
    if message in (wire.TRAINED, wire.READY):
        return {"keys": size} if name == wire.ADVERTISEMENT else {}
    if message in (wire.CLOSE, wire.STATEMENT) or name in (_BOUNDS, wire.PROPOSAL):
        return {}
    return {"support" if _SUPPORT in name.split("/") else "values": size}


def _body(phase: Phase, size: int, way: Direction, carries: Carries) -> dict[Kind, int]:
    """Return the bytes of a message of secure aggregation by kind, without those that are framing."""
    if (way, phase) == ("up", "mask"):
        return {carries: max(0, size - _MASKED_FRAMING)}
    kind = _KIND_OF.get((way, phase))
    return {} if kind is None else {kind: size}


def _summed(step: Summed) -> Table:
    """Return the bytes of a session in its envelopes."""
    table: Table = Counter()
    sizes = (
        longest_sizes(step.parameters, attachment_bytes=step.attachment_bytes)
        if step.longest
        else session_sizes(
            step.parameters, answered=step.answered, t1=step.t1, attachment_bytes=step.attachment_bytes
        )
    )
    for (client_id, way, phase), size in sizes.items():
        if phase == "advertise" and step.begun_by is not None:
            table.update(_message(client_id, way, _carrying(step.begun_by, way, size)))
            continue
        body = _body(phase, size, way, step.carries)
        for kind, part in body.items():
            table[client_id, way, kind] += part
        table[client_id, way, "framing"] += size - sum(body.values()) + _envelope(phase, size)
    return table


def _carrying(begun_by: tuple[wire.Message, wire.Message], way: Direction, size: int) -> wire.Message:
    """Return the message that a session begins with, or its answer, with that many bytes of the session."""
    request, answer = begun_by
    if way == "down":
        return request.with_blob(wire.PROPOSAL, bytes(size))
    return answer.with_blob(wire.ADVERTISEMENT, bytes(size))


def _envelope(phase: Phase, size: int) -> int:
    """Return how much longer a phase's body of that size is in its envelope."""
    empty = wire.encode(wire.Message(wire.PHASE, {"phase": phase}, {"body": b""}))
    return len(empty) - len(str(0)) + len(str(size))  # the header says the body's length in decimal
