"""Either end of a hybrid edge drops.

Attack: a client vanishes after sharing. On its edges to higher roster indices it made the ML-KEM encapsulation, and
        the library's encapsulation cannot be repeated from a secret; on the others its peer made it.
Gain:   a mask that nobody can remove: a client could spoil every round by vanishing at the right moment.
Source: follows from hybrid keys; Bonawitz et al. 2017 need one shared key only, which both ends can derive.
Check:  `recovery.Recovery.pair_masks`: the escrow gives the secrets it encapsulated, the master's key the others.
"""

from itertools import combinations

from stage import Stage, in_vain


def unmasked(lost: tuple[str, ...], phase: str, n: int) -> bool:
    """Whether the sum of the others comes out right."""
    stage = Stage(n=n)
    stage.until("done", lost=[(name, phase) for name in lost])
    expected = set(stage.names) - (set(lost) if phase == "mask" else set())
    return stage.sum_is_right() and set(stage.server.result().survivors) == expected


for phase in ("mask", "confirm", "reveal"):
    for index in range(5):
        in_vain(
            f"client-{index + 1}, who encapsulated on {4 - index} of its 4 edges, vanishes before it can {phase}",
            not unmasked((f"client-{index + 1}",), phase, 5),
            "the sum over the survivors is exact",
        )
for pair in combinations(("client-1", "client-4", "client-7"), 2):
    in_vain(
        f"both ends of the edge {' - '.join(pair)} vanish before they mask",
        not unmasked(pair, "mask", 7),
        "the sum over the other five is exact",
    )
