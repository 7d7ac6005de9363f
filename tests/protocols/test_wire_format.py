"""A second implementation of docs/wire-format.md, with nothing of ours but messages as bytes and drawn secrets.

It reads every message of the recorded sessions (vectors/session*.json) and of a fresh one byte by byte, and
recomputes the transcript, the graph, keys, commitments, boxes, shares, masks and the sum. It uses Python integers,
hashlib, hmac and the primitives of `cryptography`.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import runpy
from base64 import b64decode
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FOLDER = Path(__file__).parent / "vectors"
RECORDED = ("session", "session_setup", "session_masks", "session_late", "session_ring")
PRIME = 2**32 - 5


def u(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def S(*parts: bytes) -> bytes:
    return b"".join(u(len(part), 4) + part for part in parts)


def H(*parts: bytes) -> bytes:
    return hashlib.sha256(b"fedlora-priv/v1/" + S(*parts)).digest()


def KDF(secret: bytes, *context: bytes, size: int = 32) -> bytes:
    info = S(b"fedlora-priv/v1/key", *context)
    key, block, out = hmac.digest(bytes(32), secret, "sha256"), b"", b""
    for counter in range(1, size // 32 + 1):
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        out += block
    return out


def keystream(key: bytes, size: int, first_counter: int) -> bytes:
    return (
        Cipher(algorithms.AES(key), modes.CTR(first_counter.to_bytes(16, "big")))
        .encryptor()
        .update(bytes(size))
    )


def words(data: bytes, size: int) -> list[int]:
    return [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]


def x25519(secret: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret[:32]).exchange(
        X25519PublicKey.from_public_bytes(public[:32])
    )


def decapsulate(secret: bytes, ciphertext: bytes) -> bytes:
    return MLKEM768PrivateKey.from_seed_bytes(secret[32:]).decapsulate(ciphertext)


def public_key(secret: bytes) -> bytes:
    first = X25519PrivateKey.from_private_bytes(secret[:32]).public_key().public_bytes_raw()
    return first + MLKEM768PrivateKey.from_seed_bytes(secret[32:]).public_key().public_bytes_raw()


def interpolate(shares: dict[int, bytes], at: int) -> list[int]:
    """The value of each word's polynomial at a point."""
    values = []
    for word in range(16):
        total = 0
        for x, share in shares.items():
            term = words(share, 4)[word]
            for other in shares:
                if other != x:
                    term = term * (at - other) * pow(x - other, -1, PRIME) % PRIME
            total += term
        values.append(total % PRIME)
    return values


class Cursor:
    """The rest of a message."""

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

    def end(self) -> None:
        assert self.rest == b""

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


class Session:
    """A session as its messages, and what a stranger makes of them."""

    def __init__(self, recorded: dict[str, Any]) -> None:
        self.recorded = recorded
        self.requests = {step["phase"]: self._by_index(step["requests"]) for step in recorded["steps"]}
        self.answers = {step["phase"]: self._by_index(step["answers"]) for step in recorded["steps"]}
        self.u1, self.u2, self.u3 = (set(self.answers[phase]) for phase in ("advertise", "share", "mask"))
        self.read_proposal()
        self.t0 = H(b"T0", self.requests["advertise"][0])
        self.keys = {i: (m[2:1218], m[1218:2434]) for i, m in self.answers["advertise"].items()}
        self.secrets = {
            int(name.split("-")[1]) - 1: {kind: bytes.fromhex(secret) for kind, secret in drawn.items()}
            for name, drawn in recorded["secrets"].items()
        }
        self.mask_secrets = {
            i: KDF(secret["master"], b"mask-key-pair", self.t0, self.id(i), size=96)
            for i, secret in self.secrets.items()
        }

    @staticmethod
    def _by_index(messages: dict[str, str]) -> dict[int, bytes]:
        return {int(name.split("-")[1]) - 1: b64decode(data) for name, data in messages.items()}

    def id(self, index: int) -> bytes:
        return self.roster[index]

    def read_proposal(self) -> None:
        data = Cursor(self.requests["advertise"][0], 1)
        self.session_id, self.round, self.exchange = data.take(32), data.number(4), data.number(4)
        self.roster = [data.blob() for _ in data.count()]
        names = ("max_colluders", "quorum", "threshold", "min_survivors", "degree", "vector_length")
        self.counts = {name: data.number(4) for name in names}
        self.bits, self.bound, self.context = data.number(1), data.number(4), data.take(32)
        self.groups = [
            (data.number(4), data.number(4), [data.number(2) for _ in data.count()]) for _ in data.count()
        ]
        self.min_contributors = data.number(4)
        data.end()
        self.n, self.threshold = len(self.roster), self.counts["threshold"]

    @cached_property
    def levels(self) -> list[list[bytes]]:
        width = 1
        while width < self.n:
            width *= 2
        adverts = self.answers["advertise"]
        levels = [[H(b"leaf", self.t0, u(i, 4), adverts.get(i, b"")) for i in range(width)]]
        while len(levels[-1]) > 1:
            below = levels[-1]
            levels.append([H(b"node", below[i], below[i + 1]) for i in range(0, len(below), 2)])
        return levels

    @property
    def t1(self) -> bytes:
        return self.levels[-1][0]

    def neighbours(self, index: int) -> list[int]:
        degree = self.counts["degree"]
        if degree == self.n - 1:
            return [other for other in range(self.n) if other != index]
        drawn = words(keystream(H(b"ring-order", self.t1), 8 * self.n, 0), 8)
        order = sorted(range(self.n), key=lambda i: (drawn[i], i))
        place = order.index(index)
        reach = degree // 2
        return sorted(order[(place + k) % self.n] for k in range(-reach, reach + 1) if k)

    def survivors_digest(self, members: set[int]) -> bytes:
        return H(b"survivors", u(self.n, 4), self.bitmap(members))

    def bitmap(self, members: set[int]) -> bytes:
        return u(sum(1 << i for i in members), (self.n + 7) // 8)

    @cached_property
    def dealt(self) -> dict[int, dict[str, Any]]:
        found = {}
        for i, message in self.answers["share"].items():
            data = Cursor(message, 4)
            digests = [data.take(32) for _ in range(4)]
            escrow, parcels = data.blob(), [data.parcel() for _ in data.count()]
            data.take(64)
            data.end()
            found[i] = {"digests": digests, "escrow": escrow, "parcels": parcels}
        return found

    def opened(self, parcel: dict[str, Any]) -> tuple[bytes, bytes, bytes, bytes]:
        """Seed share, its salt, master share, its salt."""
        i, j = parcel["sender"], parcel["recipient"]
        secret = self.secrets[j]["box_secret"]
        shared = x25519(secret, self.keys[i][0]) + decapsulate(secret, parcel["box_encapsulation"])
        where = (self.t1, self.id(i), self.id(j))
        key = KDF(shared, b"box", *where, H(b"encapsulation", parcel["box_encapsulation"]))
        bound = S(parcel["mask_encapsulation"], parcel["seed_digest"], parcel["master_digest"])
        content = AESGCM(key).decrypt(bytes(12), parcel["box"], S(*where, b"share", bound))
        return content[:64], content[64:80], content[80:144], content[144:]

    def pair_key(self, i: int, j: int) -> bytes:
        """The key of the mask between two clients, from the higher one's secrets."""
        low, high = sorted((i, j))
        ciphertext = next(
            p["mask_encapsulation"] for p in self.dealt[low]["parcels"] if p["recipient"] == high
        )
        secret = self.mask_secrets[high]
        shared = x25519(secret, self.keys[low][1]) + decapsulate(secret, ciphertext)
        ids = (self.id(low), self.id(high))
        return KDF(shared, b"pair-mask", self.t1, *ids, H(b"encapsulation", ciphertext))

    def mask(self, key: bytes) -> list[int]:
        size = 1 if self.bits <= 8 else 2 if self.bits <= 16 else 4
        return words(keystream(key, size * self.counts["vector_length"], 2), size)


@pytest.fixture(scope="module", params=[*RECORDED, "fresh"])
def session(request: pytest.FixtureRequest) -> Session:
    if request.param == "fresh":
        made = runpy.run_path(str(FOLDER / "generate.py"))
        return Session(
            json.loads(json.dumps(made["record"](n=6, bits=9, lost={"client-2": "mask"}, degree=4)))
        )
    return Session(json.loads((FOLDER / f"{request.param}.json").read_text(encoding="utf-8")))


def test_the_proposal_and_the_transcript(session: Session) -> None:
    assert [name.decode() for name in session.roster] == list(session.recorded["public_keys"])
    assert session.context.hex() == session.recorded["context"]
    assert len(session.session_id) == 32
    assert (session.round, session.exchange) == (3, 0)
    assert session.n * session.bound < 2 ** (session.bits - 1)
    assert session.groups[0][0] == 0
    assert session.groups[-1][1] == session.counts["vector_length"]
    assert session.min_contributors == session.counts["min_survivors"]
    assert len(set(session.requests["advertise"].values())) == 1
    assert session.t0.hex() == session.recorded["t0"]
    assert session.t1.hex() == session.recorded["t1"]


def test_public_keys_follow_from_the_secrets(session: Session) -> None:
    for i, (box_key, mask_key) in session.keys.items():
        assert box_key == public_key(session.secrets[i]["box_secret"])
        assert mask_key == public_key(session.mask_secrets[i])


def test_advertisements_carry_paths_to_t1(session: Session) -> None:
    for i, message in session.requests["share"].items():
        data = Cursor(message, 3)
        assert data.take(32) == session.t1
        indices = []
        for _ in data.count():
            index = data.number(2)
            indices.append(index)
            assert data.take(1216 * 2 + 64) == session.answers["advertise"][index][2:]
            path = [data.take(32) for _ in data.count()]
            assert path == [level[(index >> h) ^ 1] for h, level in enumerate(session.levels[:-1])]
        data.end()
        assert indices == sorted({i, *session.neighbours(i)} & session.u1)


def test_every_signature(session: Session) -> None:
    u2, u3 = session.survivors_digest(session.u2), session.survivors_digest(session.u3)
    for phase, answers in session.answers.items():
        for i, message in answers.items():
            body = H(b"body", message[:-64])
            payload = {
                "advertise": S(session.t0, session.id(i), body),
                "share": S(session.t1, session.id(i), body),
                "mask": S(session.t1, u2, session.id(i), H(b"masked-vector", message[6:-64])),
                "confirm": S(session.t1, u2, u3, session.id(i), H(b"attachment", message[6:-64])),
                "reveal": S(session.t1, session.id(i), body),
            }[phase]
            label = phase.encode()
            signed = b"fedlora-priv/v1/signature" + u(len(label), 4) + label + payload
            key = bytes.fromhex(session.recorded["public_keys"][session.id(i).decode()])
            Ed25519PublicKey.from_public_bytes(key).verify(message[-64:], signed)


def test_dealings(session: Session) -> None:
    for i, dealt in session.dealt.items():
        seed, master = session.secrets[i]["seed"], session.secrets[i]["master"]
        who = (session.t1, session.id(i))
        assert dealt["digests"][0] == KDF(seed, b"commit", b"seed", *who)
        assert dealt["digests"][1] == KDF(master, b"commit", b"master", *who)
        neighbours = [j for j in session.neighbours(i) if j in session.u1]
        assert [parcel["recipient"] for parcel in dealt["parcels"]] == neighbours
        assert {parcel["sender"] for parcel in dealt["parcels"]} == {i}
        encapsulated = AESGCM(KDF(master, b"escrow", *who)).decrypt(bytes(12), dealt["escrow"], None)
        higher = [parcel for parcel in dealt["parcels"] if parcel["recipient"] > i]
        assert [len(p["mask_encapsulation"]) for p in dealt["parcels"]] == [
            1088 if j > i else 0 for j in neighbours
        ]
        assert encapsulated == b"".join(
            decapsulate(session.mask_secrets[p["recipient"]], p["mask_encapsulation"]) for p in higher
        )


def test_boxes_hold_shares_of_both_secrets(session: Session) -> None:
    for i, dealt in session.dealt.items():
        shares: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        for parcel in dealt["parcels"]:
            seed, seed_salt, master, master_salt = session.opened(parcel)
            assert H(b"share", seed_salt, seed) == parcel["seed_digest"]
            assert H(b"share", master_salt, master) == parcel["master_digest"]
            for held, share in zip(shares, (seed, master), strict=True):
                held[parcel["recipient"] + 1] = share
        for held, secret in zip(shares, ("seed", "master"), strict=True):
            if len(held) >= session.threshold:
                lowest = {point: held[point] for point in sorted(held)[: session.threshold]}
                assert interpolate(lowest, 0) == words(session.secrets[i][secret], 2)
                for point, share in held.items():  # and all the others lie on the same polynomials
                    assert interpolate(lowest, point) == words(share, 4)


def test_boxes_are_delivered(session: Session) -> None:
    for i, message in session.requests["mask"].items():
        data = Cursor(message, 5)
        assert data.blob() == session.bitmap(session.u2)
        parcels = [data.parcel() for _ in data.count()]
        data.end()
        assert [parcel["sender"] for parcel in parcels] == sorted(session.u2 & {*session.neighbours(i)})
        for parcel in parcels:
            assert parcel in session.dealt[parcel["sender"]]["parcels"]
            assert parcel["recipient"] == i


def test_masked_vectors(session: Session) -> None:
    for i, message in session.answers["mask"].items():
        name = session.id(i).decode()
        own = KDF(session.secrets[i]["seed"], b"self-mask", session.t1, session.id(i))
        neighbours = [j for j in session.neighbours(i) if j in session.u2]
        pairs = {session.id(j).decode(): session.pair_key(i, j).hex() for j in neighbours}
        expected = {"u2": sorted(session.u2), "self": own.hex(), "pairs": pairs}
        assert session.recorded["mask_keys"][name] == expected
        total = [a + b for a, b in zip(session.recorded["vectors"][name], session.mask(own), strict=True)]
        for j in neighbours:
            sign = 1 if i < j else -1
            pair = session.mask(session.pair_key(i, j))
            total = [a + sign * b for a, b in zip(total, pair, strict=True)]
        data = Cursor(message, 6)
        assert data.blob() == packed(total, session.bits)
        data.take(64)
        data.end()


def packed(values: list[int], bits: int) -> bytes:
    number = sum((value % 2**bits) << (bits * k) for k, value in enumerate(values))
    return u(number, (bits * len(values) + 7) // 8)


def test_survivors_and_confirmations(session: Session) -> None:
    for i, message in session.requests["confirm"].items():
        data = Cursor(message, 7)
        assert data.blob() == session.bitmap(session.u3)
        said = [(data.number(2), data.take(32), data.take(64)) for _ in data.count()]
        data.end()
        sent = session.answers["mask"]
        neighbours = sorted(session.u3 & {*session.neighbours(i)})
        assert said == [(j, H(b"masked-vector", sent[j][6:-64]), sent[j][-64:]) for j in neighbours]
    for message in session.requests["reveal"].values():
        data = Cursor(message, 9)
        votes = [(data.number(2), data.take(32), data.take(64)) for _ in data.count()]
        data.end()
        sent = session.answers["confirm"]
        assert len(votes) >= session.counts["quorum"]
        assert [j for j, _, _ in votes] == sorted({j for j, _, _ in votes})
        assert all(
            vote == (vote[0], H(b"attachment", sent[vote[0]][6:-64]), sent[vote[0]][-64:]) for vote in votes
        )
    for i, message in session.answers["confirm"].items():
        data = Cursor(message, 8)
        assert data.blob().hex() == session.recorded["attachments"].get(session.id(i).decode(), "")
        data.take(64)
        data.end()


def revealed(session: Session) -> dict[int, dict[int, tuple[bytes, bytes]]]:
    """Share and salt by owner and holder."""
    found: dict[int, dict[int, tuple[bytes, bytes]]] = {owner: {} for owner in session.u2}
    for holder, message in session.answers["reveal"].items():
        data = Cursor(message, 10)
        owners = []
        for _ in data.count():
            owners.append(data.number(2))
            found[owners[-1]][holder] = (data.take(64), data.take(16))
        data.take(64)
        data.end()
        assert owners == sorted(session.u2 & {holder, *session.neighbours(holder)})
    return found


def test_reveals_are_what_was_dealt(session: Session) -> None:
    for owner, by_holder in revealed(session).items():
        kind = 0 if owner in session.u3 else 2
        for holder, (share, salt) in by_holder.items():
            if holder == owner:
                assert H(b"share", salt, share) == session.dealt[owner]["digests"][2 if kind == 0 else 3]
                continue
            parcel = next(p for p in session.dealt[owner]["parcels"] if p["recipient"] == holder)
            assert (share, salt) == session.opened(parcel)[kind : kind + 2]


def test_the_sum_from_messages_alone(session: Session) -> None:
    # What a server does: no secret of the file is used, but those that the shares give.
    length, modulus = session.counts["vector_length"], 2**session.bits
    total = [0] * length
    for message in session.answers["mask"].values():
        number = int.from_bytes(message[6:-64], "little")
        total = [a + (number >> (session.bits * k)) % modulus for k, a in enumerate(total)]
    assert session.u3 == set(session.answers["mask"])
    for owner, by_holder in revealed(session).items():
        lowest = sorted(by_holder)[: session.threshold]
        points = {holder + 1: by_holder[holder][0] for holder in lowest}
        secret = b"".join(u(word, 2) for word in interpolate(points, 0))
        if owner in session.u3:
            own = session.mask(KDF(secret, b"self-mask", session.t1, session.id(owner)))
            total = [a - b for a, b in zip(total, own, strict=True)]
            continue
        pair_secret = KDF(secret, b"mask-key-pair", session.t0, session.id(owner), size=96)
        escrow = AESGCM(KDF(secret, b"escrow", session.t1, session.id(owner))).decrypt(
            bytes(12), session.dealt[owner]["escrow"], None
        )
        mine = [p["recipient"] for p in session.dealt[owner]["parcels"] if p["recipient"] > owner]
        for other in sorted(session.u3 & {*session.neighbours(owner)}):
            low, high = sorted((owner, other))
            ciphertext = next(
                p["mask_encapsulation"] for p in session.dealt[low]["parcels"] if p["recipient"] == high
            )
            at = 32 * mine.index(other) if owner == low else 0
            kem = escrow[at : at + 32] if owner == low else decapsulate(pair_secret, ciphertext)
            shared = x25519(pair_secret, session.keys[other][1]) + kem
            ids = (session.id(low), session.id(high))
            key = KDF(shared, b"pair-mask", session.t1, *ids, H(b"encapsulation", ciphertext))
            sign = -1 if other == low else 1  # take away what `other` added or subtracted
            total = [a + sign * b for a, b in zip(total, session.mask(key), strict=True)]
    result = [value % modulus for value in total]
    clear = [session.recorded["vectors"][session.id(i).decode()] for i in sorted(session.u3)]
    assert result == session.recorded["sum"] == [sum(column) % modulus for column in zip(*clear, strict=True)]
    assert [session.id(i).decode() for i in sorted(session.u3)] == session.recorded["survivors"]


def test_the_ring_is_a_ring(session: Session) -> None:
    for i, j in itertools.permutations(range(session.n), 2):
        assert (j in session.neighbours(i)) == (i in session.neighbours(j))
        assert len(session.neighbours(i)) == session.counts["degree"]
