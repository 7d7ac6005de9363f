"""A state machine's state as bytes: what it belongs to, the state, and a digest that finds damage.

The digest finds a torn write or a flipped bit, no forgery: whoever can write snapshots can make a machine do
anything, as if he could write its memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.redaction import Redacted
from protocols.secagg.codec import AnyMessage, Message, UpTo, decode, encode
from protocols.secagg.session import Digest
from protocols.secagg.transcript import digest


@dataclass(frozen=True, repr=False)
class _Snapshot(Redacted):
    """An encoded state with the digest of what it belongs to."""

    KIND: ClassVar[int] = 192
    belongs_to: Digest
    state: Annotated[bytes, UpTo(2**32 - 1)]
    digest: Digest


def to_snapshot(state: Message, belongs_to: bytes) -> bytes:
    """Return the bytes from which `from_snapshot` restores `state`; `belongs_to` is 32 bytes."""
    encoded = encode(state)
    return encode(_Snapshot(belongs_to, encoded, digest(b"snapshot", belongs_to, encoded)))


def from_snapshot(
    kinds: tuple[type[AnyMessage], ...], snapshot: bytes, belongs_to: bytes, of: str
) -> AnyMessage:
    """Return the state, of one of `kinds`, that `to_snapshot` was given.

    Raises:
        LocalProtocolError: the snapshot is damaged, holds no such state, or belongs to something else than
            `of` describes.
    """
    try:
        outer = decode(_Snapshot, snapshot, "snapshot")
        if outer.digest != digest(b"snapshot", outer.belongs_to, outer.state):
            raise LocalProtocolError("the snapshot is damaged: its digest does not match")
        if outer.belongs_to != belongs_to:
            raise LocalProtocolError(f"the snapshot belongs to another {of}")
        for kind in kinds:
            if outer.state[1:2] == bytes((kind.KIND,)):
                return decode(kind, outer.state, "snapshot")
        raise LocalProtocolError("the snapshot holds no state that is known here")
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"the snapshot is damaged: {error.reason}") from None
