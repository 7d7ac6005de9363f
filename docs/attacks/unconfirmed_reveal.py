"""Confirmations that are none.

Attack: the server asks for shares with too few confirmations, with one counted twice, or with some from outside U3.
Gain:   a client that counts carelessly reveals for an outcome that no quorum agreed to (see split_survivors).
Source: Bonawitz et al. 2017, consistency check; counting distinct members of U3 only is ours.
Check:  `check_confirmations`.
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

from protocols.secagg import statements
from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import Confirmations, ConfirmStatement
from protocols.secagg.transcript import set_digest

stage = Stage()
request = stage.until("reveal")[VICTIM]
votes = decode(Confirmations, request, "attacker").statements
snapshot = stage.clients[VICTIM].snapshot()
few, not_in = "fewer confirmations than the quorum", "confirmations of clients that are not in U3"
for attempt, shown, refusal in (
    ("three of the four that are needed", votes[:3], few),
    ("none", (), few),
    ("the victim's own four times", (votes[0],) * 4, not_in),
    ("one twice, to make four of three", (votes[0], votes[0], *votes[1:3]), not_in),
    ("one of a client that does not exist", (*votes[:3], replace(votes[3], index=9)), not_in),
    ("client-2's under client-1's name", (replace(votes[1], index=0), *votes[1:]), "client-1: the signature"),
):
    refused(
        f"show {attempt}",
        lambda shown=shown: stage.client(VICTIM, snapshot).reveal(encode(Confirmations(shown))),
        refusal,
    )

stage = Stage()
inbox = stage.until("confirm", lost=[("client-5", "mask")])
votes = [stage.confirmation(name, inbox[name]) for name in stage.names[:4]]
attached = statements.attachment_digest(b"")
u2, u3 = set_digest(range(5), 5), set_digest(range(4), 5)
transcript = stage.clients[VICTIM].transcript or b""
outsider = stage.identities["client-5"]  # colludes: it was lost, and signs the outcome of the others
signature = outsider.sign(*statements.confirm(transcript, u2, u3, "client-5", attached))
refused(
    "let a lost colluder stand in for a missing confirmation",
    lambda: stage.answer(
        VICTIM, "reveal", encode(Confirmations((*votes[:3], ConfirmStatement(4, attached, signature))))
    ),
    not_in,
)
