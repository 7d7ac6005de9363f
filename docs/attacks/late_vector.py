"""A vector that comes late.

Attack: the server reports client-5 as lost although it holds its masked vector, or the vector arrives after the
        phase was closed. The others then give client-5's mask keys away.
Gain:   with the pair masks off, a single mask of plain SecAgg's first draft would leave the vector bare.
Source: Bonawitz et al. 2017, why masking is double.
Check:  the self-mask: no share of its seed leaves a holder who confirmed U3 without client-5
        (`SecAggClient.reveal`); and the server takes nothing late (`SecAggServer.receive`).
"""

import numpy as np
from stage import Stage, in_vain, refused

from protocols.packing import unpack
from protocols.secagg.codec import decode
from protocols.secagg.dealing import pair_masks
from protocols.secagg.mask import add_masks
from protocols.secagg.messages import MaskedVector, Reveal, SharesIn

LATE = "client-5"
stage = Stage()
inbox = stage.until("mask")
state = stage.clients[LATE]._state  # holds what the others will give away: the master behind its mask keys
parcels = decode(SharesIn, inbox[LATE], "attacker").parcels
late = stage.answer(LATE, "mask", inbox.pop(LATE))
revealed = b""
for phase in ("mask", "confirm", "reveal"):
    for name, request in inbox.items():
        answer = stage.answer(name, phase, request)
        stage.server.receive(name, answer)
        if phase == "reveal":
            own = [share.share for share in decode(Reveal, answer, name).shares if share.owner == 4]
            revealed += own[0]
    inbox = stage.server.advance()
    if phase == "mask":
        refused(
            "deliver the vector late",
            lambda: stage.server.receive(LATE, late),
            "lost in phase mask, for good",
        )

masked = unpack(decode(MaskedVector, late, LATE).packed, 16, 8)
add_masks(masked, [mask.inverse for mask in pair_masks(parcels, state, LATE)], 16)
in_vain(
    "take all four pair masks off the late vector",
    np.array_equal(masked, stage.vectors[LATE]) or not stage.sum_is_right(),
    "its self-mask is still on, and the holders revealed its master only",
)
in_vain(
    "look for shares of its seed in what they revealed",
    state.own.seed_share in revealed or len(revealed) != 4 * 64,
    "each of the four revealed one share of it, and of the master",
)
