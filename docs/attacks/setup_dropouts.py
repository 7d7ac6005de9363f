"""One client drops while keys are set up.

Attack: a client (or the network) is silent in the first or the second phase.
Gain:   with Flower's SecAgg+ (flwr 1.41) the whole round fails when one client drops in setup or in share_keys, so
        one phone can stop a federation.
Source: measured on Flower; Bonawitz et al. 2017 let clients drop in every round.
Check:  `SecAggServer.advance`: whoever is silent is lost, alone; counts below the quorum abort cleanly.
"""

from stage import Stage, in_vain, refused

for phase in ("advertise", "share", "mask", "confirm", "reveal"):
    stage = Stage()
    stage.until("done", lost=[("client-3", phase)])
    in_vain(
        f"client-3 is silent in phase {phase}",
        not stage.sum_is_right(),
        f"the sum over {len(stage.server.result().survivors)} clients is exact; lost: {dict(stage.server.lost)}",
    )
large = Stage(n=9)
large.until("done", lost=[("client-2", "advertise"), ("client-5", "share"), ("client-9", "mask")])
in_vain("one client each in three phases", not large.sum_is_right(), "the sum over six of nine is exact")
refused(
    "two of five in one phase, more than may be lost",
    lambda: Stage().until("done", lost=[("client-1", "share"), ("client-2", "share")]),
    "aborted in phase share: only 3 of at least 4 clients shared (lost so far: client-1, client-2)",
)
