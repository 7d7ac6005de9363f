"""The server's side of a session: it routes messages, adds masked vectors, and removes the masks of the sum.

Theory of operation. One phase is open at a time (`server_machine`). `receive` takes the answer of one client; a
bad answer raises and loses that client, nobody else. `advance` closes the phase: whoever has not answered is
lost for good, and the next messages come out. A masked vector is added on arrival and not kept, so memory is
one vector plus what is small (`server_state`); late vectors stay out, where their self-mask protects them.

The server is not trusted by anybody: each rule it keeps is also checked by the clients (`checks`), or only
saves honest parties a session that could not end well.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.secagg import limits, server_checks, statements
from protocols.secagg.codec import AnyMessage, Message, decode, encode
from protocols.secagg.graph import MaskGraph
from protocols.secagg.identity import Roster
from protocols.secagg.interface import SecAggResult
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
    Reveal,
    SharesIn,
    SharesOut,
    Survivors,
)
from protocols.secagg.recovery import Dealt, Recovery
from protocols.secagg.server_machine import Phase, ServerMachine
from protocols.secagg.server_state import SavedServer, ServerState
from protocols.secagg.session import SessionParameters
from protocols.secagg.snapshot import from_snapshot, to_snapshot
from protocols.secagg.transcript import MerkleTree, digest, set_digest, to_bitmap


class SecAggServer(ServerMachine[ServerState]):
    """The server of one session.

    Args:
        parameters: the session that is proposed to everybody on ``parameters.roster``.
        roster: the identities of those clients, to name who sent what is wrong.

    Raises:
        LocalProtocolError: the parameters are unsafe, or a client has no identity in `roster`.
    """

    def __init__(self, *, parameters: SessionParameters, roster: Roster) -> None:
        super().__init__(parameters, ServerState(), TRANSITIONS)
        if unknown := [client_id for client_id in parameters.roster if client_id not in roster]:
            raise LocalProtocolError(f"no identity is known for {', '.join(unknown)}")
        self._roster = roster
        self._t0 = statements.parameters_digest(parameters)
        self._belongs_to = digest(b"server-snapshot", self._t0)  # ties a snapshot to this session
        self._sum = np.zeros(0, dtype=np.uint32)

    def snapshot(self) -> bytes:
        """Return the whole state as bytes, in any phase and between any two messages.

        Keep them confidential. From the phase "mask" on they hold the vector so far, in the phase "reveal" the
        shares that unmask it, and at the end the sum. They hold no secret of a client that the server may not know.
        """
        total = self._sum.astype("<u4", copy=False).tobytes()
        return to_snapshot(SavedServer(self._state, total), self._belongs_to)

    @classmethod
    def restore(cls, snapshot: bytes, *, parameters: SessionParameters, roster: Roster) -> SecAggServer:
        """Return the server that `snapshot` was taken of; give the same arguments as to the first one.

        It expects exactly what that one expected: an answer that came after the snapshot must come again, and
        `advance` returns again what it returned then.

        Raises:
            LocalProtocolError: the snapshot is damaged, or of another session.
        """
        server = cls(parameters=parameters, roster=roster)
        saved = from_snapshot((SavedServer,), snapshot, server._belongs_to, of="session, or to a client")
        server._state = saved.state
        server._sum = np.frombuffer(saved.total, dtype="<u4").astype(np.uint32)
        return server

    def result(self) -> SecAggResult:
        """Return the sum, once the reveal phase was closed.

        Raises:
            LocalProtocolError: there is no sum yet, or there will be none.
        """
        self._require_sum()
        confirmed = self._state.confirmed.items()
        return SecAggResult(
            sum=self._sum,
            survivors=self._names(self._u3),
            transcript=self._tree.root,
            attachments={self._parameters.roster[index]: answer.attachment for index, answer in confirmed},
            lost=self.lost,
        )

    # advertise: T1

    def _accept_advertisement(self, index: int, data: bytes) -> None:
        """Keep a client's keys."""
        client_id, message = self._decoded(Advertisement, index, data)
        server_checks.check_advertisement(message, self._t0, client_id, self._roster)
        self._state.advertisements[index] = message

    def _close_advertise(self) -> dict[int, Message]:
        """Fix T1 and the graph, and show every client its neighbours' keys."""
        self._require(len(self._alive()), self._parameters.least, "advertised")
        tree, graph = self._tree, self._graph
        leaves = {
            index: Leaf(index, message, tree.path(index))
            for index, message in self._state.advertisements.items()
        }
        return {
            index: Advertisements(tree.root, tuple(leaves[i] for i in graph.holders(index) if i in self._u1))
            for index in self._alive()
        }

    # share: U2

    def _accept_shares(self, index: int, data: bytes) -> None:
        """Keep what a client dealt to its neighbours; the boxes only until they are delivered."""
        client_id, message = self._decoded(SharesOut, index, data)
        expected = [other for other in self._graph.neighbours(index) if other in self._u1]
        server_checks.check_dealing(message, index, expected, self._tree.root, client_id, self._roster)
        self._state.dealt[index] = Dealt.of(message, index)
        for parcel in message.parcels:
            self._state.parcels.setdefault(parcel.recipient, {})[index] = parcel

    def _close_share(self) -> dict[int, Message]:
        """Fix U2 and deliver the boxes."""
        self._require(len(self._alive()), self._parameters.least, "shared")
        self._sum = np.zeros(self._parameters.vector_length, dtype=np.uint32)
        bitmap = to_bitmap(self._u2, self._parameters.n)
        parcels, self._state.parcels = self._state.parcels, {}
        return {
            index: SharesIn(bitmap, tuple(parcel for _, parcel in sorted(parcels.pop(index, {}).items())))
            for index in self._alive()
        }

    # mask: U3

    def _accept_masked_vector(self, index: int, data: bytes) -> None:
        """Add a masked vector, and keep only what its sender signed about it."""
        client_id, message = self._decoded(MaskedVector, index, data)
        masked_digest = statements.vector_digest(message.packed)
        server_checks.check_masked_vector(
            message, masked_digest, self._tree.root, self._u2_digest, client_id, self._roster
        )
        vector = server_checks.unpack_vector(message, self._parameters, client_id)
        self._sum += vector  # modulo 2^32; reduced to 2^b at the end
        self._state.masked[index] = MaskStatement(index, masked_digest, message.signature)

    def _close_mask(self) -> dict[int, Message]:
        """Fix U3 and show every client what its neighbours signed about U2."""
        self._require(len(self._alive()), self._parameters.least, "masked")
        self._require_contributors(self._u3)
        bitmap, masked = to_bitmap(self._u3, self._parameters.n), self._state.masked
        return {
            index: Survivors(bitmap, tuple(masked[i] for i in self._graph.neighbours(index) if i in self._u3))
            for index in self._alive()
        }

    # confirm

    def _accept_confirmation(self, index: int, data: bytes) -> None:
        """Keep a client's confirmation."""
        client_id, message = self._decoded(Confirmation, index, data)
        server_checks.check_confirmation(
            message, self._tree.root, self._u2_digest, self._u3_digest, client_id, self._roster
        )
        self._state.confirmed[index] = message

    def _close_confirm(self) -> dict[int, Message]:
        """Show everybody a quorum of confirmations; more would only cost each client their verification."""
        quorum, confirmed = self._parameters.quorum, self._state.confirmed
        self._require(len(self._alive()), quorum, "confirmed")
        confirmations = tuple(
            ConfirmStatement(i, statements.attachment_digest(confirmed[i].attachment), confirmed[i].signature)
            for i in sorted(confirmed)[:quorum]
        )
        return dict.fromkeys(self._alive(), Confirmations(confirmations))

    # reveal: the sum

    def _accept_reveal(self, index: int, data: bytes) -> None:
        """Keep the shares a client reveals."""
        client_id, message = self._decoded(Reveal, index, data)
        server_checks.check_reveal(
            message, index, self._share_digests, self._tree.root, client_id, self._roster
        )
        self._state.revealed[index] = message.shares

    def _share_digests(self, owner: int) -> Mapping[int, bytes]:
        """Return, by holder, the digests of the shares that may be revealed of that owner."""
        if owner in self._u3:
            return self._state.dealt[owner].seed_digests
        return self._state.dealt[owner].master_digests if owner in self._u2 else {}

    def _close_reveal(self) -> dict[int, Message]:
        """Remove the self-masks of U3 and the pair masks of U2 without U3."""
        parameters, state = self._parameters, self._state
        recovery = Recovery(
            self._t0,
            self._tree.root,
            parameters.threshold,
            parameters.roster,
            state.advertisements,
            state.dealt,
        )
        masks: list[Mask] = []
        shares = state.shares_by_owner()
        for owner in sorted(self._u2):
            held = shares.get(owner, {})
            self._require(len(held), parameters.threshold, f"hold shares of {parameters.roster[owner]}")
            try:
                if owner in self._u3:
                    masks.append(recovery.self_mask(owner, held))
                else:
                    masks += recovery.pair_masks(owner, held, self._u3)
            except RemoteProtocolError as error:
                raise self._aborted(str(error)) from None
        add_masks(self._sum, (mask.inverse for mask in masks), parameters.modulus_bits)
        state.forget()
        return {}

    # What follows from the state. Each is fixed when its phase closes, and read only from then on.

    @cached_property
    def _u1(self) -> frozenset[int]:
        """Who advertised."""
        return self._left_after("advertise")

    @cached_property
    def _u2(self) -> frozenset[int]:
        """Who shared."""
        return self._left_after("share")

    @cached_property
    def _u3(self) -> frozenset[int]:
        """Who masked: whose vectors are in the sum."""
        return self._left_after("mask")

    @cached_property
    def _u2_digest(self) -> bytes:
        """H(U2)."""
        return set_digest(self._u2, self._parameters.n)

    @cached_property
    def _u3_digest(self) -> bytes:
        """H(U3)."""
        return set_digest(self._u3, self._parameters.n)

    @cached_property
    def _tree(self) -> MerkleTree:
        """The tree over the advertisements; its root is T1."""
        encoded = {index: encode(message) for index, message in self._state.advertisements.items()}
        return MerkleTree(self._t0, encoded, self._parameters.n)

    @cached_property
    def _graph(self) -> MaskGraph:
        """Who masks with whom."""
        return MaskGraph(self._parameters.n, self._parameters.degree, self._tree.root)

    # both ends of every phase

    def _decoded(self, kind: type[AnyMessage], index: int, data: bytes) -> tuple[str, AnyMessage]:
        """Return who sent it, and the message."""
        client_id = self._parameters.roster[index]
        return client_id, decode(kind, data, client_id, limits.most_bytes(kind, self._parameters))

    def _forget(self) -> None:
        """Drop the sum and what would unmask it."""
        self._sum = np.zeros(0, dtype=np.uint32)
        self._state.forget()


TRANSITIONS: Mapping[str, Phase] = {
    "advertise": Phase(SecAggServer._accept_advertisement, SecAggServer._close_advertise, "share"),
    "share": Phase(SecAggServer._accept_shares, SecAggServer._close_share, "mask"),
    "mask": Phase(SecAggServer._accept_masked_vector, SecAggServer._close_mask, "confirm"),
    "confirm": Phase(SecAggServer._accept_confirmation, SecAggServer._close_confirm, "reveal"),
    "reveal": Phase(SecAggServer._accept_reveal, SecAggServer._close_reveal, "done"),
}
"""Every phase that clients answer. From each, `advance` may also lead to "aborted"."""
