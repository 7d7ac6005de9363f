"""Long-term Ed25519 identities, and the roster that pins them outside the server.

A server that could say who is who could play everybody. So every client holds its own copy of the roster,
which reached it by another way (printed, mailed, signed by the consortium), and believes nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocols.errors import SERVER, LocalProtocolError, RemoteProtocolError, SignatureError
from protocols.redaction import Redacted

PUBLIC_BYTES = 32
MAX_ID_BYTES = 64
_DOMAIN = b"fedlora-priv/v1/signature"
_P = 2**255 - 19  # the field of Ed25519
_OF_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER = frozenset((0, 1, _P - 1, _OF_ORDER_8, _P - _OF_ORDER_8))
"""The y coordinates of the eight points whose order divides 8 (RFC 8032, section 5.1): no secret belongs to them."""


class Identity(Redacted):
    """A client's signing key. Keep `to_private_bytes` where other private keys are kept.

    Example:
        >>> identity = Identity.generate()
        >>> verify(identity.public_bytes, b"greeting", b"hello", identity.sign(b"greeting", b"hello"))
    """

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return f"Identity({self.public_bytes.hex()[:16]}…)"

    @staticmethod
    def generate() -> Identity:
        """Return a fresh identity."""
        return Identity.from_private_bytes(os.urandom(32))

    @staticmethod
    def from_private_bytes(data: bytes) -> Identity:
        """Return the identity that `to_private_bytes` wrote.

        Raises:
            LocalProtocolError: not 32 bytes.
        """
        if len(data) != 32:
            raise LocalProtocolError("an identity's private key is 32 bytes")
        return Identity(Ed25519PrivateKey.from_private_bytes(data))

    def to_private_bytes(self) -> bytes:
        """Return the private key, 32 secret bytes."""
        return self._key.private_bytes_raw()

    @property
    def public_bytes(self) -> bytes:
        """The public key, 32 bytes: what the others pin."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, label: bytes, payload: bytes) -> bytes:
        """Return a signature, 64 bytes, over `payload` for the one use named by `label`."""
        return self._key.sign(_signed_bytes(label, payload))


def verify(public_bytes: bytes, label: bytes, payload: bytes, signature: bytes) -> None:
    """Return if `signature` is by `public_bytes` over that label and payload.

    Raises:
        SignatureError: it is not.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_bytes).verify(signature, _signed_bytes(label, payload))
    except (InvalidSignature, ValueError):
        raise SignatureError(
            f"the signature for {label.decode(errors='replace')!r} does not verify"
        ) from None


def _signed_bytes(label: bytes, payload: bytes) -> bytes:
    """Separate this library, its version and the label from each other and from the payload."""
    return _DOMAIN + len(label).to_bytes(4, "little") + label + payload


class Roster(Mapping[str, bytes]):
    """A mapping from `client_id` to the Ed25519 public key (32 bytes) pinned for it.

    Raises:
        LocalProtocolError: a name is empty, longer than 64 bytes or reserved, a key is not 32 bytes or none that
            only its owner can sign with, or two names share a key.
    """

    def __init__(self, identities: Mapping[str, bytes]) -> None:
        self._identities = dict(identities)
        for client_id, public_bytes in self._identities.items():
            check_client_id(client_id)
            if not isinstance(public_bytes, bytes) or len(public_bytes) != PUBLIC_BYTES:
                raise LocalProtocolError(f"the roster's key of {client_id} is not {PUBLIC_BYTES} bytes")
            _refuse_anybodys_key(client_id, public_bytes)
        if len(set(self._identities.values())) != len(self._identities):
            raise LocalProtocolError("two names of the roster share one key: one party would count twice")

    def __getitem__(self, client_id: str) -> bytes:
        return self._identities[client_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._identities)

    def __len__(self) -> int:
        return len(self._identities)

    def __repr__(self) -> str:
        return f"Roster({', '.join(self)})"

    def verify(self, client_id: str, label: bytes, payload: bytes, signature: bytes) -> None:
        """Return if `client_id` signed that.

        Raises:
            RemoteProtocolError: it is not pinned, or the signature does not verify under its pinned key.
        """
        if client_id not in self:
            raise RemoteProtocolError(client_id, "its identity is not pinned in the roster")
        try:
            verify(self[client_id], label, payload, signature)
        except SignatureError as error:
            raise RemoteProtocolError(client_id, str(error)) from None

    def save(self, path: Path) -> None:
        """Write the roster as JSON: an object from client_id to the key in hexadecimal."""
        keys = {client_id: key.hex() for client_id, key in self.items()}
        path.write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Roster:
        """Return the roster that `save` wrote.

        Raises:
            LocalProtocolError: the file is not a roster.
        """
        try:
            keys = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
            return Roster({client_id: bytes.fromhex(key) for client_id, key in keys.items()})
        except (AttributeError, TypeError):
            raise LocalProtocolError(
                f"{path} is not a roster: it must map client ids to keys in hex"
            ) from None
        except ValueError as error:
            raise LocalProtocolError(f"{path} is not a roster: {error}") from None


def check_client_id(client_id: str) -> None:
    """Raise unless a client may be called that."""
    if not isinstance(client_id, str) or not 0 < len(client_id.encode()) <= MAX_ID_BYTES:
        raise LocalProtocolError(f"a client_id is 1 to {MAX_ID_BYTES} bytes of text")
    if client_id == SERVER:
        raise LocalProtocolError(f"no client may be called {SERVER!r}")


def _refuse_anybodys_key(client_id: str, public_bytes: bytes) -> None:
    """Refuse a key of small order, under which anybody can sign, and a second encoding of a point."""
    y = int.from_bytes(public_bytes, "little") % 2**255
    if y >= _P or y in _SMALL_ORDER:
        raise LocalProtocolError(f"the roster's key of {client_id} is none: anybody could sign under it")


def _without_duplicates(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Refuse a JSON object with one name twice: which key is pinned would depend on the reader."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)
