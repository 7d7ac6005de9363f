"""Key agreement that withstands a later quantum computer, labelled key derivation, and boxes.

The hierarchy of one client's secrets in one session. Whatever can be recovered from shares must not open what
was never meant to be recovered, so box keys hang on nothing that is shared::

    box secret (96 random bytes)  -> box key pair                     never shared, never recovered
    master     (32 random bytes)  -> mask key pair, escrow key        recovered if its owner drops
    seed       (32 random bytes)  -> self-mask                        recovered if its owner survives

A key pair is X25519 and ML-KEM-768; a key is derived from both shared secrets, so breaking one is not enough.
Every derived key has one purpose, named in its derivation together with T1.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.errors import RemoteProtocolError
from protocols.redaction import Redacted
from protocols.secagg.transcript import digest, statement

SECRET_BYTES = 32
KEY_PAIR_SECRET_BYTES = 32 + 64  # an X25519 scalar and an ML-KEM seed (FIPS 203: d and z)
PUBLIC_KEY_BYTES = 32 + 1184
ENCAPSULATION_BYTES = 1088
TAG_BYTES = 16
_DOMAIN = b"fedlora-priv/v1/key"
# AES-GCM fails when a nonce repeats under one key. Each key here encrypts one message: a box key is
# bound to a fresh encapsulation and a direction, an escrow key to one master and T1. So a constant is safe.
_ONLY_NONCE = bytes(12)


def derive(secret: bytes, purpose: bytes, *context: bytes, size: int = 32) -> bytes:
    """Return a key for one purpose in one context: HKDF-SHA256 (RFC 5869), without salt."""
    info = statement(_DOMAIN, purpose, *context)
    return HKDF(algorithm=SHA256(), length=size, salt=None, info=info).derive(secret)


@dataclass(frozen=True, repr=False)
class KeyPair(Redacted):
    """A hybrid key pair, X25519 and ML-KEM-768."""

    _x25519: X25519PrivateKey
    _mlkem: MLKEM768PrivateKey

    @staticmethod
    def from_secret(secret: bytes) -> KeyPair:
        """Return the pair that 96 secret bytes determine."""
        return KeyPair(
            X25519PrivateKey.from_private_bytes(secret[:32]), MLKEM768PrivateKey.from_seed_bytes(secret[32:])
        )

    @property
    def public_bytes(self) -> bytes:
        """The public key, 1216 bytes: X25519, then ML-KEM-768."""
        return self._x25519.public_key().public_bytes_raw() + self._mlkem.public_key().public_bytes_raw()

    def exchange(self, public_bytes: bytes, owner: str) -> bytes:
        """Return the X25519 shared secret with `owner`'s public key.

        Raises:
            RemoteProtocolError: the point is of low order (RFC 7748, section 6.1).
        """
        try:
            return self._x25519.exchange(X25519PublicKey.from_public_bytes(public_bytes[:32]))
        except ValueError:
            raise RemoteProtocolError(owner, "its X25519 key is of low order") from None

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """Return the ML-KEM shared secret; of a wrong ciphertext, an unpredictable one (FIPS 203, 6.3)."""
        return self._mlkem.decapsulate(ciphertext)


def encapsulate(public_bytes: bytes, owner: str) -> tuple[bytes, bytes]:
    """Return an ML-KEM shared secret with `owner`, and the ciphertext that tells it to the owner.

    Raises:
        RemoteProtocolError: the ML-KEM key is invalid.
    """
    try:
        return MLKEM768PublicKey.from_public_bytes(public_bytes[32:]).encapsulate()
    except ValueError:
        raise RemoteProtocolError(owner, "its ML-KEM key is invalid") from None


def check_public_key(public_bytes: bytes, owner: str) -> None:
    """Return if the hybrid public key can be used.

    Raises:
        RemoteProtocolError: one of its halves is invalid.
    """
    _PROBE.exchange(public_bytes, owner)
    encapsulate(public_bytes, owner)


_PROBE = KeyPair.from_secret(bytes(KEY_PAIR_SECRET_BYTES))  # a public constant: it only tests keys of others


def mask_key_pair(master: bytes, t0: bytes, client_id: str) -> KeyPair:
    """Return the mask key pair that a master secret determines."""
    return KeyPair.from_secret(
        derive(master, b"mask-key-pair", t0, client_id.encode(), size=KEY_PAIR_SECRET_BYTES)
    )


def self_mask_key(seed: bytes, t1: bytes, client_id: str) -> bytes:
    """Return the key of a client's self-mask."""
    return derive(seed, b"self-mask", t1, client_id.encode())


def pair_mask_key(x25519: bytes, mlkem: bytes, t1: bytes, low: str, high: str, ciphertext: bytes) -> bytes:
    """Return the key of the mask between two clients, `low` having the lower roster index.

    The ciphertext is bound, because ML-KEM alone does not promise that two ciphertexts give two secrets to
    somebody who chose the key.
    """
    ids = (low.encode(), high.encode())
    return derive(x25519 + mlkem, b"pair-mask", t1, *ids, digest(b"encapsulation", ciphertext))


def commitment(secret: bytes, kind: bytes, t1: bytes, client_id: str) -> bytes:
    """Return a commitment to a uniform 32-byte secret: it binds, and hides since the secret is uniform."""
    return derive(secret, b"commit", kind, t1, client_id.encode())


@dataclass(frozen=True)
class BoxAddress:
    """Where a box goes and what is bound to it besides its content: all of it is authenticated."""

    t1: bytes
    sender: str
    recipient: str
    bound: bytes

    def key(self, x25519: bytes, mlkem: bytes, ciphertext: bytes) -> AESGCM:
        """Return the cipher for the one box in this direction under that encapsulation."""
        ids = (self.sender.encode(), self.recipient.encode())
        info = (self.t1, *ids, digest(b"encapsulation", ciphertext))
        return AESGCM(derive(x25519 + mlkem, b"box", *info))

    @property
    def associated_data(self) -> bytes:
        """What is authenticated next to the content."""
        return statement(self.t1, self.sender.encode(), self.recipient.encode(), b"share", self.bound)


def seal_box(
    content: bytes, sender: KeyPair, recipient_key: bytes, address: BoxAddress
) -> tuple[bytes, bytes]:
    """Return the encapsulation and the box of `content` for `address.recipient`.

    Raises:
        RemoteProtocolError: the recipient's public key is invalid.
    """
    shared, ciphertext = encapsulate(recipient_key, address.recipient)
    cipher = address.key(sender.exchange(recipient_key, address.recipient), shared, ciphertext)
    return ciphertext, cipher.encrypt(_ONLY_NONCE, content, address.associated_data)


def open_box(
    box: bytes, ciphertext: bytes, recipient: KeyPair, sender_key: bytes, address: BoxAddress
) -> bytes:
    """Return the content of a box from `address.sender`.

    Raises:
        RemoteProtocolError: the box was not sealed by that sender for this recipient in this session.
    """
    shared = recipient.decapsulate(ciphertext)
    cipher = address.key(recipient.exchange(sender_key, address.sender), shared, ciphertext)
    try:
        return cipher.decrypt(_ONLY_NONCE, box, address.associated_data)
    except InvalidTag:
        raise RemoteProtocolError(address.sender, "its box does not open") from None


def seal_escrow(secrets: bytes, master: bytes, t1: bytes, client_id: str) -> bytes:
    """Return the client's own encapsulated secrets, encrypted for whoever recovers its master."""
    return _escrow_cipher(master, t1, client_id).encrypt(_ONLY_NONCE, secrets, None)


def open_escrow(escrow: bytes, master: bytes, t1: bytes, client_id: str) -> bytes:
    """Return what `seal_escrow` encrypted.

    Raises:
        RemoteProtocolError: the escrow does not open under that master.
    """
    try:
        return _escrow_cipher(master, t1, client_id).decrypt(_ONLY_NONCE, escrow, None)
    except InvalidTag:
        raise RemoteProtocolError(client_id, "its escrow does not open under its own master") from None


def _escrow_cipher(master: bytes, t1: bytes, client_id: str) -> AESGCM:
    """Return the cipher for a client's one escrow."""
    return AESGCM(derive(master, b"escrow", t1, client_id.encode()))
