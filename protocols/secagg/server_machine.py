"""How a server goes from phase to phase, whatever is done in them; `SecAggServer` says what is.

::

    propose --start--> advertise --advance--> share --> mask --> confirm --> reveal --> done
                           └── from each of the five, advance may also lead to: aborted
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeVar

from protocols.errors import LocalProtocolError, RemoteProtocolError, SessionAborted
from protocols.redaction import Redacted
from protocols.secagg.codec import Message, UpTo, encode
from protocols.secagg.interface import PHASES
from protocols.secagg.messages import Proposal
from protocols.secagg.session import SessionParameters

PhaseName = Annotated[str, UpTo(16)]
"""The open phase, or the one in which a client was lost, as a snapshot holds it."""


class PhasedState(Protocol):
    """What every server remembers: the phase, and by roster index who was lost in which phase."""

    phase: str
    lost: dict[int, str]

    @property
    def answered(self) -> Mapping[int, Any]:
        """What was kept of each good answer in the open phase."""


AnyState = TypeVar("AnyState", bound=PhasedState)


@dataclass(frozen=True)
class Phase:
    """How a phase takes an answer, how it closes, and which one follows."""

    accept: Callable[[Any, int, bytes], None]
    close: Callable[[Any], dict[int, Message]]
    following: str


class ServerMachine(Redacted, Generic[AnyState]):
    """The server of one session: ``start``, then for each phase ``receive`` answers and ``advance``.

    Args:
        parameters: the session that is proposed to everybody on ``parameters.roster``.
        state: what it starts from.
        transitions: every phase that clients answer.
    """

    def __init__(
        self, parameters: SessionParameters, state: AnyState, transitions: Mapping[str, Phase]
    ) -> None:
        parameters.validate()
        self._parameters = parameters
        self._state = state
        self._transitions = transitions
        self._index = {client_id: index for index, client_id in enumerate(parameters.roster)}

    def __repr__(self) -> str:
        lost = len(self._state.lost)
        return f"{type(self).__name__}(n={self._parameters.n}, phase={self.phase!r}, lost={lost})"

    @property
    def phase(self) -> str:
        """The open phase: "propose", the five that clients answer, "done" or "aborted"."""
        return self._state.phase

    @property
    def lost(self) -> Mapping[str, str]:
        """Every lost client with the phase in which it was lost, also after an abort."""
        return {self._parameters.roster[index]: phase for index, phase in self._state.lost.items()}

    def start(self) -> dict[str, bytes]:
        """Return the proposal for every client, and open the phase "advertise"."""
        if self.phase != "propose":
            raise LocalProtocolError("a session starts once")
        self._state.phase = PHASES[0]
        return self._addressed(dict.fromkeys(self._alive(), Proposal(self._parameters)))

    def receive(self, client_id: str, message: bytes) -> None:
        """Take one client's answer in the open phase.

        Raises:
            RemoteProtocolError: it is not on the roster, was lost before, answered before, or the answer is
                bad; in the last case it is lost now. Nobody else is affected.
            LocalProtocolError: no phase is open.
        """
        phase = self._open_phase()
        index = self._index.get(client_id)
        if index is None:
            raise RemoteProtocolError(client_id, "it is not on the roster")
        if index in self._state.lost:
            raise RemoteProtocolError(client_id, f"it was lost in phase {self._state.lost[index]}, for good")
        if index in self._state.answered:
            raise RemoteProtocolError(client_id, f"it already answered in phase {self.phase}")
        try:
            phase.accept(self, index, message)
        except RemoteProtocolError:
            self._state.lost[index] = self.phase
            raise

    def advance(self) -> dict[str, bytes]:
        """Close the open phase and return the next message for each client that is still there.

        Raises:
            SessionAborted: too few clients are left, or a client's dealing makes the sum unrecoverable.
            LocalProtocolError: no phase is open.
        """
        phase = self._open_phase()
        for index in self._alive():
            if index not in self._state.answered:
                self._state.lost[index] = self.phase
        try:
            messages = phase.close(self)
        except SessionAborted:
            self._state.phase = "aborted"
            self._forget()
            raise
        self._state.phase = phase.following
        return self._addressed(messages)

    def _forget(self) -> None:
        """Drop what an aborted session needs no more."""

    def _require_sum(self) -> None:
        """Raise unless there is a sum."""
        if self.phase != "done":
            raise LocalProtocolError(f"there is no sum: the phase is {self.phase!r}")

    def _open_phase(self) -> Phase:
        """Return the open phase."""
        if self.phase not in self._transitions:
            raise LocalProtocolError(f"no phase is open: the session is {self.phase!r}")
        return self._transitions[self.phase]

    def _alive(self) -> list[int]:
        """Return who is still there, increasing."""
        return [index for index in range(self._parameters.n) if index not in self._state.lost]

    def _left_after(self, phase: str) -> frozenset[int]:
        """Return who was not lost up to the end of a phase: U1 after "advertise", U2 after "share", and so on."""
        closed, lost = PHASES[: PHASES.index(phase) + 1], self._state.lost
        return frozenset(index for index in range(self._parameters.n) if lost.get(index) not in closed)

    def _require(self, present: int, least: int, what: str) -> None:
        """Abort unless enough clients did what the phase asks for."""
        if present < least:
            raise self._aborted(f"only {present} of at least {least} clients {what}")

    def _require_contributors(self, summed: frozenset[int]) -> None:
        """Abort unless every group of coordinates has enough clients in the sum."""
        for group in self._parameters.groups:
            present = len(summed.intersection(group.contributors))
            self._require(present, self._parameters.min_contributors, "masked and contribute to a group")

    def _aborted(self, reason: str) -> SessionAborted:
        """Return the error that ends the session in the open phase."""
        return SessionAborted(self.phase, self._names(self._state.lost), reason)

    def _names(self, indices: Iterable[int]) -> tuple[str, ...]:
        """Return client_ids in roster order."""
        return tuple(self._parameters.roster[index] for index in sorted(indices))

    def _addressed(self, messages: dict[int, Message]) -> dict[str, bytes]:
        """Encode messages by client_id; one that goes to many is encoded once.

        Each is dropped as soon as it is encoded, so that boxes are not held twice.
        """
        encoded: dict[int, bytes] = {}
        addressed: dict[str, bytes] = {}
        for index in sorted(messages):
            message = messages.pop(index)
            if id(message) not in encoded:  # no message is made here, so no two of them share an id
                encoded[id(message)] = encode(message)
            addressed[self._parameters.roster[index]] = encoded[id(message)]
        return addressed
