"""Both shares of one client.

Attack: the server asks the holders for client-5's self-seed, and then, or in the same session restored from an old
        state, for its mask keys as well.
Gain:   with both, every mask of client-5's vector comes off. Flower's SecAgg+ (flwr 1.41) releases both when asked.
Source: Bonawitz et al. 2017, double masking: an honest client never gives both.
Check:  `SecAggClient.reveal` (one share per client, by the confirmed U3, once) and `Guard.record` in `confirm`.
"""

from stage import VICTIM, Stage, in_vain, refused

from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import Survivors

stage = Stage()
inbox = stage.until("confirm")
before = stage.clients[VICTIM].snapshot()
for name in stage.names:
    stage.server.receive(name, stage.answer(name, "confirm", inbox[name]))
asked = stage.server.advance()[VICTIM]
state = stage.clients[VICTIM]._state
revealed = stage.answer(VICTIM, "reveal", asked)
in_vain(
    "look for a master share of a survivor in what the victim reveals",
    any(held.master_share in revealed for held in state.held)
    or not all(held.seed_share in revealed for held in state.held),
    "the message holds the seed share of each of the five, and no other",
)
refused("ask again", lambda: stage.answer(VICTIM, "reveal", asked), "it is not the turn of 'reveal'")

kept = decode(Survivors, inbox[VICTIM], "attacker").statements[:3]
without = encode(Survivors(stage.bitmap(0, 1, 2, 3), kept))
refused(
    "restore the victim from before it confirmed, and report client-5 as lost",
    lambda: stage.client(VICTIM, before).confirm(without),
    "another output was already given in phase confirm",
)
