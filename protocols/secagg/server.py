"""The server's side of a session: it routes messages, adds masked vectors, and removes the masks of the sum.

Theory of operation. One phase is open at a time. `receive` takes the answer of one client; a bad answer
raises and loses that client, nobody else. `advance` closes the phase: whoever has not answered is lost for
good, and the next messages come out. A masked vector is added on arrival and not kept, so memory is one vector
plus what is small; late vectors stay out, where their self-mask protects them.

The server is not trusted by anybody: each rule it keeps is also checked by the clients (`checks`), or only
saves honest parties a session that could not end well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocols.errors import LocalProtocolError, RemoteProtocolError, SessionAborted
from protocols.packing import unpack
from protocols.secagg import keys, statements
from protocols.secagg.codec import Message, decode, encode
from protocols.secagg.graph import MaskGraph
from protocols.secagg.identity import Roster
from protocols.secagg.mask import Mask, add_masks
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
    SharesIn,
    SharesOut,
    Survivors,
)
from protocols.secagg.recovery import Dealt, Recovery
from protocols.secagg.session import SessionParameters
from protocols.secagg.transcript import MerkleTree, set_digest, to_bitmap


@dataclass(frozen=True)
class SecAggResult:
    """What a session gives: the sum modulo 2^modulus_bits, uint32 of shape (vector_length,), and of whom.

    `transcript` is T1; `attachments` are those of the clients that confirmed; `lost` says in which phase each
    of the others was lost.
    """

    sum: NDArray[np.uint32] = field(repr=False)
    survivors: tuple[str, ...]
    transcript: bytes
    attachments: Mapping[str, bytes] = field(repr=False)
    lost: Mapping[str, str]


@dataclass(frozen=True)
class _Phase:
    """How a phase takes an answer, how it closes, and which one follows."""

    accept: Callable[[SecAggServer, int, bytes], None]
    close: Callable[[SecAggServer], Mapping[int, Message]]
    following: str


class SecAggServer:
    """The server of one session.

    Args:
        parameters: the session that is proposed to everybody on ``parameters.roster``.
        roster: the identities of those clients, to name who sent what is wrong.

    Raises:
        LocalProtocolError: the parameters are unsafe, or a client has no identity in `roster`.
    """

    def __init__(self, *, parameters: SessionParameters, roster: Roster) -> None:
        parameters.validate()
        if unknown := [client_id for client_id in parameters.roster if client_id not in roster]:
            raise LocalProtocolError(f"no identity is known for {', '.join(unknown)}")
        self._parameters = parameters
        self._roster = roster
        self._index = {client_id: index for index, client_id in enumerate(parameters.roster)}
        self._phase = "propose"
        self._t0 = statements.parameters_digest(parameters)
        self._alive = set(range(parameters.n))
        self._answered: set[int] = set()
        self._u1 = self._u2 = self._u3 = frozenset[int]()  # who advertised, shared, masked
        self._lost: dict[str, str] = {}
        self._advertisements: dict[int, Advertisement] = {}
        self._dealt: dict[int, Dealt] = {}
        self._parcels: dict[int, list[Parcel]] = {}
        self._sum = np.zeros(0, dtype=np.uint32)
        self._masked: dict[int, MaskStatement] = {}
        self._confirmed: dict[int, ConfirmStatement] = {}
        self._attachments: dict[str, bytes] = {}
        self._shares: dict[int, dict[int, bytes]] = {}

    def __repr__(self) -> str:
        return f"SecAggServer(n={self._parameters.n}, phase={self._phase!r}, lost={len(self._lost)})"

    @property
    def phase(self) -> str:
        """The open phase: "propose", the five that clients answer, "done" or "aborted"."""
        return self._phase

    @property
    def lost(self) -> Mapping[str, str]:
        """Every lost client with the phase in which it was lost, also after an abort."""
        return dict(self._lost)

    def start(self) -> dict[str, bytes]:
        """Return the proposal for every client, and open the phase "advertise"."""
        if self._phase != "propose":
            raise LocalProtocolError("a session starts once")
        self._phase = "advertise"
        return self._addressed(dict.fromkeys(self._alive, Proposal(self._parameters)))

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
        if index not in self._alive:
            raise RemoteProtocolError(client_id, f"it was lost in phase {self._lost[client_id]}, for good")
        if index in self._answered:
            raise RemoteProtocolError(client_id, f"it already answered in phase {self._phase}")
        try:
            phase.accept(self, index, message)
        except RemoteProtocolError:
            self._lose(index)
            raise
        self._answered.add(index)

    def advance(self) -> dict[str, bytes]:
        """Close the open phase and return the next message for each client that is still there.

        Raises:
            SessionAborted: too few clients are left, or a client's dealing makes the sum unrecoverable.
            LocalProtocolError: no phase is open.
        """
        phase = self._open_phase()
        for index in sorted(self._alive - self._answered):
            self._lose(index)
        self._answered = set()
        messages = phase.close(self)
        self._phase = phase.following
        return self._addressed(messages)

    def result(self) -> SecAggResult:
        """Return the sum, once the reveal phase was closed.

        Raises:
            LocalProtocolError: there is no sum yet, or there will be none.
        """
        if self._phase != "done":
            raise LocalProtocolError(f"there is no sum: the phase is {self._phase!r}")
        return SecAggResult(
            sum=self._sum,
            survivors=self._names(self._u3),
            transcript=self._tree.root,
            attachments=dict(self._attachments),
            lost=self.lost,
        )

    # advertise: T1

    def _accept_advertisement(self, index: int, data: bytes) -> None:
        """Check keys and signature."""
        client_id = self._parameters.roster[index]
        message = decode(Advertisement, data, client_id)
        self._roster.verify(client_id, *statements.advertise(self._t0, client_id, message), message.signature)
        keys.check_public_key(message.box_key, client_id)
        keys.check_public_key(message.mask_key, client_id)
        self._advertisements[index] = message

    def _close_advertise(self) -> Mapping[int, Message]:
        """Fix T1 and the graph, and show every client its neighbours' keys."""
        self._require(len(self._alive), self._parameters.least, "advertised")
        self._u1 = frozenset(self._alive)
        encoded = {index: encode(message) for index, message in self._advertisements.items()}
        self._tree = MerkleTree(self._t0, encoded, self._parameters.n)
        self._graph = MaskGraph(self._parameters.n, self._parameters.degree, self._tree.root)
        leaves = {
            index: Leaf(index, message, self._tree.path(index))
            for index, message in self._advertisements.items()
        }
        return {
            index: Advertisements(
                self._tree.root, tuple(leaves[i] for i in self._graph.holders(index) if i in self._u1)
            )
            for index in self._alive
        }

    # share: U2

    def _accept_shares(self, index: int, data: bytes) -> None:
        """Check that a client dealt to exactly its neighbours; keep the boxes until they are delivered."""
        client_id = self._parameters.roster[index]
        message = decode(SharesOut, data, client_id)
        statement = statements.share(self._tree.root, client_id, message)
        self._roster.verify(client_id, *statement, message.signature)
        expected = [other for other in self._graph.neighbours(index) if other in self._u1]
        higher = [other for other in expected if other > index]
        _require_of(client_id, [p.recipient for p in message.parcels] == expected, "it dealt to others")
        _require_of(
            client_id,
            all(
                p.sender == index
                and len(p.mask_encapsulation) == (keys.ENCAPSULATION_BYTES if p.recipient > index else 0)
                for p in message.parcels
            ),
            "a parcel has another sender or another half of the mask key",
        )
        escrow_bytes = len(higher) * keys.SECRET_BYTES + keys.TAG_BYTES
        _require_of(client_id, len(message.escrow) == escrow_bytes, "its escrow has another length")
        self._dealt[index] = Dealt.of(message, index)
        for parcel in message.parcels:
            self._parcels.setdefault(parcel.recipient, []).append(parcel)

    def _close_share(self) -> Mapping[int, Message]:
        """Fix U2 and deliver the boxes."""
        self._require(len(self._alive), self._parameters.least, "shared")
        self._u2 = frozenset(self._alive)
        self._sum = np.zeros(self._parameters.vector_length, dtype=np.uint32)
        bitmap = to_bitmap(self._u2, self._parameters.n)
        parcels, self._parcels = self._parcels, {}
        return {
            index: SharesIn(bitmap, tuple(sorted(parcels.pop(index, ()), key=lambda parcel: parcel.sender)))
            for index in self._alive
        }

    # mask: U3

    def _accept_masked_vector(self, index: int, data: bytes) -> None:
        """Add a masked vector, and keep only what its sender signed about it."""
        client_id = self._parameters.roster[index]
        message = decode(MaskedVector, data, client_id)
        masked_digest = statements.vector_digest(message.packed)
        u2_digest = set_digest(self._u2, self._parameters.n)
        statement = statements.mask(self._tree.root, u2_digest, client_id, masked_digest)
        self._roster.verify(client_id, *statement, message.signature)
        try:
            vector = unpack(message.packed, self._parameters.modulus_bits, self._parameters.vector_length)
        except LocalProtocolError as error:
            raise RemoteProtocolError(client_id, str(error)) from None
        self._sum += vector  # modulo 2^32; reduced to 2^b at the end
        self._masked[index] = MaskStatement(index, masked_digest, message.signature)

    def _close_mask(self) -> Mapping[int, Message]:
        """Fix U3 and show every client what its neighbours signed about U2."""
        self._require(len(self._alive), self._parameters.least, "masked")
        self._u3 = frozenset(self._alive)
        for group in self._parameters.groups:
            present = len(self._u3.intersection(group.contributors))
            self._require(present, self._parameters.min_contributors, "masked and contribute to a group")
        bitmap = to_bitmap(self._u3, self._parameters.n)
        return {
            index: Survivors(
                bitmap, tuple(self._masked[i] for i in self._graph.neighbours(index) if i in self._u3)
            )
            for index in self._alive
        }

    # confirm

    def _accept_confirmation(self, index: int, data: bytes) -> None:
        """Check that a client confirms this U2 and U3."""
        client_id = self._parameters.roster[index]
        message = decode(Confirmation, data, client_id)
        attached = statements.attachment_digest(message.attachment)
        n = self._parameters.n
        statement = statements.confirm(
            self._tree.root, set_digest(self._u2, n), set_digest(self._u3, n), client_id, attached
        )
        self._roster.verify(client_id, *statement, message.signature)
        self._confirmed[index] = ConfirmStatement(index, attached, message.signature)
        self._attachments[client_id] = message.attachment

    def _close_confirm(self) -> Mapping[int, Message]:
        """Show everybody a quorum of confirmations; more would only cost each client their verification."""
        quorum = self._parameters.quorum
        self._require(len(self._alive), quorum, "confirmed")
        confirmations = tuple(self._confirmed[index] for index in sorted(self._confirmed)[:quorum])
        return dict.fromkeys(self._alive, Confirmations(confirmations))

    # reveal: the sum

    def _accept_reveal(self, index: int, data: bytes) -> None:
        """Keep the shares a client reveals, if every one is what its dealer signed."""
        client_id = self._parameters.roster[index]
        message = decode(Reveal, data, client_id)
        self._roster.verify(
            client_id, *statements.reveal(self._tree.root, client_id, message), message.signature
        )
        owners = [revealed.owner for revealed in message.shares]
        _require_of(client_id, owners == sorted(set(owners)), "it reveals shares out of order")
        for revealed in message.shares:
            expected = self._share_digests(revealed.owner).get(index)
            matches = statements.share_digest(revealed.salt, revealed.share) == expected
            _require_of(client_id, matches, "it reveals a share that is not the one dealt to it")
        for revealed in message.shares:
            self._shares.setdefault(revealed.owner, {})[index] = revealed.share

    def _share_digests(self, owner: int) -> Mapping[int, bytes]:
        """Return, by holder, the digests of the shares that may be revealed of that owner."""
        if owner in self._u3:
            return self._dealt[owner].seed_digests
        return self._dealt[owner].master_digests if owner in self._u2 else {}

    def _close_reveal(self) -> Mapping[int, Message]:
        """Remove the self-masks of U3 and the pair masks of U2 without U3."""
        parameters = self._parameters
        recovery = Recovery(
            self._t0,
            self._tree.root,
            parameters.threshold,
            parameters.roster,
            self._advertisements,
            self._dealt,
        )
        masks: list[Mask] = []
        for owner in sorted(self._u2):
            shares = self._shares.get(owner, {})
            self._require(len(shares), parameters.threshold, f"hold shares of {parameters.roster[owner]}")
            try:
                if owner in self._u3:
                    masks.append(recovery.self_mask(owner, shares))
                else:
                    masks += recovery.pair_masks(owner, shares, self._u3)
            except RemoteProtocolError as error:
                raise self._aborted(str(error)) from None
        add_masks(self._sum, (mask.inverse for mask in masks), parameters.modulus_bits)
        self._shares = {}
        return {}

    # all phases

    def _open_phase(self) -> _Phase:
        """Return the open phase."""
        if self._phase not in TRANSITIONS:
            raise LocalProtocolError(f"no phase is open: the session is {self._phase!r}")
        return TRANSITIONS[self._phase]

    def _lose(self, index: int) -> None:
        """Count a client as lost in the open phase."""
        self._alive.discard(index)
        self._lost[self._parameters.roster[index]] = self._phase

    def _require(self, present: int, least: int, what: str) -> None:
        """Abort unless enough clients did what the phase asks for."""
        if present < least:
            raise self._aborted(f"only {present} of at least {least} clients {what}")

    def _aborted(self, reason: str) -> SessionAborted:
        """End the session, and return the error that says so."""
        phase, self._phase = self._phase, "aborted"
        self._sum = np.zeros(0, dtype=np.uint32)
        self._shares, self._parcels = {}, {}
        return SessionAborted(phase, self._names(self._index[client_id] for client_id in self._lost), reason)

    def _names(self, indices: Iterable[int]) -> tuple[str, ...]:
        """Return client_ids in roster order."""
        return tuple(self._parameters.roster[index] for index in sorted(indices))

    def _addressed(self, messages: Mapping[int, Message]) -> dict[str, bytes]:
        """Encode messages by client_id; one that goes to many is encoded once."""
        encoded: dict[int, bytes] = {}
        for message in messages.values():
            if id(message) not in encoded:
                encoded[id(message)] = encode(message)
        return {self._parameters.roster[i]: encoded[id(messages[i])] for i in sorted(messages)}


def _require_of(client_id: str, holds: bool, otherwise: str) -> None:
    """Blame a client unless the condition holds."""
    if not holds:
        raise RemoteProtocolError(client_id, otherwise)


TRANSITIONS: Mapping[str, _Phase] = {
    "advertise": _Phase(SecAggServer._accept_advertisement, SecAggServer._close_advertise, "share"),
    "share": _Phase(SecAggServer._accept_shares, SecAggServer._close_share, "mask"),
    "mask": _Phase(SecAggServer._accept_masked_vector, SecAggServer._close_mask, "confirm"),
    "confirm": _Phase(SecAggServer._accept_confirmation, SecAggServer._close_confirm, "reveal"),
    "reveal": _Phase(SecAggServer._accept_reveal, SecAggServer._close_reveal, "done"),
}
"""Every phase that clients answer. From each, `advance` may also lead to "aborted"."""
