"""Published vectors of the primitives, run through our own functions as far as those let them in.

Sources: `cryptography_vectors` (NIST, RFC and the reference implementations' files, of the same version as
`cryptography`), and vectors/wycheproof.json (Project Wycheproof, carried as values). Where our function fixes
something that a vector varies (a nonce, a label, a counter), the test puts the vector's value in its place: what runs
is then still our code around the primitive, with its error handling.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cryptography
import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256

from protocols import prg
from protocols.errors import RemoteProtocolError, SignatureError
from protocols.secagg import identity, keys, mask

WYCHEPROOF = json.loads((Path(__file__).parent / "vectors" / "wycheproof.json").read_text(encoding="utf-8"))
OTHER = keys.KeyPair.from_secret(bytes(range(96)))
ADDRESS = keys.BoxAddress(bytes(32), "alice", "bob", b"")


def published(path: str) -> Iterator[str]:
    """The lines of a file of `cryptography_vectors`."""
    vectors = pytest.importorskip("cryptography_vectors", reason="the extra [dev] is not installed")
    with vectors.open_vector_file(path, "r") as file:
        yield from file


def records(path: str, first: str) -> Iterator[dict[str, str]]:
    """The ``name = value`` records of a file; each begins with the name `first`."""
    record: dict[str, str] = {}
    for line in published(path):
        name, separator, value = line.partition("=")
        if not separator or line.startswith(("#", "[")):
            continue
        name = name.strip().lower()
        if name == first and record:
            yield record
            record = {}
        record[name] = value.strip()
    yield record


def values(case: dict[str, Any], *fields: str) -> tuple[bytes, ...]:
    """Fields of a case as bytes."""
    return tuple(bytes.fromhex(case[field]) for field in fields)


def ids(case: dict[str, Any]) -> str:
    """A Wycheproof case's number."""
    return str(case["tcId"])


def test_the_vectors_are_of_the_library_that_runs() -> None:
    vectors = pytest.importorskip("cryptography_vectors", reason="the extra [dev] is not installed")
    assert vectors.__version__ == cryptography.__version__


def test_the_selection_is_whole() -> None:
    counts = {name: len(cases) for name, cases in WYCHEPROOF.items() if isinstance(cases, list)}
    assert counts == {
        "x25519": 183,
        "ed25519": 209,
        "hkdf_sha256": 83,
        "aes_256_gcm": 60,
        "mlkem_768_keys": 44,
        "mlkem_768_decapsulation": 29,
    }


# X25519: KeyPair.exchange, check_public_key


def test_x25519_agrees_with_rfc_7748_section_5_2() -> None:
    cases = list(records("asymmetric/X25519/rfc7748.txt", "count"))
    assert len(cases) >= 2
    for case in cases[:2]:
        scalar, u, expected = values(case, "input_scalar", "input_u", "output_u")
        assert keys.KeyPair.from_secret(scalar + bytes(64)).exchange(u, "peer") == expected


def test_x25519_agrees_with_the_iterated_vector_of_rfc_7748() -> None:
    case = list(records("asymmetric/X25519/rfc7748.txt", "count"))[2]
    k, u = values(case, "input_scalar", "input_u")
    k, u = keys.KeyPair.from_secret(k + bytes(64)).exchange(u, "peer"), k
    assert k.hex() == case["output_u"]
    for _ in range(999):
        k, u = keys.KeyPair.from_secret(k + bytes(64)).exchange(u, "peer"), k
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"  # after 1000


def test_x25519_agrees_with_wycheproof_and_low_order_points_are_refused() -> None:
    refused = 0
    for case in WYCHEPROOF["x25519"]:
        private, public, shared = values(case, "private", "public", "shared")
        pair = keys.KeyPair.from_secret(private + bytes(64))
        if shared == bytes(32):
            refused += 1
            assert "ZeroSharedSecret" in case["flags"]
            with pytest.raises(RemoteProtocolError, match="peer: its X25519 key is of low order"):
                pair.exchange(public, "peer")
            with pytest.raises(RemoteProtocolError, match="low order"):
                keys.check_public_key(public + OTHER.public_bytes[32:], "peer")
        else:
            assert pair.exchange(public, "peer") == shared, case["tcId"]
    assert refused == 31


# ML-KEM-768: KeyPair, encapsulate, check_public_key


def test_mlkem_agrees_with_known_answers_and_rejects_implicitly() -> None:
    checked = 0
    for case in islice(records("asymmetric/MLKEM/kat_MLKEM_768.rsp", "count"), 0, None, 10):
        d, z, public, ciphertext, shared = values(case, "d", "z", "pk", "ct", "ss")
        pair = keys.KeyPair.from_secret(bytes(32) + d + z)
        assert pair.public_bytes[32:] == public
        assert pair.decapsulate(ciphertext) == shared
        wrong, unrelated = values(case, "ct_n", "ss_n")  # FIPS 203, 6.3: implicit rejection
        assert pair.decapsulate(wrong) == unrelated != shared
        checked += 1
    assert checked == 100


def test_wycheproof_s_invalid_mlkem_keys_are_refused() -> None:
    for case in WYCHEPROOF["mlkem_768_keys"]:
        (public,) = values(case, "ek")
        assert case["result"] == "invalid"
        for use in (keys.encapsulate, keys.check_public_key):
            with pytest.raises(RemoteProtocolError, match="peer: its ML-KEM key is invalid"):
                use(OTHER.public_bytes[:32] + public, "peer")


def test_wycheproof_s_mlkem_ciphertexts() -> None:
    valid = 0
    for case in WYCHEPROOF["mlkem_768_decapsulation"]:
        seed, ciphertext, shared = values(case, "seed", "c", "K")
        if len(seed) != 64:  # ours always is: KEY_PAIR_SECRET_BYTES
            with pytest.raises(ValueError, match="64 bytes"):
                keys.KeyPair.from_secret(bytes(32) + seed)
            continue
        pair = keys.KeyPair.from_secret(bytes(32) + seed)
        if case["result"] == "valid":
            valid += 1
            assert pair.decapsulate(ciphertext) == shared, case["tcId"]
        else:  # another length: the codec's annotations let only 1088 bytes come so far
            assert len(ciphertext) != keys.ENCAPSULATION_BYTES
            with pytest.raises(ValueError, match="Invalid ML-KEM-768 ciphertext"):
                pair.decapsulate(ciphertext)
    assert valid == 21


# HKDF-SHA256: derive


def test_hkdf_agrees_with_wycheproof(monkeypatch: pytest.MonkeyPatch) -> None:
    through_ours = 0
    for case in WYCHEPROOF["hkdf_sha256"]:
        secret, salt, info, expected = values(case, "ikm", "salt", "info", "okm")
        if case["result"] == "invalid":
            with pytest.raises(ValueError, match="8160"):  # 255 blocks of 32 bytes
                keys.derive(secret, b"purpose", size=case["size"])
            continue
        plain = keys.HKDF(algorithm=SHA256(), length=case["size"], salt=salt or None, info=info)
        assert plain.derive(secret) == expected, case["tcId"]
        if not salt:
            with monkeypatch.context() as patch:
                patch.setattr(keys, "statement", lambda *parts, info=info: info)
                assert keys.derive(secret, b"purpose", size=case["size"]) == expected
            through_ours += 1
    assert through_ours >= 20


def test_hkdf_agrees_with_rfc_5869() -> None:
    cases = list(records("KDF/rfc-5869-HKDF-SHA256.txt", "count"))
    assert len(cases) == 3
    for case in cases:
        secret, salt, info, expected = values(case, "ikm", "salt", "info", "okm")
        plain = keys.HKDF(algorithm=SHA256(), length=int(case["l"]), salt=salt or None, info=info)
        assert plain.derive(secret) == expected


# AES-256-GCM: seal_box, open_box


def test_boxes_agree_with_wycheproof_and_changed_tags_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    results = set()
    for case in WYCHEPROOF["aes_256_gcm"]:
        key, nonce, bound, content, text, tag = values(case, "key", "iv", "aad", "msg", "ct", "tag")
        results.add(case["result"])
        with monkeypatch.context() as patch:
            patch.setattr(keys, "_ONLY_NONCE", nonce)
            patch.setattr(keys.BoxAddress, "key", lambda self, *secrets, key=key: AESGCM(key))
            patch.setattr(keys.BoxAddress, "associated_data", property(lambda self, bound=bound: bound))
            ciphertext, sealed = keys.seal_box(content, OTHER, OTHER.public_bytes, ADDRESS)
            if case["result"] == "valid":
                assert sealed == text + tag, case["tcId"]
                assert keys.open_box(sealed, ciphertext, OTHER, OTHER.public_bytes, ADDRESS) == content
            else:
                assert sealed != text + tag
                with pytest.raises(RemoteProtocolError, match="alice: its box does not open"):
                    keys.open_box(text + tag, ciphertext, OTHER, OTHER.public_bytes, ADDRESS)
    assert results == {"valid", "invalid"}


def test_gcm_agrees_with_nist_s_vectors_for_our_sizes() -> None:
    opened = failed = 0
    section: dict[str, str] = {}
    record: dict[str, str] = {}
    for line in published("ciphers/AES/GCM/gcmDecrypt256.rsp"):
        text = line.strip()
        if text.startswith("["):
            name, _, value = text.strip("[]").partition("=")
            section[name.strip()] = value.strip()
        elif text == "FAIL":
            record["fail"] = ""
        elif " = " in text or text.endswith(" ="):
            name, _, value = text.partition("=")
            record[name.strip().lower()] = value.strip()
        if text or len(record) < 5:
            continue
        case, record = record, {}
        if (section["IVlen"], section["Taglen"]) != ("96", "128"):
            continue
        key, nonce, text_bytes, bound, tag = values(case, "key", "iv", "ct", "aad", "tag")
        try:
            content = AESGCM(key).decrypt(nonce, text_bytes + tag, bound)
        except InvalidTag:
            assert "fail" in case
            failed += 1
        else:
            assert content.hex() == case["pt"]
            opened += 1
    assert opened > 100
    assert failed > 100


# AES-256 in counter mode: SecretStream


def test_a_stream_starts_with_the_encryption_of_zero_as_nist_s_vectors_have_it() -> None:
    checked = 0
    for name in ("ECBVarKey256", "ECBKeySbox256"):
        for case in records(f"ciphers/AES/ECB/{name}.rsp", "count"):
            key, block, expected = values(case, "key", "plaintext", "ciphertext")
            if block == bytes(16):
                assert prg.SecretStream(key).bytes(16) == expected
                checked += 1
    assert checked >= 256


def test_a_stream_masks_as_rfc_3686_says(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = list(records("ciphers/AES/CTR/aes-256-ctr.txt", "count"))
    assert len(cases) == 3
    for case in cases:
        key, counter, plain, masked = values(case, "key", "iv", "plaintext", "ciphertext")
        with monkeypatch.context() as patch:
            patch.setattr(prg, "modes", SimpleNamespace(CTR=lambda _, counter=counter: modes.CTR(counter)))
            stream = prg.SecretStream(key)
        keystream = np.frombuffer(stream.bytes(len(plain)), dtype=np.uint8)
        assert (np.frombuffer(plain, dtype=np.uint8) ^ keystream).tobytes() == masked


# AES-256-GCM's keystream: add_masks


def test_masks_are_the_keystream_of_wycheproof_s_encryptions(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = 0
    for case in WYCHEPROOF["aes_256_gcm"]:
        key, nonce, content, text = values(case, "key", "iv", "msg", "ct")
        if case["result"] != "valid" or not content:
            continue
        with monkeypatch.context() as patch:
            patch.setattr(mask, "modes", SimpleNamespace(GCM=lambda _, nonce=nonce: modes.GCM(nonce)))
            ring = np.zeros(len(content), dtype=np.uint32)
            mask.add_masks(ring, [mask.Mask(key)], modulus_bits=8)
        keystream = np.frombuffer(content, dtype=np.uint8) ^ np.frombuffer(text, dtype=np.uint8)
        assert ring.tolist() == keystream.tolist(), case["tcId"]
        checked += 1
    assert checked > 20


# Ed25519: Identity.sign, verify


@pytest.fixture
def unlabelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sign and verify the bare message, as the vectors do."""
    monkeypatch.setattr(identity, "_signed_bytes", lambda label, payload: payload)


@pytest.mark.usefixtures("unlabelled")
def test_signatures_agree_with_the_reference_implementation_s() -> None:
    checked = 0
    for line in published("asymmetric/Ed25519/sign.input"):
        private, public, message, signed, _ = line.split(":")
        ours = identity.Identity.from_private_bytes(bytes.fromhex(private)[:32])
        assert ours.public_bytes.hex() == public
        assert ours.sign(b"", bytes.fromhex(message)).hex() + message == signed
        identity.verify(ours.public_bytes, b"", bytes.fromhex(message), bytes.fromhex(signed)[:64])
        checked += 1
    assert checked == 1024


@pytest.mark.usefixtures("unlabelled")
def test_signatures_agree_with_wycheproof_and_malleable_ones_are_refused() -> None:
    refused = set()
    for case in WYCHEPROOF["ed25519"]:
        public, message, signature = values(case, "public", "msg", "sig")
        if case["result"] == "invalid":
            refused |= set(case["flags"])
            with pytest.raises(SignatureError):
                identity.verify(public, b"", message, signature)
        elif case["result"] == "valid":
            identity.verify(public, b"", message, signature)
    assert {
        "SignatureMalleability",
        "InvalidEncoding",
        "TruncatedSignature",
        "SignatureWithGarbage",
    } <= refused


def test_a_published_signature_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in WYCHEPROOF["ed25519"] if case["result"] == "valid")
    public, message, signature = values(case, "public", "msg", "sig")
    with pytest.raises(SignatureError):  # our domain and label are in what we verify
        identity.verify(public, b"", message, signature)
    monkeypatch.setattr(identity, "_signed_bytes", lambda label, payload: payload)
    identity.verify(public, b"", message, signature)
