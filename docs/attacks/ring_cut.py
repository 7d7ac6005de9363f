"""A graph cut in two windows.

Attack: on a sparse graph the server reports as lost whoever sits in two windows of k/2 places on the ring, or has
        its colluders sit there.
Gain:   no mask joins the two arcs between the windows any more: the server learns one sum for each arc, and an arc
        may be as short as one client.
Source: Bell et al. 2020 bound the chance of a disconnected graph; here it is checked for the U3 that is there.
Check:  `check_survivors` with `MaskGraph.weakest_cut`: any two disjoint windows hold more than c members of U3.
"""

from stage import VICTIM, Stage, refused

from protocols.secagg.codec import decode, encode
from protocols.secagg.graph import MaskGraph
from protocols.secagg.messages import Survivors
from protocols.secagg.transcript import to_bitmap


def cut(offsets: tuple[int, ...], what: str) -> None:
    """Leave out who sits at these places after the victim."""
    stage = Stage(n=15, max_colluders=1, degree=4)  # windows of two places
    request = stage.until("confirm")[VICTIM]
    transcript = stage.clients[VICTIM].transcript or b""
    order = MaskGraph(15, 4, transcript)._order
    start = order.index(0)
    lost = {order[(start + offset) % 15] for offset in offsets}
    kept = tuple(s for s in decode(Survivors, request, "attacker").statements if s.index not in lost)
    u3 = to_bitmap(set(range(15)) - lost, 15)
    refused(
        f"lose {what}",
        lambda: stage.answer(VICTIM, "confirm", encode(Survivors(u3, kept))),
        "U3 leaves two windows of the ring to colluders",
    )


cut((1, 2, 7, 8), "two whole windows: seven clients are cut off from four")
cut((1, 2, 7), "all of two windows but one client, who may be the colluder")
cut((-2, -1, 1, 2), "all of the victim's neighbours")
