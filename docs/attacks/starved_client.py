"""A starved client.

Attack: the server gives the victim boxes that do not open, or none, and everybody else a normal session.
Gain:   a client that leaves out the neighbours whose boxes failed sends x + PRG(self). The others, who see it among
        the survivors, give the shares of its self-seed away, and x with them.
Source: a client of Bonawitz et al. 2017 masks with whom it has shares of.
Check:  `SecAggClient.mask` masks with every neighbour in U2 whatever its box holds; `check_shares` refuses when a
        parcel is missing, since half of the pair's key may be in it.
"""

from dataclasses import replace

import numpy as np
from stage import VICTIM, Stage, edited, in_vain, refused

from protocols.packing import unpack
from protocols.secagg import keys, shamir
from protocols.secagg.codec import decode
from protocols.secagg.mask import Mask, add_masks
from protocols.secagg.messages import MaskedVector, Reveal, SharesIn

stage = Stage()
inbox = stage.until("mask")
snapshot = stage.clients[VICTIM].snapshot()
parcels = decode(SharesIn, inbox[VICTIM], "attacker").parcels
for attempt, fewer in (("no boxes at all", ()), ("one box less", parcels[1:])):
    starved = edited(inbox[VICTIM], SharesIn, parcels=fewer)
    refused(
        f"give the victim {attempt}",
        lambda data=starved: stage.client(VICTIM, snapshot).mask(data, stage.vectors[VICTIM]),
        "the parcels are not those of this client's neighbours in U2",
    )

broken = tuple(replace(parcel, box=bytes(len(parcel.box))) for parcel in parcels)
inbox[VICTIM] = edited(inbox[VICTIM], SharesIn, parcels=broken)
seed_shares: dict[int, bytes] = {}
for phase in ("mask", "confirm", "reveal"):
    for name, request in inbox.items():
        answer = stage.answer(name, phase, request)
        stage.server.receive(name, answer)
        if (name, phase) == (VICTIM, "mask"):
            masked = unpack(decode(MaskedVector, answer, name).packed, 16, 8)
        if phase == "reveal":
            holder = stage.names.index(name)
            seed_shares[holder + 1] = next(
                s.share for s in decode(Reveal, answer, name).shares if s.owner == 0
            )
    inbox = stage.server.advance()
seed = shamir.combine({holder: seed_shares[holder] for holder in sorted(seed_shares)[:4]}, 4, 32)
own_mask = Mask(keys.self_mask_key(seed, stage.server.result().transcript, VICTIM))
add_masks(masked, [own_mask.inverse], 16)
in_vain(
    "break all of the victim's boxes, run a normal session, take its self-mask off",
    np.array_equal(masked, stage.vectors[VICTIM]) or not stage.sum_is_right(),
    "what is left is still under four pair masks; only the sum of all five came out",
)
