"""Thresholds below the rules.

Attack: the server proposes a quorum of which two can exist side by side, or so low a threshold that its own
        colluders hold enough shares.
Gain:   two quorums confirm two outcomes, so both shares of a client come out; or no honest holder is needed at all.
Source: Bonawitz et al. 2017, the bound on t against an active server; the rules are derived in `session`.
Check:  `SessionParameters._rules`, evaluated by every client.
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

from protocols.secagg.codec import encode
from protocols.secagg.messages import Proposal

stage = Stage()
for changes, rule in (
    ({"quorum": 3, "min_survivors": 4}, "2*quorum > n + max_colluders"),
    ({"quorum": 5, "min_survivors": 4}, "quorum <= min_survivors <= n"),
    ({"quorum": 4, "min_survivors": 6}, "quorum <= min_survivors <= n"),
    ({"threshold": 1}, "max_colluders < threshold <= degree + 1"),
    ({"threshold": 6}, "max_colluders < threshold <= degree + 1"),
    ({"degree": 3}, "degree n-1, or even and below"),
    ({"degree": 0, "max_colluders": 0, "threshold": 1}, "degree > max_colluders"),
    ({"min_contributors": 2}, "min_contributors >= max_colluders + 2"),
):
    proposal = encode(Proposal(replace(stage.parameters, **changes)))
    refused(f"propose {changes}", lambda data=proposal: stage.client(VICTIM).advertise(data), rule)
