"""A second implementation of docs/wire-format.md, of the reading side, with nothing of ours.

It reads every message of a session byte by byte, from messages as bytes and drawn secrets. It uses Python integers,
hashlib, hmac and the primitives of `cryptography`.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

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


def packed(values: list[int], bits: int) -> bytes:
    number = sum((value % 2**bits) << (bits * k) for k, value in enumerate(values))
    return u(number, (bits * len(values) + 7) // 8)
