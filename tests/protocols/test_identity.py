"""Identities and the roster that pins them; session counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocols.errors import LocalProtocolError, RemoteProtocolError, SignatureError
from protocols.secagg.identity import Identity, Roster, verify
from protocols.secagg.session import Thresholds, recommended

ADA, BOB = (Identity.from_private_bytes(bytes([i]) * 32) for i in (1, 2))


def test_ed25519_agrees_with_rfc_8032_test_1() -> None:
    identity = Identity.from_private_bytes(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    assert identity.public_bytes.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_a_signature_is_for_one_key_label_and_payload() -> None:
    signature = ADA.sign(b"label", b"payload")
    verify(ADA.public_bytes, b"label", b"payload", signature)
    for public, label, payload, forged in (
        (BOB.public_bytes, b"label", b"payload", signature),
        (ADA.public_bytes, b"labe", b"lpayload", signature),
        (ADA.public_bytes, b"label", b"payloae", signature),
        (ADA.public_bytes, b"label", b"payload", bytes([signature[0] ^ 1]) + signature[1:]),
        (ADA.public_bytes, b"label", b"payload", signature[:-1]),
        (bytes(31), b"label", b"payload", signature),
    ):
        with pytest.raises(SignatureError):
            verify(public, label, payload, forged)


def test_private_bytes_round_trip() -> None:
    assert Identity.from_private_bytes(ADA.to_private_bytes()).public_bytes == ADA.public_bytes
    assert Identity.generate().public_bytes != Identity.generate().public_bytes
    with pytest.raises(LocalProtocolError):
        Identity.from_private_bytes(bytes(31))


def test_the_roster_verifies_by_name() -> None:
    roster = Roster({"ada": ADA.public_bytes, "bob": BOB.public_bytes})
    signature = ADA.sign(b"label", b"payload")
    roster.verify("ada", b"label", b"payload", signature)
    for name in ("bob", "eve"):
        with pytest.raises(RemoteProtocolError) as caught:
            roster.verify(name, b"label", b"payload", signature)
        assert caught.value.client_id == name


@pytest.mark.parametrize(
    "identities",
    [
        {"": bytes(32)},
        {"x" * 65: bytes(32)},
        {"server": bytes(32)},
        {"ada": bytes(31)},
        {"ada": bytes(32), "bob": bytes(32)},
    ],
)
def test_odd_rosters_are_refused(identities: dict[str, bytes]) -> None:
    with pytest.raises(LocalProtocolError):
        Roster(identities)


def test_a_roster_is_kept_as_json(tmp_path: Path) -> None:
    roster = Roster({"ada": ADA.public_bytes, "bob": BOB.public_bytes})
    path = tmp_path / "roster.json"
    roster.save(path)
    assert dict(Roster.load(path)) == dict(roster)
    key = ADA.public_bytes.hex()
    for bad in ("[]", "{", '{"ada": 1}', '{"ada": "xy"}', f'{{"ada": "{key}", "ada": "{key}"}}'):
        path.write_text(bad)
        with pytest.raises(LocalProtocolError, match="not a roster"):
            Roster.load(path)


def test_recommended_counts() -> None:
    assert recommended(5, 1) == Thresholds(quorum=4, threshold=4, min_survivors=4, degree=4)
    assert recommended(2, 0) == Thresholds(quorum=2, threshold=2, min_survivors=2, degree=1)
    large = recommended(1000, 60, degree=100)
    assert large.quorum == 531
    assert 61 <= large.threshold <= 70


@pytest.mark.parametrize(
    ("n", "colluders", "degree"), [(1, 0, None), (3, 2, None), (2, 1, None), (50, 11, 10)]
)
def test_no_counts_protect_too_few(n: int, colluders: int, degree: int | None) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be protected"):
        recommended(n, colluders, degree)
