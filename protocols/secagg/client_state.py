"""What a client remembers between phases: one frozen dataclass for each phase, which is also its snapshot.

A state is named after what the client has done; its `PHASE` is what it does next. It keeps what later phases
need and no more: the secrets behind the masks, for instance, are gone once the vector is masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from protocols.redaction import Redacted
from protocols.secagg.codec import Fixed, UpTo
from protocols.secagg.identity import MAX_ID_BYTES
from protocols.secagg.keys import ENCAPSULATION_BYTES, KEY_PAIR_SECRET_BYTES, SECRET_BYTES
from protocols.secagg.messages import SALT_BYTES, SHARE_BYTES, Advertisement, Bitmap, PublicKey
from protocols.secagg.session import Digest, Index, SessionParameters

Secret = Annotated[bytes, Fixed(SECRET_BYTES)]
Share = Annotated[bytes, Fixed(SHARE_BYTES)]
ClientId = Annotated[str, UpTo(MAX_ID_BYTES)]
Salt = Annotated[bytes, Fixed(SALT_BYTES)]


@dataclass(frozen=True, repr=False)
class HeldShares(Redacted):
    """The shares that a client holds of one owner's two secrets."""

    owner: Index
    seed_share: Share
    seed_salt: Salt
    master_share: Share
    master_salt: Salt


@dataclass(frozen=True, repr=False)
class Edge(Redacted):
    """What a client knows of one neighbour after sharing.

    `shared_secret` and `ciphertext` are this client's encapsulation, and empty if the neighbour made it.
    """

    peer: Index
    box_key: PublicKey
    mask_key: PublicKey
    shared_secret: Annotated[bytes, UpTo(SECRET_BYTES)]
    ciphertext: Annotated[bytes, UpTo(ENCAPSULATION_BYTES)]


@dataclass(frozen=True, repr=False)
class Fresh(Redacted):
    """Nothing happened yet."""

    KIND: ClassVar[int] = 128
    PHASE: ClassVar[str] = "advertise"


@dataclass(frozen=True, repr=False)
class Advertised(Redacted):
    """The session was accepted and keys were advertised."""

    KIND: ClassVar[int] = 129
    PHASE: ClassVar[str] = "share"
    parameters: SessionParameters
    seed: Secret
    master: Secret
    box_secret: Annotated[bytes, Fixed(KEY_PAIR_SECRET_BYTES)]
    advertisement: Advertisement


@dataclass(frozen=True, repr=False)
class Shared(Redacted):
    """The secrets were shared with the neighbours."""

    KIND: ClassVar[int] = 130
    PHASE: ClassVar[str] = "mask"
    parameters: SessionParameters
    t1: Digest
    seed: Secret
    master: Secret
    box_secret: Annotated[bytes, Fixed(KEY_PAIR_SECRET_BYTES)]
    edges: tuple[Edge, ...]
    own: HeldShares


@dataclass(frozen=True, repr=False)
class Masked(Redacted):
    """The masked vector was sent; `held` are the shares this client could open, and its own."""

    KIND: ClassVar[int] = 131
    PHASE: ClassVar[str] = "confirm"
    parameters: SessionParameters
    t1: Digest
    u2: Bitmap
    held: tuple[HeldShares, ...]


@dataclass(frozen=True, repr=False)
class Confirmed(Redacted):
    """U2 and U3 were confirmed."""

    KIND: ClassVar[int] = 132
    PHASE: ClassVar[str] = "reveal"
    parameters: SessionParameters
    t1: Digest
    u2: Bitmap
    survivors: tuple[ClientId, ...]
    held: tuple[HeldShares, ...]


@dataclass(frozen=True, repr=False)
class Done(Redacted):
    """The shares were revealed; nothing is left to do."""

    KIND: ClassVar[int] = 133
    PHASE: ClassVar[str] = "done"
    survivors: tuple[ClientId, ...]


@dataclass(frozen=True, repr=False)
class Refused(Redacted):
    """The client refused something, and is out of this session."""

    KIND: ClassVar[int] = 134
    PHASE: ClassVar[str] = "refused"


State = Fresh | Advertised | Shared | Masked | Confirmed | Done | Refused
KINDS: tuple[type[State], ...] = (Fresh, Advertised, Shared, Masked, Confirmed, Done, Refused)
