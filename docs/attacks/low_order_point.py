"""A low-order X25519 point.

Attack: a colluder advertises a point of low order, with a valid signature.
Gain:   the X25519 half of every secret with it is zero, known to all who listen: boxes to it, and the masks with it,
        then rest on ML-KEM alone.
Source: RFC 7748, section 6.1.
Check:  the server names the client when it advertises (`keys.check_public_key`); a client behind a server that
        lets it through refuses when it uses the key (`KeyPair.exchange`).
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

from protocols.secagg import keys, statements
from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import Advertisement, Advertisements, Leaf
from protocols.secagg.transcript import MerkleTree

stage = Stage()

good = keys.KeyPair.from_secret(bytes(96)).public_bytes
t0 = statements.parameters_digest(stage.parameters)
LOW_ORDER = {
    "zero": bytes(32),
    "one": b"\x01" + bytes(31),
    "a point of order 8": bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    "minus one": bytes.fromhex("ec" + "ff" * 30 + "7f"),
}


def advertised(point: bytes) -> Advertisement:
    """The colluder's advertisement, well signed."""
    message = Advertisement(point + good[32:], good, statements.UNSIGNED)
    signature = stage.identities["client-2"].sign(*statements.advertise(t0, "client-2", message))
    return replace(message, signature=signature)


for name, point in LOW_ORDER.items():
    stage.server = type(stage.server)(parameters=stage.parameters, roster=stage.roster)
    stage.server.start()
    bad = encode(advertised(point))
    refused(
        f"advertise {name}", lambda data=bad: stage.server.receive("client-2", data), "client-2: its X25519"
    )

stage.clients = {client: stage.client(client) for client in stage.names}
stage.server = type(stage.server)(parameters=stage.parameters, roster=stage.roster)
request = stage.until("share")[VICTIM]
adverts = {leaf.index: leaf.advertisement for leaf in decode(Advertisements, request, "attacker").leaves}
adverts[1] = advertised(bytes(32))
tree = MerkleTree(t0, {index: encode(advert) for index, advert in adverts.items()}, 5)
shown = Advertisements(tree.root, tuple(Leaf(i, a, tree.path(i)) for i, a in adverts.items()))
refused(
    "have the server let it through to the victim",
    lambda: stage.answer(VICTIM, "share", encode(shown)),
    "client-2: its X25519 key is of low order",
)
