"""Key derivation, agreement and boxes, against published vectors and by what must differ."""

from __future__ import annotations

import hashlib
import hmac
import itertools

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.errors import RemoteProtocolError
from protocols.secagg import keys
from protocols.secagg.transcript import statement

T1 = bytes(range(32))
ALICE = keys.KeyPair.from_secret(bytes(range(96)))
BOB = keys.KeyPair.from_secret(bytes(range(1, 97)))
ADDRESS = keys.BoxAddress(T1, "alice", "bob", b"bound")


def test_hkdf_agrees_with_rfc_5869_case_1() -> None:
    hkdf = HKDF(
        algorithm=SHA256(),
        length=42,
        salt=bytes(range(13)),
        info=bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"),
    )
    assert hkdf.derive(b"\x0b" * 22).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_derive_is_hkdf_of_the_labelled_context() -> None:
    pseudorandom_key = hmac.digest(bytes(32), b"secret", hashlib.sha256)
    info = statement(b"fedlora-priv/v1/key", b"purpose", b"a", b"bc")
    first = hmac.digest(pseudorandom_key, info + b"\x01", hashlib.sha256)
    second = hmac.digest(pseudorandom_key, first + info + b"\x02", hashlib.sha256)
    assert keys.derive(b"secret", b"purpose", b"a", b"bc", size=64) == first + second


def test_contexts_do_not_run_into_each_other() -> None:
    derived = {
        keys.derive(b"secret", *labels)
        for labels in (
            (b"p", b"ab", b"c"),
            (b"p", b"a", b"bc"),
            (b"p", b"abc"),
            (b"pa", b"bc"),
            (b"p", b"abc", b""),
        )
    }
    assert len(derived) == 5


def test_x25519_agrees_with_rfc_7748_section_6_1() -> None:
    bob = keys.KeyPair.from_secret(
        bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb") + bytes(64)
    )
    alice_public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert bob.public_bytes[:32].hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert bob.exchange(bytes.fromhex(alice_public), "alice").hex() == shared


def test_both_halves_enter_a_pair_key() -> None:
    inputs = [bytes(32), b"\x01" * 32]
    made = {
        keys.pair_mask_key(x, m, T1, "a", "b", c)
        for x, m, c in itertools.product(inputs, inputs, (b"c1", b"c2"))
    }
    assert len(made) == 8
    assert keys.pair_mask_key(*inputs, T1, "a", "b", b"") != keys.pair_mask_key(*inputs, T1, "b", "a", b"")
    assert keys.pair_mask_key(*inputs, T1, "a", "b", b"") != keys.pair_mask_key(
        *inputs, bytes(32), "a", "b", b""
    )


def test_both_ends_agree() -> None:
    shared, ciphertext = keys.encapsulate(BOB.public_bytes, "bob")
    assert BOB.decapsulate(ciphertext) == shared
    assert ALICE.exchange(BOB.public_bytes, "bob") == BOB.exchange(ALICE.public_bytes, "alice")


def test_boxes_open_at_the_other_end_only_as_addressed() -> None:
    ciphertext, box = keys.seal_box(b"content", ALICE, BOB.public_bytes, ADDRESS)
    assert keys.open_box(box, ciphertext, BOB, ALICE.public_bytes, ADDRESS) == b"content"
    eve = keys.KeyPair.from_secret(b"\x07" * 96)
    flipped = bytes([box[0] ^ 1]) + box[1:]
    other_ciphertext, _ = keys.seal_box(b"content", ALICE, BOB.public_bytes, ADDRESS)
    for arguments in (
        (flipped, ciphertext, BOB, ALICE.public_bytes, ADDRESS),
        (box, other_ciphertext, BOB, ALICE.public_bytes, ADDRESS),
        (box, ciphertext, eve, ALICE.public_bytes, ADDRESS),
        (box, ciphertext, BOB, eve.public_bytes, ADDRESS),
        (box, ciphertext, BOB, ALICE.public_bytes, keys.BoxAddress(bytes(32), "alice", "bob", b"bound")),
        (box, ciphertext, BOB, ALICE.public_bytes, keys.BoxAddress(T1, "eve", "bob", b"bound")),
        (box, ciphertext, BOB, ALICE.public_bytes, keys.BoxAddress(T1, "alice", "eve", b"bound")),
        (box, ciphertext, BOB, ALICE.public_bytes, keys.BoxAddress(T1, "alice", "bob", b"other")),
    ):
        with pytest.raises(RemoteProtocolError, match="does not open"):
            keys.open_box(*arguments)


def test_a_box_needs_both_kinds_of_secret() -> None:
    # Whoever breaks one half of the exchange still lacks the other: neither half alone gives the key.
    ciphertext, box = keys.seal_box(b"content", ALICE, BOB.public_bytes, ADDRESS)
    exchanged, shared = ALICE.exchange(BOB.public_bytes, "bob"), BOB.decapsulate(ciphertext)
    from cryptography.exceptions import InvalidTag

    right = ADDRESS.key(exchanged, shared, ciphertext)
    assert right.decrypt(bytes(12), box, ADDRESS.associated_data) == b"content"
    for x, m in ((exchanged, bytes(32)), (bytes(32), shared)):
        with pytest.raises(InvalidTag):
            ADDRESS.key(x, m, ciphertext).decrypt(bytes(12), box, ADDRESS.associated_data)


def test_an_escrow_opens_under_its_master_only() -> None:
    escrow = keys.seal_escrow(b"secrets", b"\x01" * 32, T1, "alice")
    assert keys.open_escrow(escrow, b"\x01" * 32, T1, "alice") == b"secrets"
    for master, t1, client_id in (
        (b"\x02" * 32, T1, "alice"),
        (b"\x01" * 32, bytes(32), "alice"),
        (b"\x01" * 32, T1, "bob"),
    ):
        with pytest.raises(RemoteProtocolError, match="escrow"):
            keys.open_escrow(escrow, master, t1, client_id)


def test_one_secret_gives_unrelated_keys_for_each_purpose() -> None:
    secret = b"\x05" * 32
    made = {
        keys.self_mask_key(secret, T1, "a"),
        keys.commitment(secret, b"seed", T1, "a"),
        keys.commitment(secret, b"master", T1, "a"),
        keys.commitment(secret, b"seed", T1, "b"),
        keys.self_mask_key(secret, T1, "b"),
        keys.self_mask_key(secret, bytes(32), "a"),
        keys.mask_key_pair(secret, T1, "a").public_bytes,
        keys.mask_key_pair(secret, bytes(32), "a").public_bytes,
        keys.mask_key_pair(secret, T1, "b").public_bytes,
    }
    assert len(made) == 9
