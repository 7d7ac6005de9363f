"""The messages of a session in the order they travel: one frozen dataclass each, named as its phase.

The annotations are the wire format, see `codec`. ``S`` is the server, ``C`` a client::

    S -> C  Proposal          C -> S  Advertisement
    S -> C  Advertisements    C -> S  SharesOut
    S -> C  SharesIn          C -> S  MaskedVector
    S -> C  Survivors         C -> S  Confirmation
    S -> C  Confirmations     C -> S  Reveal

A message of a client ends with its signature, over its phase's statement (`statements`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from protocols.secagg.codec import Fixed, UpTo
from protocols.secagg.keys import ENCAPSULATION_BYTES, PUBLIC_KEY_BYTES, SECRET_BYTES, TAG_BYTES
from protocols.secagg.session import MAX_CLIENTS, Digest, Index, SessionParameters
from protocols.secagg.shamir import share_size

SIGNATURE_BYTES = 64
SALT_BYTES = 16
MAX_ATTACHMENT_BYTES = 1024
SHARE_BYTES = share_size(SECRET_BYTES)
BOX_CONTENT_BYTES = 2 * (SHARE_BYTES + SALT_BYTES)

Signature = Annotated[bytes, Fixed(SIGNATURE_BYTES)]
PublicKey = Annotated[bytes, Fixed(PUBLIC_KEY_BYTES)]
Encapsulation = Annotated[bytes, Fixed(ENCAPSULATION_BYTES)]
Escrow = Annotated[bytes, UpTo(MAX_CLIENTS * SECRET_BYTES + TAG_BYTES)]
Bitmap = Annotated[bytes, UpTo((MAX_CLIENTS + 7) // 8)]


@dataclass(frozen=True)
class Proposal:
    """The server proposes a session."""

    KIND: ClassVar[int] = 1
    parameters: SessionParameters


@dataclass(frozen=True)
class Advertisement:
    """A client's fresh public keys."""

    KIND: ClassVar[int] = 2
    box_key: PublicKey = field(repr=False)
    mask_key: PublicKey = field(repr=False)
    signature: Signature = field(repr=False)


@dataclass(frozen=True)
class Leaf:
    """One client's advertisement and its path to T1."""

    index: Index
    advertisement: Advertisement
    path: tuple[Digest, ...] = field(repr=False)


@dataclass(frozen=True)
class Advertisements:
    """T1, and the advertisements of the recipient and its neighbours, by increasing index."""

    KIND: ClassVar[int] = 3
    t1: Digest
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True)
class Parcel:
    """What one client gives one neighbour: a box with two shares, their digests, and perhaps half a mask key.

    `mask_encapsulation` is there exactly when the sender has the lower roster index.
    """

    sender: Index
    recipient: Index
    mask_encapsulation: Annotated[bytes, UpTo(ENCAPSULATION_BYTES)] = field(repr=False)
    seed_digest: Digest = field(repr=False)
    master_digest: Digest = field(repr=False)
    box_encapsulation: Encapsulation = field(repr=False)
    box: Annotated[bytes, Fixed(BOX_CONTENT_BYTES + TAG_BYTES)] = field(repr=False)


@dataclass(frozen=True)
class SharesOut:
    """A client's parcels by increasing recipient, and what lets the server check and use recovered secrets.

    `seed_digest` and `master_digest` are those of the shares that the client keeps for itself.
    """

    KIND: ClassVar[int] = 4
    seed_commitment: Digest = field(repr=False)
    master_commitment: Digest = field(repr=False)
    seed_digest: Digest = field(repr=False)
    master_digest: Digest = field(repr=False)
    escrow: Escrow = field(repr=False)
    parcels: tuple[Parcel, ...]
    signature: Signature = field(repr=False)


@dataclass(frozen=True)
class SharesIn:
    """U2 as a bitmap, and the parcels for the recipient by increasing sender."""

    KIND: ClassVar[int] = 5
    u2: Bitmap
    parcels: tuple[Parcel, ...]


@dataclass(frozen=True)
class MaskedVector:
    """A client's masked vector, packed."""

    KIND: ClassVar[int] = 6
    packed: Annotated[bytes, UpTo(2**32 - 1)] = field(repr=False)
    signature: Signature = field(repr=False)


@dataclass(frozen=True)
class MaskStatement:
    """That a client sent a masked vector with this digest for the U2 it signed."""

    index: Index
    digest: Digest = field(repr=False)
    signature: Signature = field(repr=False)


@dataclass(frozen=True)
class Survivors:
    """U3 as a bitmap, and the mask statements of the recipient's neighbours in it by increasing index."""

    KIND: ClassVar[int] = 7
    u3: Bitmap
    statements: tuple[MaskStatement, ...]


@dataclass(frozen=True)
class Confirmation:
    """That a client agrees to T1, U2 and U3; with bytes that belong to the application."""

    KIND: ClassVar[int] = 8
    attachment: Annotated[bytes, UpTo(MAX_ATTACHMENT_BYTES)]
    signature: Signature = field(repr=False)


@dataclass(frozen=True)
class ConfirmStatement:
    """A client's confirmation without its attachment."""

    index: Index
    attachment_digest: Digest = field(repr=False)
    signature: Signature = field(repr=False)


@dataclass(frozen=True)
class Confirmations:
    """The confirmations by increasing index."""

    KIND: ClassVar[int] = 9
    statements: tuple[ConfirmStatement, ...]


@dataclass(frozen=True)
class RevealedShare:
    """One share: of the owner's seed if the owner is in U3, else of its master."""

    owner: Index
    share: Annotated[bytes, Fixed(SHARE_BYTES)] = field(repr=False)
    salt: Annotated[bytes, Fixed(SALT_BYTES)] = field(repr=False)


@dataclass(frozen=True)
class Reveal:
    """The shares a client holds, by increasing owner."""

    KIND: ClassVar[int] = 10
    shares: tuple[RevealedShare, ...]
    signature: Signature = field(repr=False)
