"""A client that deviates: it is named, the others go on, and a sum that cannot be right never comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protocols.errors import LocalProtocolError, RemoteProtocolError, SessionAborted
from protocols.secagg import dealing, keys, statements
from protocols.secagg.client_state import HeldShares, Masked
from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import (
    Advertisement,
    Confirmation,
    MaskedVector,
    Parcel,
    Reveal,
    RevealedShare,
    SharesOut,
)
from protocols.secagg.transcript import set_digest

CHEAT = "client-2"


def rejects(federation: Any, phase: str, message: bytes, match: str) -> None:
    """The server names the client and loses it; with the others it still gets the right sum."""
    server = federation.server
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        server.receive(CHEAT, message)
    assert caught.value.client_id == CHEAT
    assert dict(server.lost) == {CHEAT: phase}
    with pytest.raises(RemoteProtocolError, match="for good"):
        server.receive(CHEAT, message)


def finish(federation: Any, phase: str, inbox: dict[str, bytes]) -> None:
    """Let everybody but the cheat complete the session, and compare the sum."""
    phases = ["advertise", "share", "mask", "confirm", "reveal"]
    for step in phases[phases.index(phase) :]:
        for name in [name for name in inbox if name != CHEAT]:
            federation.server.receive(name, federation.answer(name, step, inbox[name]))
        inbox = federation.server.advance()
    result = federation.server.result()
    np.testing.assert_array_equal(result.sum, federation.plain_sum(result.survivors))


def sign(federation: Any, statement: statements.Statement) -> bytes:
    """The cheat's own, valid signature."""
    return bytes(federation.clients[CHEAT]._identity.sign(*statement))


# Advertise.


def signed_advertisement(federation: Any, **changes: bytes) -> bytes:
    """An advertisement that the cheat signs although something is wrong with it."""
    t0 = statements.parameters_digest(federation.parameters)
    good = keys.KeyPair.from_secret(bytes(96)).public_bytes
    message = Advertisement(
        **{"box_key": good, "mask_key": good, "signature": statements.UNSIGNED, **changes}
    )
    return encode(replace(message, signature=sign(federation, statements.advertise(t0, CHEAT, message))))


LOW_ORDER_POINTS = [  # RFC 7748, section 6.1, and the points of order 2, 4 and 8 on Curve25519
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("point", LOW_ORDER_POINTS)
@pytest.mark.parametrize("field", ["box_key", "mask_key"])
def test_low_order_points_are_rejected(federation: Any, field: str, point: bytes) -> None:
    inbox = federation.drive(until="advertise")
    good = keys.KeyPair.from_secret(bytes(96)).public_bytes
    rejects(
        federation,
        "advertise",
        signed_advertisement(federation, **{field: point + good[32:]}),
        "low order",
    )
    finish(federation, "advertise", inbox)


@pytest.mark.parametrize("field", ["box_key", "mask_key"])
def test_invalid_ml_kem_keys_are_rejected(federation: Any, field: str) -> None:
    federation.drive(until="advertise")
    good = keys.KeyPair.from_secret(bytes(96)).public_bytes
    bad = good[:32] + b"\xff" * 1184  # coefficients of q or more (FIPS 203, section 7.2)
    rejects(federation, "advertise", signed_advertisement(federation, **{field: bad}), "ML-KEM")


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "confirm", "reveal"])
def test_nobody_sends_as_somebody_else(federation: Any, phase: str) -> None:
    inbox = federation.drive(until=phase)
    stolen = federation.answer("client-3", phase, inbox["client-3"])
    rejects(federation, phase, stolen, f"signature for '{phase}' does not verify")


# Share.


def test_an_unsigned_dealing_is_rejected(federation: Any) -> None:
    inbox = federation.drive(until="share")
    message = decode(SharesOut, federation.answer(CHEAT, "share", inbox[CHEAT]), "test")
    rejects(federation, "share", encode(replace(message, escrow=bytes(len(message.escrow)))), "signature")
    finish(federation, "share", inbox)


def redealt(federation: Any, change: Callable[[SharesOut], SharesOut]) -> bytes:
    """The cheat's dealing, changed and then signed."""
    inbox = federation.server_inbox
    message = change(decode(SharesOut, federation.answer(CHEAT, "share", inbox[CHEAT]), "test"))
    statement = statements.share(federation.server._tree.root, CHEAT, message)
    return encode(replace(message, signature=sign(federation, statement)))


def change_parcel(position: int, **changes: object) -> Callable[[SharesOut], SharesOut]:
    """Change one parcel of a dealing."""

    def change(message: SharesOut) -> SharesOut:
        parcels = list(message.parcels)
        parcels[position] = replace(parcels[position], **changes)
        return replace(message, parcels=tuple(parcels))

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda message: replace(message, parcels=message.parcels[1:]), "dealt to others"),
        (lambda message: replace(message, parcels=message.parcels[::-1]), "dealt to others"),
        (lambda message: replace(message, parcels=(*message.parcels, message.parcels[0])), "dealt to others"),
        (lambda message: replace(message, parcels=()), "dealt to others"),
        (change_parcel(0, recipient=1), "dealt to others"),
        (change_parcel(0, recipient=77), "dealt to others"),
        (change_parcel(0, sender=2), "another sender"),
        (change_parcel(0, mask_encapsulation=bytes(1088)), "half of the mask key"),
        (change_parcel(3, mask_encapsulation=b""), "half of the mask key"),
        (change_parcel(3, mask_encapsulation=bytes(1087)), "half of the mask key"),
        (lambda message: replace(message, escrow=message.escrow + b"\0"), "escrow"),
        (lambda message: replace(message, escrow=b""), "escrow"),
    ],
)
def test_a_malformed_dealing_is_rejected(
    federation: Any, change: Callable[[SharesOut], SharesOut], match: str
) -> None:
    federation.server_inbox = federation.drive(until="share")
    rejects(federation, "share", redealt(federation, change), match)
    finish(federation, "share", federation.server_inbox)


def complete(federation: Any, inbox: dict[str, bytes], without: set[str]) -> None:
    """Answer from the mask phase to the end."""
    for phase in ("mask", "confirm", "reveal"):
        for name in [name for name in inbox if name not in without]:
            federation.server.receive(name, federation.answer(name, phase, inbox[name]))
        inbox = federation.server.advance()


def lie_and_abort(
    federation: Any, change: Callable[[SharesOut], SharesOut], cheat_drops: bool, match: str
) -> None:
    """A dealing that only recombination can tell is wrong: the session aborts and names the dealer."""
    inbox = federation.drive(until="share")
    federation.server_inbox = inbox
    for name in federation.names:
        answer = (
            redealt(federation, change) if name == CHEAT else federation.answer(name, "share", inbox[name])
        )
        federation.server.receive(name, answer)
    inbox = federation.server.advance()
    with pytest.raises(SessionAborted, match=match) as caught:
        complete(federation, inbox, without={CHEAT} if cheat_drops else set())
    assert caught.value.phase == "reveal"
    assert CHEAT in caught.value.reason
    with pytest.raises(LocalProtocolError):
        federation.server.result()


def test_a_seed_that_does_not_match_its_commitment(federation: Any) -> None:
    lie_and_abort(federation, lambda m: replace(m, seed_commitment=bytes(32)), False, "do not match its seed")


def test_a_master_that_does_not_match_its_commitment(federation: Any) -> None:
    lie_and_abort(
        federation, lambda m: replace(m, master_commitment=bytes(32)), True, "do not match its master"
    )


def test_an_escrow_that_does_not_open(federation: Any) -> None:
    lie_and_abort(federation, lambda m: replace(m, escrow=bytes(len(m.escrow))), True, "escrow does not open")


def deal_with(federation: Any, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Make the cheat's dealing go through `change` on what it splits, while everybody else stays honest."""
    original = dealing._split

    def split(state: Any, holders: list[int], me: int, entropy: Any) -> dict[int, HeldShares]:
        dealt = original(state, holders, me, entropy)
        return change(dealt) if me == federation.names.index(CHEAT) else dealt

    monkeypatch.setattr(dealing, "_split", split)


@pytest.mark.parametrize("share", [b"\xff" * 64, bytes(64)])
def test_shares_that_are_on_no_polynomial_blame_the_dealer(
    federation: Any, monkeypatch: pytest.MonkeyPatch, share: bytes
) -> None:
    def change(dealt: dict[int, HeldShares]) -> dict[int, HeldShares]:
        held = dealt[0]
        bad = HeldShares(held.owner, share, held.seed_salt, held.master_share, held.master_salt)
        return {**dealt, 0: bad}

    deal_with(federation, monkeypatch, change)
    lie_and_abort(federation, lambda message: message, False, "client-2: it dealt shares")


def test_a_master_that_is_not_behind_the_advertised_keys(federation: Any) -> None:
    inbox = federation.drive(until="share")
    client = federation.clients[CHEAT]
    object.__setattr__(client, "_state", _with_other_master(client._state))
    for name in federation.names:
        federation.server.receive(name, federation.answer(name, "share", inbox[name]))
    inbox = federation.server.advance()
    with pytest.raises(SessionAborted, match="client-2: the master it shared does not belong"):
        complete(federation, inbox, without={CHEAT})


def _with_other_master(state: Any) -> Any:
    """An advertised state with a master that its keys were not made from."""
    kind = type(state)
    return kind(state.parameters, state.seed, bytes(32), state.box_secret, state.advertisement)


def test_a_dealer_cannot_have_a_holder_blamed(federation: Any) -> None:
    # The cheat boxes one share and signs the digest of another: the holder notices, holds nothing of the cheat's,
    # and the others recover without it.
    federation.server_inbox = inbox = federation.drive(until="share")
    for name in federation.names:
        change = change_parcel(0, seed_digest=bytes(32))
        answer = (
            redealt(federation, change) if name == CHEAT else federation.answer(name, "share", inbox[name])
        )
        federation.server.receive(name, answer)
    inbox = federation.server.advance()
    federation.server.receive("client-1", federation.answer("client-1", "mask", inbox["client-1"]))
    state = federation.clients["client-1"]._state
    assert isinstance(state, Masked)
    assert [held.owner for held in state.held] == [0, 2, 3, 4]
    for name in federation.names[1:]:
        federation.server.receive(name, federation.answer(name, "mask", inbox[name]))
    for phase in ("confirm", "reveal"):
        inbox = federation.server.advance()
        for name in federation.names:
            federation.server.receive(name, federation.answer(name, phase, inbox[name]))
    federation.server.advance()
    np.testing.assert_array_equal(federation.server.result().sum, federation.plain_sum(federation.names))


def test_digests_that_the_box_does_not_cover_are_noticed(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As above, but the cheat binds the wrong digest into the box as well, so that the box opens.
    original = dealing._parcel

    def parcel(edge: Any, held: HeldShares, pair: Any, t1: bytes, roster: Any, me: int) -> Parcel:
        if me != 1 or edge.peer != 0:
            return original(edge, held, pair, t1, roster, me)
        with monkeypatch.context() as patch:
            patch.setattr(dealing, "share_digests", lambda held: (bytes(32), bytes(32)))
            return original(edge, held, pair, t1, roster, me)

    monkeypatch.setattr(dealing, "_parcel", parcel)
    inbox = federation.drive(until="mask")
    federation.answer("client-1", "mask", inbox["client-1"])
    state = federation.clients["client-1"]._state
    assert isinstance(state, Masked)
    assert [held.owner for held in state.held] == [0, 2, 3, 4]


# Mask.


def masked(federation: Any, packed: bytes, u2: range = range(5)) -> bytes:
    """A masked vector that the cheat signs."""
    digest = statements.vector_digest(packed)
    statement = statements.mask(federation.server._tree.root, set_digest(u2, 5), CHEAT, digest)
    return encode(MaskedVector(packed, sign(federation, statement)))


@pytest.mark.parametrize(
    ("packed", "match"),
    [(b"", "take 10 bytes"), (bytes(9), "take 10 bytes"), (bytes(11), "take 10"), (b"\xff" * 10, "unused")],
)
def test_a_vector_of_another_form_is_rejected(federation: Any, packed: bytes, match: str) -> None:
    inbox = federation.drive(until="mask")
    rejects(federation, "mask", masked(federation, packed), match)
    finish(federation, "mask", inbox)


def test_a_vector_signed_for_another_u2_is_rejected(federation: Any) -> None:
    federation.drive(until="mask")
    rejects(federation, "mask", masked(federation, bytes(10), range(4)), "signature")


def test_a_vector_is_added_once(federation: Any) -> None:
    inbox = federation.drive(until="mask")
    answer = federation.answer(CHEAT, "mask", inbox[CHEAT])
    federation.server.receive(CHEAT, answer)
    before = federation.server._sum.copy()
    with pytest.raises(RemoteProtocolError, match="already answered"):
        federation.server.receive(CHEAT, answer)
    np.testing.assert_array_equal(federation.server._sum, before)
    assert CHEAT not in federation.server.lost


# Confirm and reveal.


def test_a_confirmation_of_another_outcome_is_rejected(federation: Any) -> None:
    inbox = federation.drive(until="confirm")
    t1, everybody, fewer = federation.server._tree.root, set_digest(range(5), 5), set_digest(range(4), 5)
    attached = statements.attachment_digest(b"")
    other = sign(federation, statements.confirm(t1, everybody, fewer, CHEAT, attached))
    rejects(federation, "confirm", encode(Confirmation(b"", other)), "signature")
    finish(federation, "confirm", inbox)


def test_an_attachment_is_signed(federation: Any) -> None:
    inbox = federation.drive(until="confirm")
    honest = decode(Confirmation, federation.answer(CHEAT, "confirm", inbox[CHEAT]), "test")
    rejects(federation, "confirm", encode(replace(honest, attachment=b"forged anchor")), "signature")


def test_an_attachment_has_a_limit(federation: Any) -> None:
    inbox = federation.drive(until="confirm")
    client = federation.clients[CHEAT]
    with pytest.raises(LocalProtocolError, match="1024"):
        client.confirm(inbox[CHEAT], bytes(1025))
    assert client.phase == "confirm"
    client.confirm(inbox[CHEAT], bytes(1024))


def changed_reveal(federation: Any, change: Callable[[list[RevealedShare]], list[RevealedShare]]) -> bytes:
    """The cheat's reveal, changed and then signed."""
    inbox = federation.server_inbox
    message = decode(Reveal, federation.answer(CHEAT, "reveal", inbox[CHEAT]), "test")
    message = replace(message, shares=tuple(change(list(message.shares))))
    statement = statements.reveal(federation.server._tree.root, CHEAT, message)
    return encode(replace(message, signature=sign(federation, statement)))


@pytest.mark.parametrize(
    "change",
    [
        lambda shares: [replace(shares[0], share=bytes(64)), *shares[1:]],
        lambda shares: [replace(shares[0], salt=bytes(16)), *shares[1:]],
        lambda shares: [replace(shares[0], share=b"\xff" * 64), *shares[1:]],
        lambda shares: [replace(shares[0], owner=2), *shares[3:]],
        lambda shares: [*shares[:-1], replace(shares[-1], owner=200)],
    ],
)
def test_a_lying_revealer_is_named_and_the_sum_comes_out(
    federation: Any, change: Callable[[list[RevealedShare]], list[RevealedShare]]
) -> None:
    federation.server_inbox = federation.drive(until="reveal")
    rejects(federation, "reveal", changed_reveal(federation, change), "not the one dealt")
    finish(federation, "reveal", federation.server_inbox)


def test_shares_revealed_twice_or_out_of_order_are_rejected(federation: Any) -> None:
    federation.server_inbox = federation.drive(until="reveal")
    message = changed_reveal(federation, lambda shares: [shares[0], *shares])
    rejects(federation, "reveal", message, "out of order")


def test_a_share_of_the_other_secret_is_rejected(federation: Any) -> None:
    federation.server_inbox = federation.drive(until="reveal")
    held = federation.clients[CHEAT]._state.held[0]
    other = RevealedShare(held.owner, held.master_share, held.master_salt)
    message = changed_reveal(federation, lambda shares: [other, *shares[1:]])
    rejects(federation, "reveal", message, "not the one dealt")


def test_a_reveal_may_lack_shares_as_long_as_enough_are_left(federation: Any) -> None:
    federation.server_inbox = inbox = federation.drive(until="reveal")
    federation.server.receive(CHEAT, changed_reveal(federation, lambda shares: shares[3:]))
    for name in [name for name in inbox if name != CHEAT]:
        federation.server.receive(name, federation.answer(name, "reveal", inbox[name]))
    federation.server.advance()
    np.testing.assert_array_equal(federation.server.result().sum, federation.plain_sum(federation.names))


# The caller.


def test_strangers_are_named(federation: Any) -> None:
    federation.drive(until="share")
    with pytest.raises(RemoteProtocolError, match="mallory: it is not on the roster"):
        federation.server.receive("mallory", b"")


@pytest.mark.parametrize(
    ("vector", "match"),
    [
        (np.zeros(7, dtype=np.int64), "uint32"),
        ([0] * 7, "uint32"),
        (np.zeros(6, dtype=np.uint32), "shape"),
        (np.zeros((7, 1), dtype=np.uint32), "shape"),
        (np.full(7, 205, dtype=np.uint32), "bound"),  # the bound is 204
        (np.full(7, 2048 - 205, dtype=np.uint32), "bound"),
        (np.full(7, 2048, dtype=np.uint32), "bound"),
        (np.full(7, 2**32 - 1, dtype=np.uint32), "bound"),
    ],
)
def test_a_wrong_vector_changes_nothing(federation: Any, vector: Any, match: str) -> None:
    inbox = federation.drive(until="mask")
    client = federation.clients[CHEAT]
    with pytest.raises(LocalProtocolError, match=match):
        client.mask(inbox[CHEAT], vector)
    assert client.phase == "mask"
    for extreme in (204, 2048 - 204):
        probe = federation.restore(CHEAT, client.snapshot(), guard=type(federation.guards[CHEAT])())
        probe.mask(inbox[CHEAT], np.full(7, extreme, dtype=np.uint32))


def test_the_callers_vector_is_not_touched(federation: Any) -> None:
    inbox = federation.drive(until="mask")
    before = federation.vectors[CHEAT].copy()
    federation.answer(CHEAT, "mask", inbox[CHEAT])
    np.testing.assert_array_equal(federation.vectors[CHEAT], before)
