"""Another global model for one client.

Attack: the server gives the victim a model of its own (say, one that copies the input into the gradient) and lets
        everybody else train the usual one.
Gain:   the others' updates are all but known, so what remains of the sum is the victim's.
Source: Pasquini et al. 2022, "Eluding Secure Aggregation in Federated Learning via Model Inconsistency".
Check:  `check_proposal` compares the context with what the client itself computed; and T0, in every leaf of T1,
        puts it into every mask key, so that the masks do not cancel even for a client that compares nothing.
"""

from dataclasses import replace

from stage import CONTEXT, VICTIM, Stage, in_vain, refused

from protocols.errors import RemoteProtocolError
from protocols.secagg import statements
from protocols.secagg.codec import encode
from protocols.secagg.keys import pair_mask_key
from protocols.secagg.messages import Proposal
from protocols.secagg.transcript import MerkleTree

stage = Stage()
poisoned = bytes(32)
other = encode(Proposal(replace(stage.parameters, context=poisoned)))
refused("ask for masks about another model", lambda: stage.client(VICTIM).advertise(other), "another model")

# A careless victim takes the digest from the server. Everybody else is asked about the usual model.
careless = stage.client(VICTIM, context=poisoned)
inbox = stage.server.start()
try:
    stage.server.receive(VICTIM, careless.advertise(other))
    accepted = True
except RemoteProtocolError as error:
    print(f"          (the honest server notices: {error})")
    accepted = False
in_vain("let a careless victim join with its own context", accepted, "it signed another T0 than the others")

roots = []
for context in (CONTEXT, poisoned):
    t0 = statements.parameters_digest(replace(stage.parameters, context=context))
    roots.append(MerkleTree(t0, {0: b"the same", 1: b"advertisements"}, 2).root)
keys = [pair_mask_key(bytes(32), bytes(32), t1, "client-1", "client-2", b"") for t1 in roots]
in_vain(
    "show both sides the same key advertisements under two contexts",
    roots[0] == roots[1] or keys[0] == keys[1],
    "T1 differs, and with it every pair's mask: the victim's mask does not cancel",
)
