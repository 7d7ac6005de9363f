"""Tampered boxes and parcels.

Attack: the server swaps a parcel's half of the mask key, its digests, its box, or delivers it to somebody else.
Gain:   shares that it can read, a pair mask that it knows, or an honest holder who is blamed for what it reveals.
Source: Bonawitz et al. 2017 authenticate the box; here it vouches for the rest of its parcel as well.
Check:  `dealing.open_parcels` (associated data: T1, sender, recipient, phase, mask key half, digests).
"""

from dataclasses import replace

from stage import Stage, edited, in_vain, refused

from protocols.secagg import keys
from protocols.secagg.codec import decode
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.messages import SharesIn

HOLDER = "client-2"
stage = Stage()
inbox = stage.until("mask")
request = inbox[HOLDER]
first, *rest = decode(SharesIn, request, "attacker").parcels
of_another = decode(SharesIn, inbox["client-3"], "attacker").parcels[0]
snapshot = stage.clients[HOLDER].snapshot()


def owners_held(parcel: object) -> list[int]:
    """Whose shares the holder has after it was given that parcel of client-1's."""
    client = stage.client(HOLDER, snapshot, guard=MemoryGuard())
    client.mask(edited(request, SharesIn, parcels=(parcel, *rest)), stage.vectors[HOLDER])
    return [held.owner for held in client._state.held]


own_key = keys.KeyPair.from_secret(bytes(96))
_, known = keys.encapsulate(own_key.public_bytes, "attacker")
for attempt, swapped in (
    ("another half of the mask key", {"mask_encapsulation": known}),
    ("another digest of the seed share", {"seed_digest": bytes(32)}),
    ("another digest of the master share", {"master_digest": bytes(32)}),
    ("another encapsulation for the box", {"box_encapsulation": known}),
    ("the box that client-1 sent to client-3", {"box": of_another.box}),
):
    in_vain(
        f"give client-2 a parcel with {attempt}",
        0 in owners_held(replace(first, **swapped)),
        "the box does not open: client-2 holds no share of client-1, and will reveal none",
    )
misdelivered = edited(request, SharesIn, parcels=(of_another, *rest))
refused(
    "deliver client-3's parcel to client-2",
    lambda: stage.client(HOLDER, snapshot).mask(misdelivered, stage.vectors[HOLDER]),
    "a parcel is for somebody else",
)
