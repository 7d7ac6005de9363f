"""How many bytes a session of honest parties takes, message by message, from its parameters alone.

Nothing is run: lengths follow from the counts, for every width on the wire is fixed (`messages`). What depends on a
session's randomness is only who neighbours whom on a ring; sums over all clients without losses do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal, Protocol

from protocols.errors import LocalProtocolError
from protocols.packing import packed_size
from protocols.secagg.codec import Message, encode, least_size
from protocols.secagg.graph import MaskGraph
from protocols.secagg.interface import PHASES, Phase
from protocols.secagg.keys import ENCAPSULATION_BYTES, SECRET_BYTES, TAG_BYTES
from protocols.secagg.messages import (
    Advertisement,
    Advertisements,
    Confirmation,
    Confirmations,
    ConfirmStatement,
    Leaf,
    MaskedVector,
    MaskStatement,
    Parcel,
    Proposal,
    Reveal,
    RevealedShare,
    SharesIn,
    SharesOut,
    Survivors,
)
from protocols.secagg.session import SessionParameters

Direction = Literal["up", "down"]
Sizes = dict[tuple[str, Direction, Phase], int]
"""Bytes by client_id, direction and phase: "up" is the client's message, "down" the server's that asks for it."""


class _Graph(Protocol):
    """Who masks with whom."""

    def neighbours(self, index: int) -> tuple[int, ...]:
        """Return whom `index` masks with."""


def session_sizes(
    parameters: SessionParameters,
    *,
    answered: Mapping[Phase, Set[str]] | None = None,
    t1: bytes = bytes(32),
    attachment_bytes: int | Mapping[str, int] = 0,
) -> Sizes:
    """Return the length of every message of a session, also of requests that found nobody.

    Args:
        answered: who answered in each phase, each a subset of the one before; everybody in all unless given. Who did
            not was still asked, and is lost from then on.
        t1: the transcript that orders a ring's clients; of no matter for a complete graph.
        attachment_bytes: what clients attach to their confirmations, each as much or by client_id.

    Raises:
        LocalProtocolError: the parameters are unsafe, or somebody answers who was lost before.

    Example:
        >>> from protocols.secagg.session import SessionParameters
        >>> parameters = SessionParameters(
        ...     session_id=bytes(32), round=0, exchange=0, roster=("ada", "bob", "eve"), max_colluders=0,
        ...     quorum=2, threshold=2, min_survivors=2, degree=2, vector_length=1000, modulus_bits=8, bound=9,
        ...     context=bytes(32))
        >>> sizes = session_sizes(parameters)
        >>> sizes["ada", "up", "mask"], sizes["eve", "up", "mask"], sizes["ada", "up", "share"]
        (1070, 1070, 5130)
    """
    parameters.validate()
    graph = MaskGraph(parameters.n, parameters.degree, t1)
    return _sizes(parameters, _present(parameters, answered), graph, graph, attachment_bytes)


def longest_sizes(parameters: SessionParameters, *, attachment_bytes: int | Mapping[str, int] = 0) -> Sizes:
    """Return of every message of a session without losses the length that no order of the ring makes longer.

    Each by itself: no order makes all of them so long. Who is later on the roster is sent an encapsulation, so a client
    sends most if its neighbours are the last ones, and is sent most if they are the first ones.

    Args:
        attachment_bytes: as in `session_sizes`.

    Raises:
        LocalProtocolError: the parameters are unsafe.
    """
    parameters.validate()
    first, last = (_Beside(parameters.n, parameters.degree, last=last) for last in (False, True))
    return _sizes(parameters, _present(parameters, None), last, first, attachment_bytes)


@dataclass(frozen=True)
class _Beside:
    """As many neighbours as on a ring for each client by itself: the first or the last others of the roster."""

    n: int
    degree: int
    last: bool

    def neighbours(self, index: int) -> tuple[int, ...]:
        """Return them, increasing."""
        others = tuple(other for other in range(self.n) if other != index)
        return others[-self.degree :] if self.last else others[: self.degree]


def _sizes(
    parameters: SessionParameters,
    present: Mapping[Phase, frozenset[int]],
    up: _Graph,
    down: _Graph,
    attachment_bytes: int | Mapping[str, int],
) -> Sizes:
    """Return the length of every message, with the neighbours that each direction's graph has."""
    sizes: Sizes = {}
    before = set(range(parameters.n))
    for phase in PHASES:
        here = present[phase]
        for index in sorted(before):
            client_id = parameters.roster[index]
            sizes[client_id, "down", phase] = _request(phase, parameters, index, down, present)
            if index in here:
                attached = (
                    attachment_bytes if isinstance(attachment_bytes, int) else attachment_bytes[client_id]
                )
                sizes[client_id, "up", phase] = _answer(phase, parameters, index, up, present, attached)
        before = set(here)
    return sizes


def _present(
    parameters: SessionParameters, answered: Mapping[Phase, Set[str]] | None
) -> dict[Phase, frozenset[int]]:
    """Return who answers in each phase, as roster indices."""
    everybody = frozenset(parameters.roster)
    present: dict[Phase, frozenset[int]] = {}
    left = everybody
    for phase in PHASES:
        here = everybody if answered is None else frozenset(answered[phase])
        if not here <= left:
            raise LocalProtocolError(
                f"somebody answers in {phase} who was lost before, or is not on the roster"
            )
        present[phase] = frozenset(i for i, name in enumerate(parameters.roster) if name in here)
        left = here
    return present


def _request(
    phase: Phase,
    parameters: SessionParameters,
    index: int,
    graph: _Graph,
    present: Mapping[Phase, frozenset[int]],
) -> int:
    """Return the length of the server's message to a client that asks for its answer in that phase."""
    around, bitmap = set(graph.neighbours(index)), (parameters.n + 7) // 8
    match phase:
        case "advertise":
            return len(encode(Proposal(parameters)))
        case "share":
            leaves = len((around | {index}) & present["advertise"])
            return _least(Advertisements) + leaves * (least_size(Leaf) + 32 * (parameters.n - 1).bit_length())
        case "mask":
            senders = around & present["share"]
            lower = sum(sender < index for sender in senders)
            parcels = len(senders) * least_size(Parcel) + lower * ENCAPSULATION_BYTES
            return _least(SharesIn) + bitmap + parcels
        case "confirm":
            return _least(Survivors) + bitmap + len(around & present["mask"]) * least_size(MaskStatement)
        case "reveal":
            shown = min(parameters.quorum, len(present["confirm"]))
            return _least(Confirmations) + shown * least_size(ConfirmStatement)


def _answer(
    phase: Phase,
    parameters: SessionParameters,
    index: int,
    graph: _Graph,
    present: Mapping[Phase, frozenset[int]],
    attachment_bytes: int,
) -> int:
    """Return the length of a client's message of that phase."""
    around = set(graph.neighbours(index))
    match phase:
        case "advertise":
            return _least(Advertisement)
        case "share":
            others = around & present["advertise"]
            higher = sum(other > index for other in others)
            escrow = TAG_BYTES + higher * SECRET_BYTES
            return (
                _least(SharesOut) + escrow + len(others) * least_size(Parcel) + higher * ENCAPSULATION_BYTES
            )
        case "mask":
            return _least(MaskedVector) + packed_size(parameters.vector_length, parameters.modulus_bits)
        case "confirm":
            return _least(Confirmation) + attachment_bytes
        case "reveal":
            owners = (around | {index}) & present["share"]
            return _least(Reveal) + len(owners) * least_size(RevealedShare)


def _least(kind: type[Message]) -> int:
    """Return the length of a message of that kind with every string and list in it empty."""
    return 2 + least_size(kind)
