"""A server that deviates once vectors are masked: splitting sets, asking for both shares, asking twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.secagg import keys, statements
from protocols.secagg.client_state import Advertised, Confirmed, Shared
from protocols.secagg.codec import Message, decode, encode
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.messages import (
    Advertisement,
    Advertisements,
    Confirmation,
    Confirmations,
    ConfirmStatement,
    MaskedVector,
    MaskStatement,
    Proposal,
    Reveal,
    SharesIn,
    Survivors,
)
from protocols.secagg.session import CoordinateGroup
from protocols.secagg.transcript import set_digest, to_bitmap

VICTIM = "client-1"


def members(*indices: int) -> bytes:
    """A bitmap over five clients."""
    return to_bitmap(indices, 5)


# Mask.


def split_u2(federation: Any) -> dict[str, bytes]:
    """Tell client-1 a smaller U2 than everybody else, and run to the confirmations."""

    def tamper(name: str, phase: str, message: bytes) -> bytes:
        if (name, phase) != (VICTIM, "mask"):
            return message
        parcels = tuple(p for p in decode(SharesIn, message, "test").parcels if p.sender != 4)
        return federation.edited(message, SharesIn, u2=members(0, 1, 2, 3), parcels=parcels)

    inbox = federation.server.start()
    for phase in ("advertise", "share", "mask"):
        answers = {name: federation.answer(name, phase, tamper(name, phase, m)) for name, m in inbox.items()}
        for name, answer in answers.items():
            if (name, phase) == (VICTIM, "mask"):
                # The malicious server takes the vector although it is signed for another U2.
                packed = decode(MaskedVector, answer, "test")
                digest = statements.vector_digest(packed.packed)
                federation.server._state.masked[0] = MaskStatement(0, digest, packed.signature)
            else:
                federation.server.receive(name, answer)
        inbox = federation.server.advance()
    return dict(inbox)


def test_a_split_u2_is_noticed_on_both_sides(federation: Any) -> None:
    inbox = split_u2(federation)
    for name in ("client-2", "client-3", "client-4", "client-5"):
        federation.refuses("confirm", inbox[name], "client-1: the signature", by=name)
    statements_of_others = decode(Survivors, inbox[VICTIM], "test").statements[:3]
    message = encode(Survivors(members(0, 1, 2, 3), statements_of_others))
    federation.refuses("confirm", message, "client-2: the signature")


@pytest.mark.parametrize(
    ("u3", "match"),
    [
        (members(1, 2, 3, 4), "does not have this client"),
        (members(0, 1, 2), "smaller than the quorum"),
        (b"\x3f", "bitmap"),
    ],
)
def test_an_odd_u3_is_refused(federation: Any, u3: bytes, match: str) -> None:
    message = federation.drive(until="confirm")[VICTIM]
    kept = tuple(s for s in decode(Survivors, message, "test").statements if u3[0] >> s.index & 1)
    federation.refuses("confirm", encode(Survivors(u3, kept)), match)


def test_u3_outside_u2_is_refused(federation: Any) -> None:
    message = federation.drive(until="confirm", lost=[("client-5", "share")])[VICTIM]
    federation.refuses(
        "confirm", federation.edited(message, Survivors, u3=members(0, 1, 2, 3, 4)), "outside U2"
    )


def test_every_mask_statement_is_needed(federation: Any) -> None:
    message = federation.drive(until="confirm")[VICTIM]
    kept = decode(Survivors, message, "test").statements
    snapshot = federation.clients[VICTIM].snapshot()
    for odd in (kept[1:], (), kept[::-1], (kept[0], *kept)):
        federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
        federation.refuses(
            "confirm", federation.edited(message, Survivors, statements=odd), "mask statements"
        )
    federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
    swapped = (replace(kept[1], index=1), replace(kept[0], index=2), *kept[2:])
    federation.refuses(
        "confirm", federation.edited(message, Survivors, statements=swapped), "client-2: the signature"
    )


def test_a_group_left_with_few_contributors_is_refused(make_federation: Any) -> None:
    groups = (CoordinateGroup(0, 3, (0, 1, 2, 3, 4)), CoordinateGroup(3, 7, (0, 1, 2)))
    federation = make_federation(groups=groups, min_contributors=3)
    federation.vectors["client-4"][3:] = 0
    federation.vectors["client-5"][3:] = 0
    message = federation.drive(until="confirm")[VICTIM]
    kept = tuple(s for s in decode(Survivors, message, "test").statements if s.index != 2)
    federation.refuses("confirm", encode(Survivors(members(0, 1, 3, 4), kept)), "too few contributors")


def test_a_ring_cut_by_colluders_is_refused(make_federation: Any) -> None:
    federation = make_federation(n=15, max_colluders=1, degree=4)  # windows of 2 positions
    message = federation.drive(until="confirm")[VICTIM]
    order = federation.server._graph._order
    start = order.index(0)
    cut = {order[(start + offset) % 15] for offset in (1, 2, 7, 8)}
    kept = tuple(s for s in decode(Survivors, message, "test").statements if s.index not in cut)
    u3 = to_bitmap(set(range(15)) - cut, 15)
    federation.refuses("confirm", encode(Survivors(u3, kept)), "two windows")


# Confirm.


def confirmations_of(federation: Any, inbox: dict[str, bytes]) -> list[ConfirmStatement]:
    """What every client but the victim confirms."""
    collected = []
    for index, name in enumerate(federation.names):
        if name in inbox and name != VICTIM:
            confirmation = decode(Confirmation, federation.answer(name, "confirm", inbox[name]), "test")
            digest = statements.attachment_digest(confirmation.attachment)
            collected.append(ConfirmStatement(index, digest, confirmation.signature))
    return collected


def test_different_survivors_for_different_clients_are_refused(federation: Any) -> None:
    # client-1 is told that client-5 dropped, the others that it did not: it would give the master share of
    # client-5 away, they the seed share.
    inbox = federation.drive(until="confirm")
    others = confirmations_of(federation, inbox)
    kept = decode(Survivors, inbox[VICTIM], "test").statements[:3]
    own = federation.answer(VICTIM, "confirm", encode(Survivors(members(0, 1, 2, 3), kept)))
    signature = decode(Confirmation, own, "test").signature
    own_statement = ConfirmStatement(0, statements.attachment_digest(b""), signature)
    message = encode(Confirmations((own_statement, *others[:3])))
    federation.refuses("reveal", message, "client-2: the signature")


def test_fewer_confirmations_than_the_quorum_are_refused(federation: Any) -> None:
    message = federation.drive(until="reveal")[VICTIM]
    kept = decode(Confirmations, message, "test").statements
    snapshot = federation.clients[VICTIM].snapshot()
    for odd, match in (
        (kept[:3], "fewer"),
        ((), "fewer"),
        ((kept[0],) * 4, "not in U3"),
        (kept[::-1], "not in U3"),
        ((*kept[:3], replace(kept[3], index=9)), "not in U3"),
        ((replace(kept[0], attachment_digest=bytes(32)), *kept[1:]), "client-1: the signature"),
        ((replace(kept[1], index=0), *kept[1:]), "client-1: the signature"),
    ):
        federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
        federation.refuses("reveal", encode(Confirmations(odd)), match)


def test_confirmations_from_outside_u3_do_not_count(federation: Any) -> None:
    inbox = federation.drive(until="confirm", lost=[("client-5", "mask")])
    others = confirmations_of(federation, inbox)
    federation.answer(VICTIM, "confirm", inbox[VICTIM])
    outsider = federation.clients["client-5"]._identity
    t1 = federation.server._tree.root
    u2, u3 = set_digest(range(5), 5), set_digest(range(4), 5)
    statement = statements.confirm(t1, u2, u3, "client-5", statements.attachment_digest(b""))
    vote = ConfirmStatement(4, statements.attachment_digest(b""), outsider.sign(*statement))
    federation.refuses("reveal", encode(Confirmations((*others, vote))), "not in U3")


# Reveal.


def test_one_share_of_each_client_and_never_both(federation: Any) -> None:
    inbox = federation.drive(until="reveal", lost=[("client-2", "share")])
    state = federation.clients[VICTIM]._state
    assert isinstance(state, Confirmed)
    revealed = decode(Reveal, federation.answer(VICTIM, "reveal", inbox[VICTIM]), "test").shares
    assert [share.owner for share in revealed] == [0, 2, 3, 4]  # client-2 is not in U2: nothing of it
    by_owner = {held.owner: held for held in state.held}
    assert all(share.share == by_owner[share.owner].seed_share for share in revealed)
    with pytest.raises(LocalProtocolError):
        federation.answer(VICTIM, "reveal", inbox[VICTIM])


def test_of_a_lost_client_only_the_master_share(federation: Any) -> None:
    inbox = federation.drive(until="reveal", lost=[("client-4", "mask")])
    state = federation.clients[VICTIM]._state
    assert isinstance(state, Confirmed)
    data = federation.answer(VICTIM, "reveal", inbox[VICTIM])
    by_owner = {held.owner: held for held in state.held}
    for share in decode(Reveal, data, "test").shares:
        held = by_owner[share.owner]
        expected, withheld = held.seed_share, held.master_share
        if share.owner == 3:
            expected, withheld = withheld, expected
        assert share.share == expected
        assert withheld not in data


def test_a_recovered_master_opens_no_box(federation: Any) -> None:
    message = federation.drive(until="mask")[VICTIM]
    state = federation.clients[VICTIM]._state
    assert isinstance(state, Shared)
    t0 = statements.parameters_digest(federation.parameters)
    recovered = keys.mask_key_pair(state.master, t0, VICTIM)
    from protocols.secagg.dealing import _bound

    for parcel in decode(SharesIn, message, "test").parcels:
        edge = next(edge for edge in state.edges if edge.peer == parcel.sender)
        address = keys.BoxAddress(state.t1, federation.names[parcel.sender], VICTIM, _bound(parcel))
        own = keys.KeyPair.from_secret(state.box_secret)
        keys.open_box(parcel.box, parcel.box_encapsulation, own, edge.box_key, address)
        with pytest.raises(RemoteProtocolError, match="does not open"):
            keys.open_box(parcel.box, parcel.box_encapsulation, recovered, edge.box_key, address)


def test_box_secrets_are_drawn_apart_from_the_master(federation: Any) -> None:
    drawn: list[bytes] = []

    def entropy(n: int) -> bytes:
        drawn.append(bytes([len(drawn) + 1]) * n)
        return drawn[-1]

    client = federation.client(VICTIM, entropy=entropy)
    client.advertise(encode(Proposal(federation.parameters)))
    state = client._state
    assert isinstance(state, Advertised)
    assert [state.seed, state.master, state.box_secret] == drawn
    assert [len(secret) for secret in drawn] == [32, 32, 96]


# One masked vector a round; nothing twice.


def rerun(make_federation: Any, allow_remask: bool) -> Any:
    """A second session for the same round, with the guards of a first one that died after masking."""
    first = make_federation()
    first.drive(until="confirm")
    second = make_federation(session_id=bytes(32))
    for name in second.names:
        policy = replace(second.policy, allow_remask=allow_remask)
        second.clients[name] = second.client(name, guard=first.guards[name], policy=policy)
    second.guards = first.guards
    return second


def test_a_failed_session_loses_the_round(make_federation: Any) -> None:
    second = rerun(make_federation, allow_remask=False)
    inbox = second.drive(until="mask")
    second.refuses("mask", inbox[VICTIM], "already sent for round 1")


def test_remasking_needs_the_policy_and_is_counted(make_federation: Any) -> None:
    second = rerun(make_federation, allow_remask=True)
    second.drive()
    assert second.server.result().survivors == second.names
    assert {guard.remask_count for guard in second.guards.values()} == {1}


@pytest.mark.parametrize("changes", [{"round": 2}, {"exchange": 1}])
def test_another_round_or_exchange_is_another_vector(make_federation: Any, changes: dict[str, int]) -> None:
    first = make_federation()
    first.drive(until="confirm")
    second = make_federation(session_id=bytes(32), **changes)
    policy = replace(second.policy, allow_remask=False)
    for name in second.names:
        second.clients[name] = second.client(name, guard=first.guards[name], policy=policy)
    second.drive()
    assert {guard.remask_count for guard in first.guards.values()} == {0}


def other_message(federation: Any, phase: str, message: bytes) -> bytes:
    """Another message that the server could have sent in that phase, acceptable by itself."""
    match phase:
        case "mask":
            parcels = tuple(p for p in decode(SharesIn, message, "test").parcels if p.sender != 4)
            return federation.edited(message, SharesIn, u2=members(0, 1, 2, 3), parcels=parcels)
        case "confirm":
            kept = tuple(s for s in decode(Survivors, message, "test").statements if s.index != 4)
            return encode(Survivors(members(0, 1, 2, 3), kept))
    return message


@pytest.mark.parametrize("phase", ["share", "mask", "confirm"])
def test_a_restored_snapshot_gives_no_second_output(federation: Any, phase: str) -> None:
    message = federation.drive(until=phase)[VICTIM]
    snapshot = federation.clients[VICTIM].snapshot()
    federation.answer(VICTIM, phase, message)
    federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
    federation.refuses(phase, other_message(federation, phase, message), "another output")
    # The same message would have been accepted by a client whose guard forgot: the guard is what refuses.
    forgetful = federation.restore(VICTIM, snapshot, guard=MemoryGuard())
    federation.clients[VICTIM] = forgetful
    federation.answer(VICTIM, phase, other_message(federation, phase, message))


def test_a_restored_snapshot_masks_no_second_vector(federation: Any) -> None:
    message = federation.drive(until="mask")[VICTIM]
    snapshot = federation.clients[VICTIM].snapshot()
    federation.answer(VICTIM, "mask", message)
    federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
    federation.vectors[VICTIM] = federation.vectors["client-2"]
    federation.refuses("mask", message, "another output")


def test_a_restored_snapshot_reveals_no_second_set(federation: Any) -> None:
    # The client confirmed U3 without client-5; an old snapshot is then shown U3 with client-5. Even with a
    # quorum for it (which two intersecting quorums exclude), the guard lets only the first one out.
    inbox = federation.drive(until="confirm")
    snapshot = federation.clients[VICTIM].snapshot()
    federation.answer(VICTIM, "confirm", inbox[VICTIM])
    federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
    federation.refuses("confirm", other_message(federation, "confirm", inbox[VICTIM]), "another output")


@pytest.mark.parametrize("phase", ["mask", "confirm", "reveal"])
def test_the_same_output_may_be_sent_again(federation: Any, phase: str) -> None:
    message = federation.drive(until=phase)[VICTIM]
    snapshot = federation.clients[VICTIM].snapshot()
    first = federation.answer(VICTIM, phase, message)
    federation.clients[VICTIM] = federation.restore(VICTIM, snapshot)
    assert federation.answer(VICTIM, phase, message) == first


def test_the_guard_comes_before_the_output(federation: Any) -> None:
    class BrokenDisk(MemoryGuard):
        def record(self, session_id: bytes, phase: str, digest: bytes) -> None:
            raise OSError("no space left")

    federation.clients[VICTIM] = federation.client(VICTIM, guard=BrokenDisk())
    with pytest.raises(OSError, match="no space"):
        federation.clients[VICTIM].advertise(encode(Proposal(federation.parameters)))
    assert federation.clients[VICTIM].phase == "advertise"


def message_kinds() -> Iterable[type[Message]]:
    """Every kind that a server sends."""
    return (Proposal, Advertisements, SharesIn, Survivors, Confirmations)


def test_kinds_have_distinct_bytes() -> None:
    kinds = [*message_kinds(), Advertisement, MaskedVector, Confirmation, Reveal]
    assert len({kind.KIND for kind in kinds}) == len(kinds)
