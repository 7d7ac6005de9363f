"""Different survivors for different clients.

Attack: the server tells the victim that client-5 dropped, and everybody else that it is in the sum.
Gain:   the victim reveals a share of client-5's master, the others shares of its seed. With a few such victims both
        secrets come out, and client-5's vector with them.
Source: Bonawitz et al. 2017, the consistency check against an active server.
Check:  `check_confirmations`: nothing is revealed before a quorum has signed the same (T1, U2, U3), and two quorums
        share an honest client.
"""

from stage import VICTIM, Stage, refused

from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import Confirmations, Survivors

stage = Stage()
inbox = stage.until("confirm")
kept = decode(Survivors, inbox[VICTIM], "attacker").statements[:3]
without = encode(Survivors(stage.bitmap(0, 1, 2, 3), kept))
mine = stage.confirmation(VICTIM, without)
theirs = [stage.confirmation(name, inbox[name]) for name in stage.names[1:]]

refused(
    "show the victim the others' confirmations as agreement with its own",
    lambda: stage.answer(VICTIM, "reveal", encode(Confirmations((mine, *theirs[:3])))),
    "client-2: the signature for 'confirm' does not verify",
)
refused(
    "show client-2 the victim's as agreement with its own",
    lambda: stage.answer("client-2", "reveal", encode(Confirmations((mine, *theirs)))),
    "client-1: the signature for 'confirm' does not verify",
)
alone = Stage()
request = alone.until("confirm")[VICTIM]
kept = decode(Survivors, request, "attacker").statements[:3]
mine = alone.confirmation(VICTIM, encode(Survivors(alone.bitmap(0, 1, 2, 3), kept)))
refused(
    "have the victim make do with its own",
    lambda: alone.answer(VICTIM, "reveal", encode(Confirmations((mine,)))),
    "fewer confirmations than the quorum",
)
