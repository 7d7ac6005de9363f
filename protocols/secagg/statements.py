"""What a client's signature says in each phase: the phase, the transcript so far, who, and a digest."""

from __future__ import annotations

from protocols.secagg.codec import encode
from protocols.secagg.messages import (
    SIGNATURE_BYTES,
    Advertisement,
    Proposal,
    Reveal,
    SharesOut,
)
from protocols.secagg.session import SessionParameters
from protocols.secagg.transcript import digest, statement

Statement = tuple[bytes, bytes]
"""A label and a payload: ``identity.sign(*s)``, ``roster.verify(client_id, *s, signature)``."""

UNSIGNED = bytes(SIGNATURE_BYTES)
"""Stands in a message's signature field until it is signed."""


def parameters_digest(parameters: SessionParameters) -> bytes:
    """Return T0."""
    return digest(b"T0", encode(Proposal(parameters)))


def vector_digest(packed: bytes) -> bytes:
    """Return H(y) of a packed masked vector."""
    return digest(b"masked-vector", packed)


def attachment_digest(attachment: bytes) -> bytes:
    """Return the digest of what the application attached to a confirmation."""
    return digest(b"attachment", attachment)


def share_digest(salt: bytes, share: bytes) -> bytes:
    """Return the digest by which a dealer commits to one share; the salt keeps it hidden until revealed."""
    return digest(b"share", salt, share)


def advertise(t0: bytes, client_id: str, message: Advertisement) -> Statement:
    """Return what an advertisement signs."""
    return b"advertise", statement(t0, client_id.encode(), _body_digest(message))


def share(t1: bytes, client_id: str, message: SharesOut) -> Statement:
    """Return what a message with shares signs."""
    return b"share", statement(t1, client_id.encode(), _body_digest(message))


def mask(t1: bytes, u2_digest: bytes, client_id: str, masked_digest: bytes) -> Statement:
    """Return what a masked vector signs."""
    return b"mask", statement(t1, u2_digest, client_id.encode(), masked_digest)


def confirm(t1: bytes, u2_digest: bytes, u3_digest: bytes, client_id: str, attached: bytes) -> Statement:
    """Return what a confirmation signs; `attached` is the digest of its attachment."""
    return b"confirm", statement(t1, u2_digest, u3_digest, client_id.encode(), attached)


def reveal(t1: bytes, client_id: str, message: Reveal) -> Statement:
    """Return what a reveal signs."""
    return b"reveal", statement(t1, client_id.encode(), _body_digest(message))


def _body_digest(message: Advertisement | SharesOut | Reveal) -> bytes:
    """Return the digest of a message without its signature, which is its last field."""
    return digest(b"body", encode(message)[:-SIGNATURE_BYTES])
