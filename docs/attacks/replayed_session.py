"""Replay across rounds and sessions.

Attack: the server runs a session again under the same id, or feeds messages of an earlier session into a new one.
Gain:   a second masked vector under the same masks: their difference is the difference of two private vectors.
Source: Bonawitz et al. 2017 assume fresh keys each round; nothing in plain SecAgg makes a client check that.
Check:  `Guard.begin_session`; T0 and T1 in every signature (`statements`) and derivation (`keys`).
"""

from stage import VICTIM, Stage, edited, refused

from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import Advertisements, Leaf, Proposal, Survivors
from protocols.secagg.statements import parameters_digest
from protocols.secagg.transcript import MerkleTree

first = Stage()
old_keys = first.until("share")[VICTIM]
proposal = encode(Proposal(first.parameters))
refused("start the session again", lambda: first.client(VICTIM).advertise(proposal), "begun before")

later = Stage(after=first, session_id=bytes(32), round=2)
later.until("share")
refused(
    "hand out last round's advertisements",
    lambda: later.clients[VICTIM].share(old_keys),
    "is not in the tree",
)

# The same with a tree built anew over the later session's T0: now only the signature can tell.
later = Stage(after=first, session_id=bytes([1]) * 32, round=3)
leaves = decode(Advertisements, later.until("share")[VICTIM], "attacker").leaves
adverts = {leaf.index: leaf.advertisement for leaf in leaves}
adverts[1] = decode(Advertisements, old_keys, "attacker").leaves[1].advertisement
tree = MerkleTree(parameters_digest(later.parameters), {i: encode(a) for i, a in adverts.items()}, 5)
forged = Advertisements(tree.root, tuple(Leaf(i, a, tree.path(i)) for i, a in adverts.items()))
refused(
    "hide client-2's old keys in a tree of the new session",
    lambda: later.clients[VICTIM].share(encode(forged)),
    "client-2: the signature for 'advertise' does not verify",
)

one = Stage()
said = decode(Survivors, one.until("confirm")[VICTIM], "attacker").statements
two = Stage(after=one, session_id=bytes(32), round=2)
asked = two.until("confirm")[VICTIM]
refused(
    "pass last round's mask statements for this round's",
    lambda: two.answer(VICTIM, "confirm", edited(asked, Survivors, statements=said)),
    "the signature for 'mask' does not verify",
)
