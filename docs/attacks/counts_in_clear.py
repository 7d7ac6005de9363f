"""Weights and counts in the clear.

Attack: the server reads from the messages how many examples each client has. Flower's SecAgg+ (flwr 1.41) sends
        num_examples beside the masked vector.
Gain:   sizes of private data; with a count of one, the weighted mean is that client's update.
Source: measured on Flower.
Check:  no message of a client has a field for it (`messages`); a weight is one more entry under the masks.
"""

import dataclasses

import numpy as np
from stage import VICTIM, Stage, in_vain

from protocols.packing import unpack
from protocols.secagg import keys, messages
from protocols.secagg.codec import decode
from protocols.secagg.mask import Mask, add_masks

INDICES = {"sender", "recipient", "owner"}


def numbers(kind: type) -> set[str]:
    """The integer fields of a message, those of its parts included."""
    found = set()
    for field in dataclasses.fields(kind):
        found |= {field.name} if "Index" in str(field.type) or "Count" in str(field.type) else set()
        for part in (messages.Parcel, messages.RevealedShare):
            found |= numbers(part) if part.__name__ in str(field.type) and kind is not part else set()
    return found


sent = (
    messages.Advertisement,
    messages.SharesOut,
    messages.MaskedVector,
    messages.Confirmation,
    messages.Reveal,
)
in_vain(
    "look for a number in a client's messages",
    not set().union(*(numbers(kind) for kind in sent)) <= INDICES,
    f"the only ones are roster indices: {sorted(INDICES)}",
)

counts = {"client-1": 1, "client-2": 40, "client-3": 7, "client-4": 100, "client-5": 12}
stage = Stage(modulus_bits=32, bound=10_000)
means = {name: np.arange(7) + index for index, name in enumerate(stage.names)}
for name, count in counts.items():
    stage.vectors[name] = np.append(count * means[name], count).astype(np.uint32)
inbox = stage.until("mask")
seed = stage.clients[VICTIM]._state.seed  # what the server will learn of a survivor
transcript = stage.clients[VICTIM].transcript or b""
for phase in ("mask", "confirm", "reveal"):
    for name, request in inbox.items():
        answer = stage.answer(name, phase, request)
        if (name, phase) == (VICTIM, "mask"):
            masked = unpack(decode(messages.MaskedVector, answer, name).packed, 32, 8)
        stage.server.receive(name, answer)
    inbox = stage.server.advance()
add_masks(masked, [Mask(keys.self_mask_key(seed, transcript, VICTIM), subtract=True)], 32)
in_vain("read the victim's count with its self-mask off", int(masked[-1]) == 1, f"it reads {int(masked[-1])}")
*weighted, total = stage.server.result().sum.tolist()
expected = sum(count * means[name] for name, count in counts.items())
in_vain(
    "spoil the weighted mean by hiding the counts",
    total != sum(counts.values()) or weighted != expected.tolist(),
    f"it is exact: the sum of the counts, {total}, is the only number that came out",
)
