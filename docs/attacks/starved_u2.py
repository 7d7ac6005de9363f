"""A U2 that leaves the victim alone.

Attack: the server reports that few, or none, of the victim's neighbours shared their secrets.
Gain:   each neighbour less is a mask less; and with fewer than `threshold` holders its own shares are useless.
Source: Bonawitz et al. 2017 let |U2| >= t pass, which on a sparse graph says nothing of N(i).
Check:  `check_shares`.
"""

from stage import VICTIM, Stage, refused

from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import SharesIn
from protocols.secagg.transcript import to_bitmap


def shown(stage: Stage, u2: set[int], lie: bytes = b"") -> None:
    """Show the victim that U2 with the fitting parcels."""
    request = stage.until("mask", lost=[("client-5", "advertise")] if lie else [])[VICTIM]
    parcels = decode(SharesIn, request, "attacker").parcels
    fitting = tuple(parcel for parcel in parcels if parcel.sender in u2)
    stage.answer(VICTIM, "mask", encode(SharesIn(lie or to_bitmap(u2, stage.parameters.n), fitting)))


few = "U2 is smaller than the quorum or than min_survivors"
refused("only the victim shared", lambda: shown(Stage(), {0}), few)
refused("three of five shared", lambda: shown(Stage(), {0, 1, 2}), few)
refused("everybody but the victim", lambda: shown(Stage(), {1, 2, 3, 4}), "U2 does not have this client")
refused(
    "client-5, who never advertised, shared as well",
    lambda: shown(Stage(), {0, 1, 2, 3}, lie=b"\x1f"),
    "U2 has a neighbour that never advertised",
)
refused("a sixth client of five", lambda: shown(Stage(), {0, 1, 2, 3, 4}, lie=b"\x2f"), "not a bitmap")

ring = Stage(n=15, degree=6)  # a quorum of 9; secrets have 7 holders, of whom 5 are needed
request = ring.until("mask")[VICTIM]
received = decode(SharesIn, request, "attacker")
three = {parcel.sender for parcel in received.parcels[:3]}
u2 = to_bitmap(set(range(15)) - three, 15)
refused(
    "on a ring, a large U2 without three of the victim's six neighbours",
    lambda: ring.answer(VICTIM, "mask", encode(SharesIn(u2, received.parcels[3:]))),
    "U2 has too few neighbours",
)
