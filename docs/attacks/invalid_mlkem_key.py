"""An invalid ML-KEM key.

Attack: a colluder advertises an encapsulation key with coefficients of q or more, or one byte too few.
Gain:   nothing that is known, but FIPS 203 does not say what encapsulating to such a key gives: an unchecked key is
        where implementations differ, or fail in the middle of a session with nobody to blame.
Source: FIPS 203, section 7.2 (the modulus check).
Check:  `keys.encapsulate`, at the server when the key is advertised, and at each client that uses it.
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

from protocols.secagg import keys, statements
from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import Advertisement, Advertisements, Leaf
from protocols.secagg.transcript import MerkleTree

stage = Stage()
request = stage.until("share")[VICTIM]
t0 = statements.parameters_digest(stage.parameters)
good = keys.KeyPair.from_secret(bytes(96)).public_bytes
bad = good[:32] + b"\xff" * 1184


def advertised(box_key: bytes, mask_key: bytes) -> Advertisement:
    """The colluder's advertisement, well signed."""
    message = Advertisement(box_key, mask_key, statements.UNSIGNED)
    signature = stage.identities["client-2"].sign(*statements.advertise(t0, "client-2", message))
    return replace(message, signature=signature)


for half, pair in (("box", (bad, good)), ("mask", (good, bad))):
    server = type(stage.server)(parameters=stage.parameters, roster=stage.roster)
    server.start()
    data = encode(advertised(*pair))
    refused(
        f"advertise an invalid {half} key",
        lambda server=server, data=data: server.receive("client-2", data),
        "client-2: its ML-KEM key is invalid",
    )
    short = data[:-65] + data[-64:]
    server = type(stage.server)(parameters=stage.parameters, roster=stage.roster)
    server.start()
    refused(
        "advertise a key with a byte missing",
        lambda server=server, data=short: server.receive("client-2", data),
        "client-2: the message ends too early",
    )

adverts = {leaf.index: leaf.advertisement for leaf in decode(Advertisements, request, "attacker").leaves}
adverts[1] = advertised(good, bad)
tree = MerkleTree(t0, {index: encode(advert) for index, advert in adverts.items()}, 5)
shown = Advertisements(tree.root, tuple(Leaf(i, a, tree.path(i)) for i, a in adverts.items()))
refused(
    "have the server let it through to the victim",
    lambda: stage.answer(VICTIM, "share", encode(shown)),
    "client-2: its ML-KEM key is invalid",
)
