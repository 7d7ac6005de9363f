"""A tiny cohort.

Attack: the server proposes a session of the victim with a few others, or one that may lose nearly everybody.
Gain:   with colluders as the others, the sum minus their vectors is the victim's vector.
Source: Boenisch et al. 2023 build such cohorts from sybils; Bonawitz et al. 2017 leave the cohort to the server.
Check:  `SessionParameters._rules` and `ClientPolicy.check`, on numbers that the client chose before it was asked.
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

from protocols.secagg.codec import encode
from protocols.secagg.messages import Proposal

stage = Stage()
pair = {"roster": stage.names[:2], "degree": 1, "threshold": 2, "quorum": 2, "min_survivors": 2, "groups": ()}


def propose(**changes: object) -> None:
    """Offer the victim another session; its owner asked for at least four survivors."""
    policy = replace(stage.policy, min_survivors=4)
    proposal = encode(Proposal(replace(stage.parameters, **changes)))
    stage.client(VICTIM, policy=policy).advertise(proposal)


refused(
    "two clients, and say that nobody colludes",
    lambda: propose(**pair, max_colluders=0, min_contributors=2),
    "max_colluders 0 is below this client's 1",
)
refused("two clients, one of whom may collude", lambda: propose(**pair), "min_survivors >= max_colluders + 2")
refused(
    "five clients, of whom three suffice for a sum",
    lambda: propose(max_colluders=1, quorum=3, min_survivors=3),
    "2*quorum > n + max_colluders",
)
three = {
    "roster": stage.names[:3],
    "degree": 2,
    "threshold": 3,
    "quorum": 3,
    "min_survivors": 3,
    "groups": (),
}
refused(
    "three clients under sound rules, which this client finds too few",
    lambda: propose(**three, min_contributors=3),
    "min_survivors 3 is below this client's 4",
)
