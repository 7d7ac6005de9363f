"""A restored snapshot that acts again.

Attack: the machine of a client is rolled back (a container restarted, a disk image restored) before each phase, and
        the server sends it something else than the first time.
Gain:   two masked vectors under one mask; two confirmations, and so both shares of a client.
Source: rollback is an attack on any state machine: no protocol state helps against a client that forgets.
Check:  `SecAggClient._leave`: the guard records each output's digest before it is handed out; another is refused.
"""

from stage import VICTIM, Stage, edited, in_vain, refused

from protocols.errors import GuardViolation
from protocols.secagg.codec import decode, encode
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.messages import SharesIn, Survivors


def another(stage: Stage, phase: str, request: bytes) -> bytes:
    """A request of the same phase that would lead to another output."""
    if phase == "mask":
        parcels = tuple(p for p in decode(SharesIn, request, "attacker").parcels if p.sender != 4)
        return edited(request, SharesIn, u2=stage.bitmap(0, 1, 2, 3), parcels=parcels)
    if phase == "confirm":
        kept = tuple(s for s in decode(Survivors, request, "attacker").statements if s.index != 4)
        return encode(Survivors(stage.bitmap(0, 1, 2, 3), kept))
    return request  # sharing again draws new polynomials


for phase, refusal in (
    ("advertise", "begun before"),
    ("share", "another output was already given in phase share"),
    ("mask", "another output was already given in phase mask"),
    ("confirm", "another output was already given in phase confirm"),
):
    stage = Stage()
    request = stage.until(phase)[VICTIM]
    snapshot = stage.clients[VICTIM].snapshot()
    stage.answer(VICTIM, phase, request)
    stage.clients[VICTIM] = stage.client(VICTIM, snapshot)
    second = another(stage, phase, request)
    refused(
        f"restore the victim and have it {phase} again",
        lambda stage=stage, phase=phase, data=second: stage.answer(VICTIM, phase, data),
        refusal,
    )

stage = Stage()
request = stage.until("reveal")[VICTIM]
snapshot = stage.clients[VICTIM].snapshot()
once = stage.answer(VICTIM, "reveal", request)
again = stage.client(VICTIM, snapshot).reveal(request)
in_vain("restore the victim and have it reveal again", once != again, "it sends the very same bytes")


class FullDisk(MemoryGuard):
    """A guard that cannot remember."""

    def record(self, *_: object) -> None:
        raise GuardViolation("no space left: nothing recorded")


stage = Stage()
request = stage.until("mask")[VICTIM]
forgetful = stage.client(VICTIM, stage.clients[VICTIM].snapshot(), guard=FullDisk())
refused(
    "fill the disk, so that the guard cannot remember",
    lambda: forgetful.mask(request, stage.vectors[VICTIM]),
    "nothing recorded",
)
