"""A split U2.

Attack: the server tells the victim that client-5 did not share, and the others that it did.
Gain:   the victim leaves out its mask with client-5, who keeps it: the server knows which masks do not cancel, and
        can later call either of them lost.
Source: Bonawitz et al. 2017 check the consistency of U3 only.
Check:  every masked vector is signed over H(U2); `check_survivors` verifies each neighbour's statement for its own.
"""

from stage import VICTIM, Stage, edited, refused

from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import MaskedVector, MaskStatement, SharesIn, Survivors
from protocols.secagg.statements import vector_digest

stage = Stage()
inbox = stage.until("mask")
parcels = tuple(p for p in decode(SharesIn, inbox[VICTIM], "attacker").parcels if p.sender != 4)
inbox[VICTIM] = edited(inbox[VICTIM], SharesIn, u2=stage.bitmap(0, 1, 2, 3), parcels=parcels)
said = []
for index, name in enumerate(stage.names):
    message = decode(MaskedVector, stage.answer(name, "mask", inbox[name]), name)
    said.append(MaskStatement(index, vector_digest(message.packed), message.signature))

for index, name in enumerate(stage.names[1:], 1):
    statements = tuple(statement for statement in said if statement.index != index)
    request = encode(Survivors(stage.bitmap(0, 1, 2, 3, 4), statements))
    refused(
        f"tell {name} that all five are in the sum",
        lambda name=name, data=request: stage.answer(name, "confirm", data),
        "client-1: the signature for 'mask' does not verify",
    )
request = encode(Survivors(stage.bitmap(0, 1, 2, 3), tuple(said[1:4])))
refused(
    "tell the victim that the first four are",
    lambda: stage.answer(VICTIM, "confirm", request),
    "client-2: the signature for 'mask' does not verify",
)
