"""What a server verifies before it takes an answer: one function for each phase, and every one raises.

Whatever is wrong here is the sender's fault, and costs nobody else anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.packing import unpack
from protocols.secagg import keys, statements
from protocols.secagg.identity import Roster
from protocols.secagg.messages import Advertisement, Confirmation, MaskedVector, Reveal, SharesOut
from protocols.secagg.session import SessionParameters


def check_advertisement(message: Advertisement, t0: bytes, client_id: str, roster: Roster) -> None:
    """Return if a client signed these keys for this session, and they can be used.

    Raises:
        RemoteProtocolError: names the client and says what is wrong, here as in every function below.
    """
    roster.verify(client_id, *statements.advertise(t0, client_id, message), message.signature)
    keys.check_public_key(message.box_key, client_id)
    keys.check_public_key(message.mask_key, client_id)


def check_dealing(
    message: SharesOut, index: int, expected: Sequence[int], t1: bytes, client_id: str, roster: Roster
) -> None:
    """Return if a client dealt to exactly those it was `expected` to, with its halves of the mask keys."""
    roster.verify(client_id, *statements.share(t1, client_id, message), message.signature)
    _require(client_id, [p.recipient for p in message.parcels] == list(expected), "it dealt to others")
    _require(
        client_id,
        all(
            p.sender == index
            and len(p.mask_encapsulation) == (keys.ENCAPSULATION_BYTES if p.recipient > index else 0)
            for p in message.parcels
        ),
        "a parcel has another sender or another half of the mask key",
    )
    encapsulated = sum(other > index for other in expected)
    escrow_bytes = encapsulated * keys.SECRET_BYTES + keys.TAG_BYTES
    _require(client_id, len(message.escrow) == escrow_bytes, "its escrow has another length")


def check_masked_vector(
    message: MaskedVector, masked_digest: bytes, t1: bytes, u2_digest: bytes, client_id: str, roster: Roster
) -> None:
    """Return if a client masked for this U2; `masked_digest` is that of the vector in the message."""
    statement = statements.mask(t1, u2_digest, client_id, masked_digest)
    roster.verify(client_id, *statement, message.signature)


def unpack_vector(message: MaskedVector, parameters: SessionParameters, client_id: str) -> NDArray[np.uint32]:
    """Return a masked vector, uint32 of shape (vector_length,), if it has exactly the session's form."""
    try:
        return unpack(message.packed, parameters.modulus_bits, parameters.vector_length)
    except LocalProtocolError as error:
        raise RemoteProtocolError(client_id, str(error)) from None


def check_confirmation(
    message: Confirmation, t1: bytes, u2_digest: bytes, u3_digest: bytes, client_id: str, roster: Roster
) -> None:
    """Return if a client confirms this U2 and U3."""
    attached = statements.attachment_digest(message.attachment)
    statement = statements.confirm(t1, u2_digest, u3_digest, client_id, attached)
    roster.verify(client_id, *statement, message.signature)


def check_reveal(
    message: Reveal,
    index: int,
    digests_of: Callable[[int], Mapping[int, bytes]],
    t1: bytes,
    client_id: str,
    roster: Roster,
) -> None:
    """Return if every share is what its dealer signed.

    Args:
        digests_of: gives, for an owner, the digests by holder of the shares that may be revealed of it.
    """
    roster.verify(client_id, *statements.reveal(t1, client_id, message), message.signature)
    owners = [revealed.owner for revealed in message.shares]
    _require(client_id, owners == sorted(set(owners)), "it reveals shares out of order")
    for revealed in message.shares:
        expected = digests_of(revealed.owner).get(index)
        matches = statements.share_digest(revealed.salt, revealed.share) == expected
        _require(client_id, matches, "it reveals a share that is not the one dealt to it")


def _require(client_id: str, holds: bool, otherwise: str) -> None:
    """Blame a client unless the condition holds."""
    if not holds:
        raise RemoteProtocolError(client_id, otherwise)
