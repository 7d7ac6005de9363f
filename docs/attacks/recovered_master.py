"""A recovered master that opens boxes.

Attack: the server calls the victim lost, collects the shares of its master, and tries the keys that follow from it
        on the boxes that were sent to the victim.
Gain:   the boxes hold the others' shares of both secrets: one lost client would open a column of them.
Source: Bonawitz et al. 2017 keep c and s key pairs apart for the same reason.
Check:  `keys`: the box key pair is drawn apart from the master and never shared.
"""

from cryptography.exceptions import InvalidTag
from stage import VICTIM, Stage, in_vain

from protocols.errors import RemoteProtocolError
from protocols.secagg import keys, shamir, statements
from protocols.secagg.codec import decode
from protocols.secagg.dealing import _bound
from protocols.secagg.messages import Reveal, SharesIn

stage = Stage()
inbox = stage.until("mask")
state = stage.clients[VICTIM]._state
parcels = decode(SharesIn, inbox[VICTIM], "attacker").parcels
box_keys = {edge.peer: edge.box_key for edge in state.edges}
del inbox[VICTIM]  # its vector comes too late
shares: dict[int, bytes] = {}
for phase in ("mask", "confirm", "reveal"):
    for name, request in inbox.items():
        answer = stage.answer(name, phase, request)
        stage.server.receive(name, answer)
        if phase == "reveal":
            held = [s.share for s in decode(Reveal, answer, name).shares if s.owner == 0]
            shares[stage.names.index(name) + 1] = held[0]
    inbox = stage.server.advance()
master = shamir.combine(shares, 4, 32)
print(f"recovered the victim's master: {master == state.master}")

t0 = statements.parameters_digest(stage.parameters)
candidates = [
    keys.mask_key_pair(master, t0, VICTIM),
    keys.KeyPair.from_secret(keys.derive(master, b"box-key-pair", t0, VICTIM.encode(), size=96)),
    keys.KeyPair.from_secret((master * 3)[:96]),
]
opened = 0
for parcel in parcels:
    address = keys.BoxAddress(state.t1, stage.names[parcel.sender], VICTIM, _bound(parcel))
    for pair in candidates:
        try:
            keys.open_box(parcel.box, parcel.box_encapsulation, pair, box_keys[parcel.sender], address)
            opened += 1
        except (RemoteProtocolError, InvalidTag):
            continue
in_vain(
    "open the victim's four boxes with keys made from its recovered master",
    bool(opened) or master != state.master,
    "none opens: box keys hang on a secret of their own",
)
