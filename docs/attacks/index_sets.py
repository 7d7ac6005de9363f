"""Sparse supports.

Attack: clients send only some coordinates. The server wants to know which ones each client would choose, or gives
        the victim a support of its own.
Gain:   where a gradient is large tells what is in the data; and coordinates that only the victim sends are its own.
Source: sparse updates as usually sent: each client its own largest coordinates, with their indices.
Check:  the support is in the context (`check_proposal`), and a coordinate has contributors by `CoordinateGroup` only;
        no message of a client has room for an index set.
"""

import hashlib

import numpy as np
from stage import VICTIM, Stage, in_vain, refused

from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import MaskedVector, Proposal
from protocols.sparsify import seeded_random_k

DIMENSION, K = 1000, 8


def context(seed: bytes) -> bytes:
    """What a client computes of the support that it loaded (and, in earnest, of the model and the rest)."""
    return hashlib.sha256(seeded_random_k(DIMENSION, K, seed).digest()).digest()


everybodys, victims = context(b"round 1"), context(b"only for client-1")
stage = Stage(context=everybodys)
proposal = encode(Proposal(stage.parameters))
refused(
    "have the victim send other coordinates than the others",
    lambda: stage.client(VICTIM, context=victims).advertise(proposal),
    "another model, experiment, quantiser or support",
)

sizes = set()
for seed in (b"dense here", b"dense there"):
    stage = Stage(vector_length=K)
    gradient = np.zeros(DIMENSION, dtype=np.uint32)
    gradient[seeded_random_k(DIMENSION, K, seed).indices] = 1000  # large in other places each time
    stage.vectors[VICTIM] = seeded_random_k(DIMENSION, K, b"round 1").take(gradient)
    request = stage.until("mask")[VICTIM]
    answer = stage.answer(VICTIM, "mask", request)
    sizes.add((len(answer), len(decode(MaskedVector, answer, VICTIM).packed)))
in_vain(
    "tell from the size of the upload where the victim's gradient is large",
    len(sizes) != 1,
    f"it is {min(sizes)[0]} bytes whatever the gradient is: K values of the common support, and a signature",
)
