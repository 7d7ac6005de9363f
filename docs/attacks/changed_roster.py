"""A roster that grew or shrank.

Attack: the server adds clients that it made up, leaves the victim's peers out, or names one party twice.
Gain:   sybils are colluders without end; a sum over all but one of the last round's clients points at that one.
Source: Douceur 2002 (sybils); the answer is identities that are pinned outside the server.
Check:  `check_proposal` (everybody pinned, oneself on it), `Roster`, `ClientPolicy.check` (`exact_roster`).
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

from protocols.secagg.codec import encode
from protocols.secagg.identity import Roster
from protocols.secagg.messages import Proposal

stage = Stage(bound=1000)


def propose(roster: tuple[str, ...], **policy: object) -> None:
    """Offer the victim a session on another roster."""
    parameters = replace(stage.parameters, roster=roster, degree=len(roster) - 1, groups=())
    client = stage.client(VICTIM, policy=replace(stage.policy, **policy))
    client.advertise(encode(Proposal(parameters)))


refused(
    "add a client that nobody pinned",
    lambda: propose((*stage.names, "sybil"), min_survivors=2),
    "not pinned: sybil",
)
refused(
    "put a sybil in the place of client-5",
    lambda: propose((*stage.names[:4], "sybil")),
    "not pinned: sybil",
)
refused("name client-2 twice", lambda: propose((*stage.names[:4], "client-2")), "distinct names")
refused(
    "pin one key under two names",
    lambda: Roster({**stage.roster, "sybil": stage.roster["client-2"]}),
    "two names of the roster share one key",
)
refused("leave the victim out and ask it all the same", lambda: propose(stage.names[1:]), "this client")
refused(
    "leave client-5 out of a second exchange",
    lambda: propose(stage.names[:4], exact_roster=frozenset(stage.names)),
    "exactly the earlier survivors",
)
