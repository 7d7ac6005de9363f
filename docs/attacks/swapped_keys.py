"""Swapped keys.

Attack: the server puts keys of its own, or another client's, in the place of client-2's.
Gain:   it shares a secret with the victim in client-2's name: the pair's mask is known to it, the shares in the
        boxes are readable, and with enough such peers so is the vector.
Source: Bonawitz et al. 2017 need a PKI against an active server; Flower's SecAgg+ signs nothing.
Check:  `check_advertisements`: each advertisement is signed over its keys, T0 and the name, by a pinned identity.
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

from protocols.secagg import keys, statements
from protocols.secagg.codec import decode, encode
from protocols.secagg.identity import Identity
from protocols.secagg.messages import Advertisement, Advertisements, Leaf
from protocols.secagg.transcript import MerkleTree

stage = Stage()
request = stage.until("share")[VICTIM]
honest = {leaf.index: leaf.advertisement for leaf in decode(Advertisements, request, "attacker").leaves}
snapshot = stage.clients[VICTIM].snapshot()
t0 = statements.parameters_digest(stage.parameters)


def show(advertisement: Advertisement) -> None:
    """Show the victim a sound tree with that advertisement as client-2's."""
    shown = {**honest, 1: advertisement}
    tree = MerkleTree(t0, {index: encode(advert) for index, advert in shown.items()}, 5)
    leaves = tuple(Leaf(index, advert, tree.path(index)) for index, advert in shown.items())
    stage.client(VICTIM, snapshot).share(encode(Advertisements(tree.root, leaves)))


def signed_by(identity: Identity, name: str) -> Advertisement:
    """Keys that the attacker made, signed in somebody's name."""
    mine = [keys.KeyPair.from_secret(bytes([i]) * 96).public_bytes for i in (1, 2)]
    unsigned = Advertisement(mine[0], mine[1], statements.UNSIGNED)
    return replace(unsigned, signature=identity.sign(*statements.advertise(t0, name, unsigned)))


not_hers = "client-2: the signature for 'advertise' does not verify"
mine = signed_by(Identity.generate(), "client-2")
refused("keys of the server, signed by a fresh identity", lambda: show(mine), not_hers)
refused(
    "keys of the server under client-2's signature",
    lambda: show(replace(mine, signature=honest[1].signature)),
    not_hers,
)
half = replace(honest[1], box_key=mine.box_key)
refused("only the box key swapped", lambda: show(half), not_hers)
refused("client-3's advertisement as client-2's", lambda: show(honest[2]), not_hers)
colluder = signed_by(stage.identities["client-3"], "client-3")
refused("a colluder's second advertisement as client-2's", lambda: show(colluder), not_hers)
