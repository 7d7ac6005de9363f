"""A second exchange over other clients than the first.

Attack: a method sums twice in a round; the server runs the second sum over fewer clients than the first.
Gain:   where the two sums are about related data, their difference points at who was left out.
Source: methods that need two sums of one round, as two-pass SVD and votes on a support.
Check:  `ClientPolicy.check` (`exact_roster`, and min_survivors = n) and `check_survivors`.
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

from protocols.secagg.codec import decode, encode
from protocols.secagg.messages import Survivors

first = Stage()
first.until("done")
s1 = frozenset(first.clients[VICTIM].survivors)


def second(n: int, **changes: object) -> Stage:
    """The second exchange, with clients that ask for exactly the first one's survivors."""
    stage = Stage(n=n, after=first, exchange=1, **{"session_id": bytes([n]) * 32, **changes})
    policy = replace(stage.policy, exact_roster=s1, exact_round=(1, 1))
    stage.clients = {name: stage.client(name, policy=policy) for name in stage.names}
    return stage


refused("leave client-5 out of the roster", lambda: second(4).until("share"), "exactly the earlier survivors")
refused(
    "keep the roster, but allow losses", lambda: second(5).until("share"), "exactly the earlier survivors"
)

strict = second(5, session_id=bytes([9]) * 32, min_survivors=5)
inbox = strict.until("confirm")
kept = decode(Survivors, inbox[VICTIM], "attacker").statements[:3]
without = encode(Survivors(strict.bitmap(0, 1, 2, 3), kept))
refused(
    "accept their terms, and then report client-5 as lost",
    lambda: strict.answer(VICTIM, "confirm", without),
    "U3 is smaller than the quorum or than min_survivors",
)
