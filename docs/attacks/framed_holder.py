"""A framed holder.

Attack: client-2 boxes one share for client-1 and signs the hash of another.
Gain:   client-1 reveals what it was given, which does not match: it is named as a liar and lost.
Source: follows from naming whoever reveals a share that does not match its hash (`lying_revealer`).
Check:  `dealing.open_parcels`: a holder compares what it unpacked with the hashes, and holds nothing if they differ.
"""

from stage import VICTIM, Stage, in_vain

from protocols.secagg import dealing

honest_parcel = dealing._parcel


def framing(edge: object, held: object, *rest: object) -> object:
    """Make client-1's parcel from client-2 with a wrong hash that the box vouches for."""
    if (rest[-1], edge.peer) != (1, 0):
        return honest_parcel(edge, held, *rest)
    honest_digests, dealing.share_digests = dealing.share_digests, lambda _: (bytes(32), bytes(32))
    try:
        return honest_parcel(edge, held, *rest)
    finally:
        dealing.share_digests = honest_digests


dealing._parcel = framing
stage = Stage()
inbox = stage.until("confirm")
dealing._parcel = honest_parcel
owners = [held.owner for held in stage.clients[VICTIM]._state.held]
in_vain(
    "deal client-1 a share that does not match its hash",
    1 in owners,
    f"client-1 holds shares of {owners} only",
)
for phase in ("confirm", "reveal"):
    for name, request in inbox.items():
        stage.server.receive(name, stage.answer(name, phase, request))
    inbox = stage.server.advance()
in_vain(
    "have client-1 blamed when it reveals",
    VICTIM in stage.server.lost or not stage.sum_is_right(),
    "it reveals nothing of client-2, the other four do: nobody is lost and the sum is exact",
)
