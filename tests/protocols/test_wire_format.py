"""A second implementation of docs/wire-format.md, with nothing of ours but the messages as bytes.

It parses a real session byte by byte, and recomputes the transcript, the keys, the boxes and a masked vector from
the clients' secrets. It uses Python integers, hashlib, hmac and the primitives of `cryptography`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def S(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def H(*parts: bytes) -> bytes:
    return hashlib.sha256(b"fedlora-priv/v1/" + S(*parts)).digest()


def KDF(secret: bytes, *context: bytes, size: int = 32) -> bytes:
    info = S(b"fedlora-priv/v1/key", *context)
    key, block, out = hmac.digest(bytes(32), secret, "sha256"), b"", b""
    for counter in range(1, size // 32 + 1):
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        out += block
    return out


def keystream_words(key: bytes, n: int, w: int) -> list[int]:
    counter = modes.CTR((2).to_bytes(16, "big"))
    data = Cipher(algorithms.AES(key), counter).encryptor().update(bytes(w * n))
    return [int.from_bytes(data[w * k : w * k + w], "little") for k in range(n)]


def x25519(secret: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret[:32]).exchange(
        X25519PublicKey.from_public_bytes(public[:32])
    )


class Bytes:
    """A cursor over a message."""

    def __init__(self, data: bytes, kind: int) -> None:
        assert data[:2] == bytes([1, kind])
        self.rest = data[2:]

    def take(self, n: int) -> bytes:
        taken, self.rest = self.rest[:n], self.rest[n:]
        assert len(taken) == n
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def blob(self) -> bytes:
        return self.take(self.number(4))

    def count(self) -> Iterator[int]:
        return iter(range(self.number(4)))

    def parcel(self) -> dict[str, Any]:
        return {
            "sender": self.number(2),
            "recipient": self.number(2),
            "mask_encapsulation": self.blob(),
            "seed_digest": self.take(32),
            "master_digest": self.take(32),
            "box_encapsulation": self.take(1088),
            "box": self.take(176),
        }


class Recorded:
    """A session of five with every message kept."""

    def __init__(self, federation: Any) -> None:
        self.federation = federation
        self.names = federation.names
        self.requests: dict[str, dict[str, bytes]] = {}
        self.answers: dict[str, dict[str, bytes]] = {}
        self.states: dict[str, Any] = {}
        inbox = federation.server.start()
        for phase in ("advertise", "share", "mask", "confirm", "reveal"):
            self.requests[phase] = inbox
            if phase == "mask":
                self.states = {name: federation.clients[name]._state for name in self.names}
            self.answers[phase] = {name: federation.answer(name, phase, inbox[name]) for name in self.names}
            for name, answer in self.answers[phase].items():
                federation.server.receive(name, answer)
            inbox = federation.server.advance()
        self.t0 = H(b"T0", self.requests["advertise"]["client-1"])
        level = [
            H(
                b"leaf",
                self.t0,
                i.to_bytes(4, "little"),
                self.answers["advertise"].get(f"client-{i + 1}", b""),
            )
            for i in range(8)
        ]
        while len(level) > 1:
            level = [H(b"node", *level[i : i + 2]) for i in range(0, len(level), 2)]
        self.t1 = level[0]

    def keys(self, name: str) -> tuple[bytes, bytes]:
        message = self.answers["advertise"][name]
        return message[2:1218], message[1218:2434]


@pytest.fixture(scope="module")
def recorded(make_federation: Any) -> Recorded:
    return Recorded(make_federation())


def check_signature(recorded: Recorded, name: str, label: bytes, payload: bytes, signature: bytes) -> None:
    key = Ed25519PublicKey.from_public_bytes(recorded.federation.roster[name])
    signed = b"fedlora-priv/v1/signature" + len(label).to_bytes(4, "little") + label + payload
    key.verify(signature, signed)


def test_the_proposal(recorded: Recorded) -> None:
    message = Bytes(recorded.requests["advertise"]["client-1"], 1)
    assert message.take(32) == bytes([7]) * 32
    assert (message.number(4), message.number(4)) == (1, 0)
    assert [message.blob().decode() for _ in message.count()] == list(recorded.names)
    assert [message.number(4) for _ in range(6)] == [1, 4, 4, 4, 4, 7]
    assert (message.number(1), message.number(4)) == (11, 204)
    assert message.take(32) == bytes(range(32))
    groups = [
        (message.number(4), message.number(4), [message.number(2) for _ in message.count()])
        for _ in message.count()
    ]
    assert groups == [(0, 7, [0, 1, 2, 3, 4])]
    assert message.number(4) == 4
    assert message.rest == b""


def test_the_transcript_and_every_signature(recorded: Recorded) -> None:
    assert Bytes(recorded.requests["share"]["client-1"], 3).take(32) == recorded.t1
    assert recorded.federation.server.result().transcript == recorded.t1
    everybody = H(b"survivors", (5).to_bytes(4, "little"), b"\x1f")
    for name in recorded.names:
        who = name.encode()
        sent = {phase: recorded.answers[phase][name] for phase in recorded.answers}
        packed = Bytes(sent["mask"], 6).blob()
        attachment = Bytes(sent["confirm"], 8).blob()
        payloads = {
            "advertise": S(recorded.t0, who, H(b"body", sent["advertise"][:-64])),
            "share": S(recorded.t1, who, H(b"body", sent["share"][:-64])),
            "mask": S(recorded.t1, everybody, who, H(b"masked-vector", packed)),
            "confirm": S(recorded.t1, everybody, everybody, who, H(b"attachment", attachment)),
            "reveal": S(recorded.t1, who, H(b"body", sent["reveal"][:-64])),
        }
        for phase, payload in payloads.items():
            check_signature(recorded, name, phase.encode(), payload, sent[phase][-64:])


@pytest.mark.parametrize("name", ["client-1", "client-3", "client-5"])
def test_a_masked_vector(recorded: Recorded, name: str) -> None:
    state, me = recorded.states[name], recorded.names.index(name)
    mask_secret = KDF(state.master, b"mask-key-pair", recorded.t0, name.encode(), size=96)
    incoming = Bytes(recorded.requests["mask"][name], 5)
    assert incoming.blob() == b"\x1f"
    parcels = [incoming.parcel() for _ in incoming.count()]
    assert incoming.rest == b""
    total = recorded.federation.vectors[name].tolist()
    mask = keystream_words(KDF(state.seed, b"self-mask", recorded.t1, name.encode()), 7, 2)
    total = [a + b for a, b in zip(total, mask, strict=True)]
    for parcel in parcels:
        peer = parcel["sender"]
        low, high = sorted((me, peer))
        if me < peer:
            edge = next(edge for edge in state.edges if edge.peer == peer)
            secret, ciphertext = edge.shared_secret, edge.ciphertext
        else:
            ciphertext = parcel["mask_encapsulation"]
            secret = MLKEM768PrivateKey.from_seed_bytes(mask_secret[32:]).decapsulate(ciphertext)
        exchanged = x25519(mask_secret, recorded.keys(recorded.names[peer])[1])
        ids = (recorded.names[low].encode(), recorded.names[high].encode())
        key = KDF(exchanged + secret, b"pair-mask", recorded.t1, *ids, H(b"encapsulation", ciphertext))
        sign = 1 if me < peer else -1
        total = [a + sign * b for a, b in zip(total, keystream_words(key, 7, 2), strict=True)]
    number = sum((value % 2**11) << (11 * k) for k, value in enumerate(total))
    assert Bytes(recorded.answers["mask"][name], 6).blob() == number.to_bytes(10, "little")


def test_boxes_shares_commitments_and_escrow(recorded: Recorded) -> None:
    dealer, recipient = "client-2", "client-4"
    dealt = Bytes(recorded.answers["share"][dealer], 4)
    commitments, own = (dealt.take(32), dealt.take(32)), (dealt.take(32), dealt.take(32))
    escrow = dealt.blob()
    parcels = [dealt.parcel() for _ in dealt.count()]
    assert len(dealt.rest) == 64
    state = recorded.states[dealer]
    ids = (recorded.t1, dealer.encode())
    assert commitments == (
        KDF(state.seed, b"commit", b"seed", *ids),
        KDF(state.master, b"commit", b"master", *ids),
    )
    assert own == (
        H(b"share", state.own.seed_salt, state.own.seed_share),
        H(b"share", state.own.master_salt, state.own.master_share),
    )
    secrets = AESGCM(KDF(state.master, b"escrow", *ids)).decrypt(bytes(12), escrow, None)
    assert secrets == b"".join(edge.shared_secret for edge in state.edges if edge.peer > 1)
    parcel = next(parcel for parcel in parcels if parcel["recipient"] == 3)
    box_secret = recorded.states[recipient].box_secret
    secret = MLKEM768PrivateKey.from_seed_bytes(box_secret[32:]).decapsulate(parcel["box_encapsulation"])
    exchanged = x25519(box_secret, recorded.keys(dealer)[0])
    context = (recorded.t1, dealer.encode(), recipient.encode())
    key = KDF(exchanged + secret, b"box", *context, H(b"encapsulation", parcel["box_encapsulation"]))
    bound = S(parcel["mask_encapsulation"], parcel["seed_digest"], parcel["master_digest"])
    content = AESGCM(key).decrypt(bytes(12), parcel["box"], S(*context, b"share", bound))
    assert H(b"share", content[64:80], content[:64]) == parcel["seed_digest"]
    assert H(b"share", content[144:], content[80:144]) == parcel["master_digest"]


def test_revealed_shares_give_the_seed(recorded: Recorded) -> None:
    prime, owner = 2**32 - 5, 1
    shares: dict[int, bytes] = {}
    for holder, name in enumerate(recorded.names):
        message = Bytes(recorded.answers["reveal"][name], 10)
        for _ in message.count():
            index, share, _salt = message.number(2), message.take(64), message.take(16)
            if index == owner:
                shares[holder + 1] = share
    lowest = sorted(shares)[:4]
    words = b""
    for word in range(16):
        total = 0
        for j in lowest:
            term = int.from_bytes(shares[j][4 * word : 4 * word + 4], "little")
            for m in lowest:
                if m != j:
                    term = term * m * pow(m - j, -1, prime) % prime
            total += term
        words += (total % prime).to_bytes(2, "little")
    assert words == recorded.states["client-2"].seed
