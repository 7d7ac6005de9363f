"""How long the messages of a session can be: one that is twice as long is refused unread.

Both machines ask here before they decode, so that what a message costs is bounded by the session's parameters
and not by its sender. A transport can ask too, and read no further. What is only a little too long is read, and
refused for what is wrong with it.
"""

from __future__ import annotations

from protocols.packing import packed_size
from protocols.secagg.codec import Message, least_size
from protocols.secagg.keys import ENCAPSULATION_BYTES, SECRET_BYTES, TAG_BYTES
from protocols.secagg.messages import (
    MAX_ATTACHMENT_BYTES,
    Advertisement,
    Advertisements,
    Confirmation,
    Confirmations,
    ConfirmStatement,
    Leaf,
    MaskedVector,
    MaskStatement,
    Parcel,
    Reveal,
    RevealedShare,
    SharesIn,
    SharesOut,
    Survivors,
)
from protocols.secagg.session import SessionParameters


def most_bytes(kind: type[Message], parameters: SessionParameters) -> int:
    """Return the bytes beyond which a message of class `kind` is not read."""
    return 2 * longest(kind, parameters)


def longest(kind: type[Message], parameters: SessionParameters) -> int:
    """Return the bytes of the longest message of class `kind` in a session; a proposal's limit is a policy's.

    Example:
        >>> from protocols.secagg.session import SessionParameters
        >>> parameters = SessionParameters(
        ...     session_id=bytes(32), round=0, exchange=0, roster=("ada", "bob", "eve"), max_colluders=0,
        ...     quorum=2, threshold=2, min_survivors=2, degree=2, vector_length=1000, modulus_bits=8, bound=9,
        ...     context=bytes(32))
        >>> longest(MaskedVector, parameters)  # version and kind, length, 1000 bytes, signature
        1070
    """
    n, degree = parameters.n, parameters.degree
    bitmap = (n + 7) // 8
    leaf = least_size(Leaf) + 32 * (n - 1).bit_length()
    parcel = least_size(Parcel) + ENCAPSULATION_BYTES
    beyond_least = {
        Advertisement: 0,
        Advertisements: (degree + 1) * leaf,
        SharesOut: SECRET_BYTES * degree + TAG_BYTES + degree * parcel,
        SharesIn: bitmap + degree * parcel,
        MaskedVector: packed_size(parameters.vector_length, parameters.modulus_bits),
        Survivors: bitmap + degree * least_size(MaskStatement),
        Confirmation: MAX_ATTACHMENT_BYTES,
        Confirmations: n * least_size(ConfirmStatement),
        Reveal: (degree + 1) * least_size(RevealedShare),
    }
    return 2 + least_size(kind) + beyond_least[kind]
