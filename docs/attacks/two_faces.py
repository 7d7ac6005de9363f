"""Two advertisements of one colluder under one root.

Attack: client-2 signs two sets of keys; the server builds a lopsided tree in which one is where everybody expects
        it and the other one level higher, and shows each of them to half of the clients.
Gain:   two halves with one T1 that see different keys: each half's statements are valid for the other.
Source: RFC 6962 keeps leaves and nodes apart for the same reason.
Check:  `check_advertisements`: every path has the height that n fixes, and leads from its own index to T1.
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

from protocols.secagg import keys, statements
from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import Advertisement, Advertisements
from protocols.secagg.transcript import _leaf, path_root

stage = Stage()
request = stage.until("share")[VICTIM]
honest = decode(Advertisements, request, "attacker")
snapshot = stage.clients[VICTIM].snapshot()
t0 = statements.parameters_digest(stage.parameters)
public = [keys.KeyPair.from_secret(bytes([i]) * 96).public_bytes for i in (1, 2)]
unsigned = Advertisement(public[0], public[1], statements.UNSIGNED)
signature = stage.identities["client-2"].sign(*statements.advertise(t0, "client-2", unsigned))
second = replace(unsigned, signature=signature)

planted = _leaf(t0, 1, encode(second))  # the right child of the root, where a subtree should be
mine, hers, *others = honest.leaves[:4]
left = path_root(t0, 0, encode(mine.advertisement), mine.path[:2])
t1 = path_root(t0, 0, encode(mine.advertisement), (*mine.path[:2], planted))
leaves = (
    replace(mine, path=(*mine.path[:2], planted)),
    replace(hers, advertisement=second, path=(left,)),  # a path of one step
    *(replace(leaf, path=(*leaf.path[:2], planted)) for leaf in others),
)
refused(
    "a path of one step for client-2's other face",
    lambda: stage.client(VICTIM, snapshot).share(encode(Advertisements(t1, leaves))),
    "the advertisement of client-2 is not in the tree",
)
at_another_place = (mine, replace(hers, path=honest.leaves[2].path), *others)
refused(
    "client-2 at client-3's place in the tree",
    lambda: stage.client(VICTIM, snapshot).share(encode(Advertisements(honest.t1, at_another_place))),
    "the advertisement of client-2 is not in the tree",
)
