"""A client's signature over the head and length of its chain.

A hash chain by itself shows neither a cut tail nor a chain rebuilt after an edit. The anchor does: whoever
pinned the client's key can tell which rows the client stood by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from . import canonical
from .entries import Row
from .errors import LedgerError

LABEL = b"fedlora-priv/ledger-anchor/1"
_DOMAIN = b"fedlora-priv/v1/signature"  # the identities of `protocols` sign in this domain
Sign = Callable[[bytes, bytes], bytes]  # (label, payload) -> Ed25519 signature, 64 bytes


@dataclass(frozen=True, slots=True)
class Anchor:
    """Head (hex) and number of rows of one chain, signed; `public_key` and `signature` are hex."""

    client_id: str
    dataset_id: str
    head: str
    rows: int
    public_key: str
    signature: str

    def verify(self, public_key: bytes | None = None) -> None:
        """Check the signature, against a pinned key if one is given.

        Raises:
            LedgerError: another key signed, or the signature does not fit.
        """
        if public_key is not None and public_key.hex() != self.public_key:
            raise LedgerError(f"the anchor of {self.client_id} is signed by a key that is not the pinned one")
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.public_key))
            key.verify(bytes.fromhex(self.signature), signed_bytes(LABEL, self._payload()))
        except (InvalidSignature, ValueError) as error:
            raise LedgerError(f"the anchor of {self.client_id} has no valid signature") from error

    def require_in(self, rows: Sequence[Row]) -> None:
        """Raise LedgerError, naming the row, unless the rows of this anchor's chain contain what was signed."""
        if rows and (self.client_id, self.dataset_id) != (rows[0].client_id, rows[0].dataset_id):
            raise LedgerError(f"the anchor belongs to {self.client_id!r}, {self.dataset_id!r}")
        if len(rows) < self.rows:
            raise LedgerError(f"is missing: the anchor has {self.rows} rows; restore it", row=len(rows))
        if self.rows < 1 or rows[self.rows - 1].digest != self.head:
            raise LedgerError("differs from what the anchor signed; restore the ledger", row=self.rows - 1)

    def to_json(self) -> dict[str, Any]:
        """The anchor as a JSON object."""
        return asdict(self)

    def to_bytes(self) -> bytes:
        """The anchor as canonical JSON, short enough (under 1 KiB) to ride on a protocol message."""
        return canonical.dumps(self.to_json()).encode()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Anchor:
        """The anchor that a JSON object states, unverified. Raises LedgerError if it is malformed."""
        if not isinstance(value, Mapping) or set(value) != {field.name for field in fields(cls)}:
            raise LedgerError(f"an anchor has exactly the fields {[field.name for field in fields(cls)]}")
        texts = {name: text for name, text in value.items() if name != "rows"}
        if type(value["rows"]) is not int or not all(isinstance(text, str) for text in texts.values()):
            raise LedgerError("an anchor's rows must be a whole number and its other fields strings")
        return cls(**value)

    @classmethod
    def from_bytes(cls, data: bytes) -> Anchor:
        """The anchor that `to_bytes` wrote, unverified. Raises LedgerError if it is malformed."""
        try:
            return cls.from_json(canonical.loads(data.decode("ascii")))
        except ValueError as error:
            raise LedgerError(f"an anchor cannot be read: {error}") from error

    def _payload(self) -> bytes:
        """What is signed."""
        return _payload(self.client_id, self.dataset_id, self.head, self.rows)


def make_anchor(
    client_id: str, dataset_id: str, head: str, rows: int, *, sign: Sign, public_key: bytes
) -> Anchor:
    """A verified anchor over a chain's head and length. Raises LedgerError if `sign` and key do not match."""
    signature = sign(LABEL, _payload(client_id, dataset_id, head, rows))
    anchor = Anchor(client_id, dataset_id, head, rows, public_key.hex(), signature.hex())
    anchor.verify()
    return anchor


def signed_bytes(label: bytes, payload: bytes) -> bytes:
    """The bytes under an identity's signature: domain, label and payload kept apart from each other."""
    return _DOMAIN + len(label).to_bytes(4, "little") + label + payload


def ledger_head(anchors: Iterable[Anchor]) -> str:
    """One hash over the heads of all the chains of a federation, independent of their order, hex."""
    heads = sorted([anchor.client_id, anchor.dataset_id, anchor.head, anchor.rows] for anchor in anchors)
    return hashlib.sha256(b"fedlora-priv/ledger-heads/1\0" + canonical.dumps(heads).encode()).hexdigest()


def _payload(client_id: str, dataset_id: str, head: str, rows: int) -> bytes:
    """Canonical JSON of what an anchor states."""
    value = {"client_id": client_id, "dataset_id": dataset_id, "head": head, "rows": rows}
    return canonical.dumps(value).encode()
