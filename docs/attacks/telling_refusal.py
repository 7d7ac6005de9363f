"""A refusal that tells what is in the vector.

Attack: the server proposes a smaller bound than the client's quantiser has, or a group for one coordinate to which the
        client does not contribute, and sees whether the client goes on after it has looked at its vector.
Gain:   one bit about a single client in each round: whether an entry exceeds the bound, whether a coordinate is zero.
Source: follows from PROTOCOL's "learns the sum over survivors and the roster; nothing else".
Check:  `ClientPolicy.exact_form`: the client refuses such a session before there is a vector.
"""

from dataclasses import replace

from stage import VICTIM, Stage, refused

from protocols.secagg.codec import encode
from protocols.secagg.messages import Proposal
from protocols.secagg.session import CoordinateGroup, SessionParameters, VectorForm

stage = Stage()
own = replace(stage.policy, exact_form=VectorForm(vector_length=8, modulus_bits=16, bound=6553))


def propose(parameters: SessionParameters) -> bytes:
    """What the victim answers to a proposal."""
    return stage.client(VICTIM, policy=own).advertise(encode(Proposal(parameters)))


refused(
    "ask whether an entry exceeds 5",
    lambda: propose(replace(stage.parameters, bound=5)),
    "another length, modulus, bound or groups",
)
others = (CoordinateGroup(0, 1, (1, 2, 3, 4)), CoordinateGroup(1, 8, (0, 1, 2, 3, 4)))
refused(
    "ask whether the first coordinate is zero",
    lambda: propose(replace(stage.parameters, groups=others)),
    "another length, modulus, bound or groups",
)
