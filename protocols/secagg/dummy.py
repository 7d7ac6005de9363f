"""INSECURE: the same two machines without any cryptography, for tests of systems that embed the real ones.

The server sees every vector in the clear, and believes whoever claims to be a client. What stays is everything a
system around them can notice: phases, bytes in and bytes out, who is lost when, quorum, threshold, policy and
context, aborts, refusals, snapshots and the result. A session of a thousand clients takes seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Concatenate, ParamSpec

import numpy as np
from numpy.typing import NDArray

from protocols.errors import SERVER, LocalProtocolError, PolicyViolation, RemoteProtocolError
from protocols.packing import pack, unpack
from protocols.secagg import statements
from protocols.secagg.checks import check_proposal, check_vector
from protocols.secagg.codec import Message, UpTo, decode, encode
from protocols.secagg.graph import MaskGraph
from protocols.secagg.identity import MAX_ID_BYTES, Roster
from protocols.secagg.interface import PHASES, AggregationClient, AggregationServer, SecAggResult
from protocols.secagg.messages import MAX_ATTACHMENT_BYTES, Bitmap, Proposal
from protocols.secagg.server_machine import Phase, PhaseName, ServerMachine
from protocols.secagg.session import ClientPolicy, Digest, Index, SessionParameters
from protocols.secagg.snapshot import from_snapshot, to_snapshot
from protocols.secagg.transcript import digest, from_bitmap, to_bitmap

Attachment = Annotated[bytes, UpTo(MAX_ATTACHMENT_BYTES)]


@dataclass(frozen=True)
class _FromServer:
    """Asks for a phase: T1, and who is still there."""

    KIND: ClassVar[int] = 64
    phase: PhaseName
    t1: Digest
    members: Bitmap


@dataclass(frozen=True)
class _FromClient:
    """Answers a phase: `content` is the packed vector in the clear, the attachment, or empty."""

    KIND: ClassVar[int] = 65
    phase: PhaseName
    session: Digest
    client_id: Annotated[str, UpTo(MAX_ID_BYTES)]
    content: Annotated[bytes, UpTo(2**32 - 1)]


@dataclass(frozen=True)
class _ClientState:
    """What a client remembers; `proposal` is the one it accepted, in bytes."""

    KIND: ClassVar[int] = 162
    phase: PhaseName = "advertise"
    proposal: Annotated[bytes, UpTo(2**32 - 1)] = b""
    u2: Bitmap = b""
    survivors: tuple[Annotated[str, UpTo(MAX_ID_BYTES)], ...] = ()


@dataclass
class _ServerState:
    """What a server remembers; `answered` is about the open phase."""

    phase: PhaseName = "propose"
    lost: dict[Index, PhaseName] = field(default_factory=dict)
    answered: dict[Index, Attachment] = field(default_factory=dict)
    attachments: dict[Index, Attachment] = field(default_factory=dict)


@dataclass(frozen=True)
class _SavedServer:
    """A server's whole state."""

    KIND: ClassVar[int] = 163
    state: _ServerState
    total: Annotated[bytes, UpTo(2**32 - 1)]


_Args = ParamSpec("_Args")


def _refusing(
    method: Callable[Concatenate[InsecureDummyClient, _Args], bytes],
) -> Callable[Concatenate[InsecureDummyClient, _Args], bytes]:
    """Leave the session for good when the server breaks the protocol or the policy refuses it."""

    @functools.wraps(method)
    def wrapped(self: InsecureDummyClient, /, *args: _Args.args, **kwargs: _Args.kwargs) -> bytes:
        try:
            return method(self, *args, **kwargs)
        except (RemoteProtocolError, PolicyViolation):
            self._state = _ClientState("refused")
            raise

    return wrapped


class InsecureDummyClient:
    """INSECURE, for tests: behaves like `SecAggClient` and hides nothing.

    Args:
        client_id, policy, context: as `SecAggClient` takes them.

    There is no identity, no roster and no guard, because nothing is signed and nothing is secret.
    """

    def __init__(self, *, client_id: str, policy: ClientPolicy, context: bytes) -> None:
        self._client_id = client_id
        self._policy = policy
        self._context = context
        self._state = _ClientState()

    def __repr__(self) -> str:
        return f"InsecureDummyClient({self._client_id!r}, phase={self.phase!r})"

    @property
    def phase(self) -> str:
        """See `AggregationClient`, here and below."""
        return self._state.phase

    @property
    def session_id(self) -> bytes | None:
        """The session it has advertised for and is still in."""
        return self._parameters.session_id if self._state.proposal else None

    @property
    def survivors(self) -> tuple[str, ...]:
        """The clients whose sum it confirmed; empty before."""
        return self._state.survivors

    def snapshot(self) -> bytes:
        """Return the whole state as bytes."""
        return to_snapshot(self._state, self._belongs_to())

    @classmethod
    def restore(
        cls, snapshot: bytes, *, client_id: str, policy: ClientPolicy, context: bytes
    ) -> InsecureDummyClient:
        """Return the client that `snapshot` was taken of."""
        client = cls(client_id=client_id, policy=policy, context=context)
        of = "client or another context"
        client._state = from_snapshot((_ClientState,), snapshot, client._belongs_to(), of)
        return client

    @_refusing
    def advertise(self, proposal: bytes) -> bytes:
        """Accept a session."""
        self._expect("advertise")
        parameters = decode(Proposal, proposal, SERVER, self._policy.max_proposal_bytes).parameters
        self._policy.check(parameters)
        everybody = Roster({name: digest(b"insecure-dummy", name.encode()) for name in parameters.roster})
        check_proposal(parameters, self._policy, self._client_id, everybody, self._context)
        self._state = _ClientState(proposal=encode(Proposal(parameters)))
        return self._answer()

    @_refusing
    def share(self, advertisements: bytes) -> bytes:
        """Pretend to share."""
        u1, graph = self._received("share", advertisements)
        _require(
            len(u1 & self._holders(graph)) >= self._parameters.threshold, "too few neighbours advertised"
        )
        return self._answer()

    @_refusing
    def mask(self, shares: bytes, vector: NDArray[np.uint32]) -> bytes:
        """Give the vector away."""
        self._expect("mask")
        parameters = self._parameters
        check_vector(vector, parameters, self._client_id)
        u2, graph = self._received("mask", shares)
        _require(len(u2) >= parameters.least, "U2 is smaller than the quorum or than min_survivors")
        _require(len(u2 & self._holders(graph)) >= parameters.threshold, "U2 has too few neighbours")
        bitmap = to_bitmap(u2, parameters.n)
        return self._answer(pack(vector, parameters.modulus_bits), u2=bitmap)

    @_refusing
    def confirm(self, survivors: bytes, attachment: bytes = b"") -> bytes:
        """Agree to who is in the sum."""
        u3, graph = self._received("confirm", survivors)
        parameters = self._parameters
        _require(u3 <= from_bitmap(self._state.u2, parameters.n), "U3 has a client outside U2")
        _require(len(u3) >= parameters.least, "U3 is smaller than the quorum or than min_survivors")
        for group in parameters.groups:
            present = len(u3.intersection(group.contributors))
            _require(
                present >= parameters.min_contributors, "a coordinate group has too few contributors in U3"
            )
        _require(graph.weakest_cut(u3) > parameters.max_colluders, "U3 leaves two windows to colluders")
        if len(attachment) > MAX_ATTACHMENT_BYTES:
            raise LocalProtocolError(f"an attachment is at most {MAX_ATTACHMENT_BYTES} bytes")
        return self._answer(attachment, survivors=tuple(parameters.roster[index] for index in sorted(u3)))

    @_refusing
    def reveal(self, confirmations: bytes) -> bytes:
        """Let the server have the sum."""
        confirmed, _ = self._received("reveal", confirmations)
        _require(len(confirmed) >= self._parameters.quorum, "fewer confirmations than the quorum")
        answer = self._answer()
        self._state = _ClientState("done", survivors=self._state.survivors)
        return answer

    @property
    def _parameters(self) -> SessionParameters:
        """The session it accepted."""
        return decode(Proposal, self._state.proposal, SERVER).parameters

    def _belongs_to(self) -> bytes:
        """Return what ties a snapshot to this client and context."""
        return digest(b"insecure-dummy-client", self._client_id.encode(), self._context)

    def _expect(self, phase: str) -> None:
        """Raise unless it is that phase's turn."""
        if self.phase != phase:
            raise LocalProtocolError(
                f"{self._client_id}: it is not the turn of {phase!r}: the phase is {self.phase!r}"
            )

    def _received(self, phase: str, data: bytes) -> tuple[frozenset[int], MaskGraph]:
        """Return who is still there, and the graph."""
        self._expect(phase)
        parameters = self._parameters
        message = decode(_FromServer, data, SERVER, 1000 + parameters.n)
        _require(message.phase == phase, f"it asks for {message.phase!r}")
        try:
            members = from_bitmap(message.members, parameters.n)
        except ValueError as error:
            raise RemoteProtocolError(SERVER, str(error)) from None
        _require(parameters.roster.index(self._client_id) in members, "this client is left out")
        return members, MaskGraph(parameters.n, parameters.degree, message.t1)

    def _holders(self, graph: MaskGraph) -> frozenset[int]:
        """Return the roster indices of this client's neighbours and itself."""
        return frozenset(graph.holders(self._parameters.roster.index(self._client_id)))

    def _answer(self, content: bytes = b"", u2: bytes = b"", survivors: tuple[str, ...] = ()) -> bytes:
        """Move to the next phase and return the message of this one."""
        state, phase = self._state, self.phase
        following = (*PHASES, "done")[PHASES.index(phase) + 1]
        message = _FromClient(phase, self._parameters.session_id, self._client_id, content)
        self._state = _ClientState(following, state.proposal, u2 or state.u2, survivors or state.survivors)
        return encode(message)


class InsecureDummyServer(ServerMachine[_ServerState]):
    """INSECURE, for tests: behaves like `SecAggServer` and is sent every vector in the clear."""

    def __init__(self, *, parameters: SessionParameters) -> None:
        super().__init__(parameters, _ServerState(), TRANSITIONS)
        self._t0 = statements.parameters_digest(parameters)
        self._sum = np.zeros(parameters.vector_length, dtype=np.uint32)

    def snapshot(self) -> bytes:
        """Return the whole state as bytes."""
        return to_snapshot(_SavedServer(self._state, self._sum.astype("<u4").tobytes()), self._belongs_to())

    @classmethod
    def restore(cls, snapshot: bytes, *, parameters: SessionParameters) -> InsecureDummyServer:
        """Return the server that `snapshot` was taken of."""
        server = cls(parameters=parameters)
        saved = from_snapshot((_SavedServer,), snapshot, server._belongs_to(), of="session, or to a client")
        server._state = saved.state
        server._sum = np.frombuffer(saved.total, dtype="<u4").astype(np.uint32)
        return server

    def result(self) -> SecAggResult:
        """Return the sum, once the reveal phase was closed."""
        self._require_sum()
        return SecAggResult(
            sum=self._sum,
            survivors=self._names(self._left_after("mask")),
            transcript=self._t1(),
            attachments={self._parameters.roster[i]: given for i, given in self._state.attachments.items()},
            lost=self.lost,
        )

    def _accept(self, index: int, data: bytes) -> None:
        """Believe whoever says to be that client."""
        parameters, client_id = self._parameters, self._parameters.roster[index]
        message = decode(_FromClient, data, client_id)
        expected = (self.phase, parameters.session_id, client_id)
        if (message.phase, message.session, message.client_id) != expected:
            raise RemoteProtocolError(client_id, "the answer is of another phase, session or client")
        if self.phase == "mask":
            try:
                self._sum += unpack(message.content, parameters.modulus_bits, parameters.vector_length)
            except LocalProtocolError as error:
                raise RemoteProtocolError(client_id, str(error)) from None
        elif len(message.content) > (MAX_ATTACHMENT_BYTES if self.phase == "confirm" else 0):
            raise RemoteProtocolError(client_id, "the answer is too long")
        self._state.answered[index] = message.content if self.phase == "confirm" else b""

    def _close(self) -> dict[int, Message]:
        """Count who is left, and tell everybody."""
        parameters, here = self._parameters, frozenset(self._alive())
        match self.phase:
            case "advertise" | "share":
                done = {"advertise": "advertised", "share": "shared"}[self.phase]
                self._require(len(here), parameters.least, done)
            case "mask":
                self._require(len(here), parameters.least, "masked")
                self._require_contributors(here)
            case "confirm":
                self._require(len(here), parameters.quorum, "confirmed")
                self._state.attachments = self._state.answered
            case _:
                self._require_holders(here)
                self._sum &= np.uint32(2**parameters.modulus_bits - 1)
        self._state.answered = {}
        following = TRANSITIONS[self.phase].following
        if following == "done":
            return {}
        return dict.fromkeys(here, _FromServer(following, self._t1(), to_bitmap(here, parameters.n)))

    def _require_holders(self, here: frozenset[int]) -> None:
        """Abort unless enough clients are there who would hold shares of each one that shared."""
        graph = MaskGraph(self._parameters.n, self._parameters.degree, self._t1())
        for owner in sorted(self._left_after("share")):
            held = len(here.intersection(graph.holders(owner)))
            self._require(
                held, self._parameters.threshold, f"hold shares of {self._parameters.roster[owner]}"
            )

    def _t1(self) -> bytes:
        """Return what stands for T1: it depends on the session and on who advertised."""
        advertised = to_bitmap(self._left_after("advertise"), self._parameters.n)
        return digest(b"insecure-dummy", self._t0, advertised)

    def _forget(self) -> None:
        """Drop the sum."""
        self._sum = np.zeros(0, dtype=np.uint32)

    def _belongs_to(self) -> bytes:
        """Return what ties a snapshot to this session."""
        return digest(b"insecure-dummy-server", self._t0)


def _require(holds: bool, otherwise: str) -> None:
    """Blame the server unless the condition holds."""
    if not holds:
        raise RemoteProtocolError(SERVER, otherwise)


TRANSITIONS: Mapping[str, Phase] = {
    phase: Phase(InsecureDummyServer._accept, InsecureDummyServer._close, following)
    for phase, following in zip(PHASES, (*PHASES[1:], "done"), strict=True)
}
"""Every phase that clients answer."""

if TYPE_CHECKING:  # the type checker proves here that the real machines and the dummies fit one interface
    from protocols.secagg.client import SecAggClient
    from protocols.secagg.server import SecAggServer

    _CLIENTS: tuple[type[AggregationClient], ...] = (SecAggClient, InsecureDummyClient)
    _SERVERS: tuple[type[AggregationServer], ...] = (SecAggServer, InsecureDummyServer)
