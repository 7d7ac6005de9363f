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
    ("identities", "match"),
    [
        ({"": ADA.public_bytes}, "1 to 64 bytes"),
        ({"x" * 65: ADA.public_bytes}, "1 to 64 bytes"),
        ({"server": ADA.public_bytes}, "no client may be called"),
        ({"ada": ADA.public_bytes[:31]}, "is not 32 bytes"),
        ({"ada": ADA.public_bytes, "bob": ADA.public_bytes}, "share one key"),
    ],
)
def test_odd_rosters_are_refused(identities: dict[str, bytes], match: str) -> None:
    with pytest.raises(LocalProtocolError, match=match):
        Roster(identities)


def test_keys_that_anybody_can_sign_under_are_refused() -> None:
    """The points of small order, found by the curve's own arithmetic, in every encoding there is."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p

    def double(point: tuple[int, int]) -> tuple[int, int]:
        x, y = point
        k = d * x * x * y * y % p
        return 2 * x * y * pow(1 + k, -1, p) % p, (y * y + x * x) * pow(1 - k, -1, p) % p

    def at(y: int) -> tuple[int, int]:
        return _square_roots((y * y - 1) * pow(d * y * y + 1, -1, p), p)[0], y

    # Doubling a point of order 8 gives one of order 4, y = 0; so x² = -y², and on the curve d·y⁴ + 2·y² = 1.
    squares = [(s - 1) * pow(d, -1, p) for s in _square_roots(1 + d, p)]
    root = next(square for square in squares if _square_roots(square, p))
    small = {0, 1, p - 1, *_square_roots(root, p)}
    assert len(small) == 5
    for y in small:
        assert double(double(double(at(y)))) == (0, 1)
        for encoded in {y, y + p if y + p < 2**255 else y}:
            for sign in (0, 2**255):
                with pytest.raises(LocalProtocolError, match="anybody could sign"):
                    Roster({"ada": (encoded + sign).to_bytes(32, "little")})


def _square_roots(a: int, p: int) -> list[int]:
    """Both square roots of a modulo p = 5 mod 8, or none."""
    root = pow(a, (p + 3) // 8, p)
    root = root if root * root % p == a % p else root * pow(2, (p - 1) // 4, p) % p
    return [root, p - root] if root * root % p == a % p else []


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
    ("n", "colluders", "degree"), [(1, 0, None), (3, 2, None), (2, 1, None), (50, 11, 10), (50, 10, 10)]
)
def test_no_counts_protect_too_few(n: int, colluders: int, degree: int | None) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be protected"):
        recommended(n, colluders, degree)
