"""The client's side of a session: bytes in, bytes out, one method for each phase.

Theory of operation. The client holds one state (`client_state`), and a phase is the one message it may send
next. Each method checks everything it was given, computes its message, has the guard record the message's
digest, and only then moves on and hands the message out. If the server, or a peer behind it, broke the
protocol, the client drops its secrets and is out of the session for good. If the *caller* gave a wrong
argument, nothing changes and it may try again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from protocols.errors import (
    SERVER,
    GuardViolation,
    LocalProtocolError,
    PolicyViolation,
    RemoteProtocolError,
)
from protocols.packing import pack
from protocols.redaction import Redacted
from protocols.secagg import checks, dealing, keys, statements
from protocols.secagg.client_state import (
    KINDS,
    Advertised,
    Confirmed,
    Done,
    Fresh,
    Masked,
    Refused,
    Shared,
    State,
)
from protocols.secagg.codec import decode, encode
from protocols.secagg.guard import Guard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.limits import most_bytes
from protocols.secagg.mask import Mask, add_masks
from protocols.secagg.messages import (
    Advertisement,
    Advertisements,
    Confirmation,
    Confirmations,
    MaskedVector,
    Proposal,
    Reveal,
    RevealedShare,
    SharesIn,
    Survivors,
)
from protocols.secagg.session import ClientPolicy
from protocols.secagg.snapshot import from_snapshot, to_snapshot
from protocols.secagg.transcript import digest, set_digest

TRANSITIONS: Mapping[type[State], type[State]] = {
    Fresh: Advertised,
    Advertised: Shared,
    Shared: Masked,
    Masked: Confirmed,
    Confirmed: Done,
}
"""The only ways forward. Every state but the last two may also become `Refused`."""

_State = TypeVar("_State", Fresh, Advertised, Shared, Masked, Confirmed)
_Args = ParamSpec("_Args")


def _refusing(
    method: Callable[Concatenate[SecAggClient, _Args], bytes],
) -> Callable[Concatenate[SecAggClient, _Args], bytes]:
    """Leave the session for good when the peer breaks the protocol or an output would be a second one."""

    @functools.wraps(method)
    def wrapped(self: SecAggClient, /, *args: _Args.args, **kwargs: _Args.kwargs) -> bytes:
        try:
            return method(self, *args, **kwargs)
        except (RemoteProtocolError, PolicyViolation, GuardViolation):
            self._state = Refused()
            raise

    return wrapped


class SecAggClient(Redacted):
    """One client in one session: ``advertise → share → mask → confirm → reveal``.

    Args:
        client_id: this client's name on the roster.
        identity: its signing key; the roster must pin the public half.
        roster: everybody's identities, received by another way than the server.
        policy: what this client accepts.
        guard: the durable memory of its outputs.
        context: 32 bytes that the caller computed from the global model, experiment, quantiser and support
            that it really loaded. Never take them from the server.
        entropy: ``entropy(n)`` returns n random bytes. Anything but the default is for tests.

    Every phase's method raises:
        LocalProtocolError: it is not that phase's turn, or an argument of the caller is wrong.
        RemoteProtocolError: the server, or a peer whose message it relays, broke the protocol.
        PolicyViolation: the client's policy refuses the session.
        GuardViolation: another output was given before, by an earlier copy of this client.

    Guarantee: against a server that deviates, with up to `max_colluders` clients, the vector given to `mask`
    stays hidden among those of at least ``min_survivors - max_colluders`` honest clients; on the coordinates of
    a group, of at least ``min_contributors - max_colluders``.
    """

    def __init__(
        self,
        *,
        client_id: str,
        identity: Identity,
        roster: Roster,
        policy: ClientPolicy,
        guard: Guard,
        context: bytes,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if roster.get(client_id) != identity.public_bytes:
            raise LocalProtocolError(f"the roster does not pin this identity for {client_id!r}")
        if len(context) != 32:
            raise LocalProtocolError("a context is 32 bytes: a digest of what the client loaded")
        self._client_id = client_id
        self._identity = identity
        self._roster = roster
        self._policy = policy
        self._guard = guard
        self._context = context
        self._entropy = entropy
        self._state: State = Fresh()

    def __repr__(self) -> str:
        return f"SecAggClient({self._client_id!r}, phase={self.phase!r})"

    @property
    def phase(self) -> str:
        """What it sends next: "advertise", "share", "mask", "confirm", "reveal"; or "done", "refused"."""
        return self._state.PHASE

    @property
    def session_id(self) -> bytes | None:
        """The session it has advertised for and is still in, for the application's own records."""
        state = self._state
        if isinstance(state, Advertised | Shared | Masked | Confirmed):
            return state.parameters.session_id
        return None

    @property
    def transcript(self) -> bytes | None:
        """T1 of the session, known once it has shared and until it has revealed."""
        return self._state.t1 if isinstance(self._state, Shared | Masked | Confirmed) else None

    @property
    def survivors(self) -> tuple[str, ...]:
        """The clients whose sum this client confirmed; empty before. A second exchange has exactly these."""
        return self._state.survivors if isinstance(self._state, Confirmed | Done) else ()

    def snapshot(self) -> bytes:
        """Return the whole state as bytes. They are secret: store them encrypted, and only the latest."""
        return to_snapshot(self._state, self._belongs_to())

    @classmethod
    def restore(
        cls,
        snapshot: bytes,
        *,
        client_id: str,
        identity: Identity,
        roster: Roster,
        policy: ClientPolicy,
        guard: Guard,
        context: bytes,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> SecAggClient:
        """Return the client that `snapshot` was taken of; give the same arguments as to the first one.

        Raises:
            LocalProtocolError: the snapshot is damaged, or of another client or context.
            PolicyViolation: its session is not one that this policy and roster accept, for instance of an
                earlier round.
        """
        client = cls(
            client_id=client_id,
            identity=identity,
            roster=roster,
            policy=policy,
            guard=guard,
            context=context,
            entropy=entropy,
        )
        state = from_snapshot(KINDS, snapshot, client._belongs_to(), of="client or another context")
        if isinstance(state, Advertised | Shared | Masked | Confirmed):
            checks.check_proposal(state.parameters, policy, client_id, roster, context)
        client._state = state
        return client

    @_refusing
    def advertise(self, proposal: bytes) -> bytes:
        """Return this client's signed public keys, if it accepts the proposed session."""
        self._enter(Fresh)
        received = decode(Proposal, proposal, SERVER, self._policy.max_proposal_bytes)
        parameters = received.parameters
        if encode(received) != proposal:  # a default left out, as no groups: then the bytes would not fix T0
            raise RemoteProtocolError(SERVER, "the proposal leaves something out that it must say")
        checks.check_proposal(parameters, self._policy, self._client_id, self._roster, self._context)
        self._guard.begin_session(parameters.session_id)
        t0 = statements.parameters_digest(parameters)
        seed, master = self._entropy(keys.SECRET_BYTES), self._entropy(keys.SECRET_BYTES)
        box_secret = self._entropy(keys.KEY_PAIR_SECRET_BYTES)
        message = Advertisement(
            box_key=keys.KeyPair.from_secret(box_secret).public_bytes,
            mask_key=keys.mask_key_pair(master, t0, self._client_id).public_bytes,
            signature=statements.UNSIGNED,
        )
        message = replace(message, signature=self._sign(statements.advertise(t0, self._client_id, message)))
        return self._leave(Advertised(parameters, seed, master, box_secret, message), encode(message))

    @_refusing
    def share(self, advertisements: bytes) -> bytes:
        """Return this client's secrets as signed shares in boxes, one box for each neighbour."""
        state = self._enter(Advertised)
        received = decode(
            Advertisements, advertisements, SERVER, most_bytes(Advertisements, state.parameters)
        )
        checks.check_advertisements(received, state, self._client_id, self._roster)
        shared, message = dealing.deal(received, state, self._client_id, self._entropy)
        signature = self._sign(statements.share(received.t1, self._client_id, message))
        return self._leave(shared, encode(replace(message, signature=signature)))

    @_refusing
    def mask(self, shares: bytes, vector: NDArray[np.uint32]) -> bytes:
        """Return `vector`, ring elements of shape (vector_length,), under its masks, packed and signed.

        Neighbours whose box does not open are masked with all the same. A server that starves a client of
        boxes would else get it masked by its self-mask alone, and ask the others for that.
        """
        state = self._enter(Shared)
        parameters = state.parameters
        checks.check_vector(vector, parameters, self._client_id)
        received = decode(SharesIn, shares, SERVER, most_bytes(SharesIn, parameters))
        u2 = checks.check_shares(received, state, self._client_id)
        masks = [Mask(keys.self_mask_key(state.seed, state.t1, self._client_id))]
        masks += dealing.pair_masks(received.parcels, state, self._client_id)
        held = (state.own, *dealing.open_parcels(received.parcels, state, self._client_id))
        ring = vector.copy()
        add_masks(ring, masks, parameters.modulus_bits)
        packed = pack(ring, parameters.modulus_bits)
        masked_digest = statements.vector_digest(packed)
        u2_digest = set_digest(u2, parameters.n)
        signature = self._sign(statements.mask(state.t1, u2_digest, self._client_id, masked_digest))
        self._guard.claim_round(
            parameters.round, parameters.exchange, parameters.session_id, self._policy.allow_remask
        )
        masked = Masked(
            parameters, state.t1, received.u2, tuple(sorted(held, key=lambda shares: shares.owner))
        )
        return self._leave(masked, encode(MaskedVector(packed, signature)))

    @_refusing
    def confirm(self, survivors: bytes, attachment: bytes = b"") -> bytes:
        """Return a signature over who shared (U2) and who is in the sum (U3), with the caller's `attachment`.

        Args:
            attachment: at most 1024 bytes of the application; signed here, handed to the server's caller.
        """
        state = self._enter(Masked)
        parameters = state.parameters
        received = decode(Survivors, survivors, SERVER, most_bytes(Survivors, parameters))
        u2, u3 = checks.check_survivors(received, state, self._client_id, self._roster)
        statement = statements.confirm(
            state.t1,
            set_digest(u2, parameters.n),
            set_digest(u3, parameters.n),
            self._client_id,
            statements.attachment_digest(attachment),
        )
        message = Confirmation(attachment, self._sign(statement))
        summed = tuple(parameters.roster[index] for index in sorted(u3))
        confirmed = Confirmed(parameters, state.t1, state.u2, summed, state.held)
        return self._leave(confirmed, encode(message))

    @_refusing
    def reveal(self, confirmations: bytes) -> bytes:
        """Return, of each client, the one share that lets the server remove its mask: never both."""
        state = self._enter(Confirmed)
        parameters = state.parameters
        received = decode(Confirmations, confirmations, SERVER, most_bytes(Confirmations, parameters))
        checks.check_confirmations(received, state, self._roster)
        survivors = frozenset(state.survivors)
        shares = [
            RevealedShare(held.owner, held.seed_share, held.seed_salt)
            if parameters.roster[held.owner] in survivors
            else RevealedShare(held.owner, held.master_share, held.master_salt)
            for held in state.held  # all of them in U2: their parcels came with it
        ]
        message = Reveal(tuple(shares), statements.UNSIGNED)
        signature = self._sign(statements.reveal(state.t1, self._client_id, message))
        return self._leave(Done(state.survivors), encode(replace(message, signature=signature)))

    def _enter(self, kind: type[_State]) -> _State:
        """Return the state that a phase starts from."""
        if not isinstance(self._state, kind):
            raise LocalProtocolError(
                f"{self._client_id}: it is not the turn of {kind.PHASE!r}: the phase is {self.phase!r}"
            )
        return self._state

    def _leave(self, state: State, message: bytes) -> bytes:
        """Move to the next state and hand out the message, once the guard remembers it."""
        before = self._state
        if TRANSITIONS.get(type(before)) is not type(state):
            raise LocalProtocolError(f"{before.PHASE!r} cannot be followed by {state.PHASE!r}")
        session = state if isinstance(state, Advertised) else before
        if isinstance(session, Advertised | Shared | Masked | Confirmed):
            self._guard.record(session.parameters.session_id, before.PHASE, digest(b"output", message))
        self._state = state
        return message

    def _belongs_to(self) -> bytes:
        """Return what ties a snapshot to this client and context."""
        return digest(b"client-snapshot", self._client_id.encode(), self._context)

    def _sign(self, statement: statements.Statement) -> bytes:
        """Sign a statement."""
        return self._identity.sign(*statement)
