"""Which client is at which node: a node says so, signed with the identity that everybody's roster pins.

Flower's node ids are the SuperLink's own numbers. A node that claimed another client's name would get that client's
messages: nothing secret, but the client would be lost to the federation. The signature is over the run and the node,
so nobody can repeat it elsewhere.
"""

from __future__ import annotations

import hashlib

from protocols.secagg.identity import Identity, Roster, verify

_LABEL = b"flower node"


def sign(identity: Identity, client_id: str, run: bytes, flower_run: int, node: int) -> bytes:
    """Return the signature with which the client says that it is at this node of this Flower run."""
    return identity.sign(_LABEL, _statement(client_id, run, flower_run, node))


def check(roster: Roster, client_id: str, run: bytes, flower_run: int, node: int, signature: bytes) -> None:
    """Return if the client on the roster has signed that it is at this node.

    Raises:
        ProtocolError, KeyError: it has not, or nobody on the roster has that name.
    """
    verify(roster[client_id], _LABEL, _statement(client_id, run, flower_run, node), signature)


def _statement(client_id: str, run: bytes, flower_run: int, node: int) -> bytes:
    """Return what is signed: 32 bytes over all of it."""
    parts = (client_id.encode(), run, flower_run.to_bytes(8, "big"), node.to_bytes(8, "big"))
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
