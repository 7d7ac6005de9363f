"""Overflow.

Attack: the server admits more clients than the modulus was made for; or a client sends more than its bound.
Gain:   the sum wraps around and is wrong without a word. Flower's SecAgg+ (flwr 1.41) quantises to 22 bits modulo
        2^32 by default, and overflows silently at 1100 clients.
Source: measured on Flower. Here n·bound < 2^(b-1) is proved at the proposal.
Check:  `SessionParameters._rules` at the client and the server, `check_vector`, `Quantiser`.
"""

from dataclasses import replace

import numpy as np
from stage import VICTIM, Stage, refused

from protocols.quantise import Quantiser
from protocols.secagg.codec import encode
from protocols.secagg.messages import Proposal
from protocols.secagg.server import SecAggServer

stage = Stage()
crowd = tuple(f"client-{i + 1}" for i in range(1100))
flowers = replace(
    stage.parameters,
    roster=crowd,
    degree=1099,
    quorum=600,
    threshold=600,
    min_survivors=600,
    modulus_bits=32,
    bound=2**22,
    groups=(),
    min_contributors=600,
)
policy = replace(stage.policy, max_clients=2000)
rule = "n*bound < 2^(modulus_bits-1), or sums overflow"
refused(
    "propose 1100 clients with 22-bit values modulo 2^32",
    lambda: stage.client(VICTIM, policy=policy).advertise(encode(Proposal(flowers))),
    rule,
)
refused("start such a server", lambda: SecAggServer(parameters=flowers, roster=stage.roster), rule)
refused(
    "make a quantiser for it",
    lambda: Quantiser(bounds=8.0, value_bits=23, max_clients=1100),
    "the modulus has at most 32: lower value_bits",
)
request = stage.until("mask")[VICTIM]
bound, modulus = stage.parameters.bound, 2**stage.parameters.modulus_bits
for value in (bound + 1, modulus - bound - 1, modulus // 2, modulus, 2**32 - 1):
    refused(
        f"have a client sum {value} where the bound is {bound}",
        lambda value=value: stage.clients[VICTIM].mask(request, np.full(8, value, dtype=np.uint32)),
        "beyond the session's bound",
    )
