"""A group of coordinates with few contributors.

Attack: clients train different layers; the server reports as lost all but one of those who contribute to a layer.
Gain:   the sum over that layer's coordinates is that one's update, under a cohort that is large all the same.
Source: follows from heterogeneous allocations (rank or layer subsets per client).
Check:  `SessionParameters._validate_groups` at the proposal, `check_survivors` for the contributors in U3,
        `check_vector` for what a client may contribute.
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import Proposal, Survivors
from protocols.secagg.session import CoordinateGroup

ALL = (0, 1, 2, 3, 4)
stage = Stage()
thin = (CoordinateGroup(0, 4, ALL), CoordinateGroup(4, 8, (0, 1)))
refused(
    "propose a group of two of whom one may collude",
    lambda: stage.client(VICTIM).advertise(encode(Proposal(replace(stage.parameters, groups=thin)))),
    "a group has fewer contributors than 4",
)

groups = (CoordinateGroup(0, 4, ALL), CoordinateGroup(4, 8, (0, 1, 2)))
stage = Stage(groups=groups, min_contributors=3)
for name in ("client-4", "client-5"):
    stage.vectors[name][4:] = 0
request = stage.until("confirm")[VICTIM]
kept = tuple(s for s in decode(Survivors, request, "attacker").statements if s.index != 2)
refused(
    "lose client-3, one of three contributors to the second group",
    lambda: stage.answer(VICTIM, "confirm", encode(Survivors(stage.bitmap(0, 1, 3, 4), kept))),
    "a coordinate group has too few contributors in U3",
)
