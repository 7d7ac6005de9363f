"""What a server remembers of a session, which is also its snapshot.

The memory is one vector, the boxes in transit, and what is small. Everything else follows from it: who is
still there, U1 to U3 and T1 are computed, never stored, so a restored server cannot contradict itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from protocols.redaction import Redacted
from protocols.secagg.codec import UpTo
from protocols.secagg.interface import PHASES
from protocols.secagg.messages import (
    Advertisement,
    Confirmation,
    MaskStatement,
    Parcel,
    RevealedShare,
)
from protocols.secagg.recovery import Dealt
from protocols.secagg.server_machine import PhaseName
from protocols.secagg.session import Index


@dataclass(repr=False)
class ServerState(Redacted):
    """One session as its server knows it. Keys are roster indices.

    `parcels` are by recipient, then by sender, and gone once they are delivered; `revealed` are by holder, and
    gone once the sum is there.
    """

    phase: PhaseName = "propose"
    lost: dict[Index, PhaseName] = field(default_factory=dict)
    advertisements: dict[Index, Advertisement] = field(default_factory=dict)
    dealt: dict[Index, Dealt] = field(default_factory=dict)
    parcels: dict[Index, dict[Index, Parcel]] = field(default_factory=dict)
    masked: dict[Index, MaskStatement] = field(default_factory=dict)
    confirmed: dict[Index, Confirmation] = field(default_factory=dict)
    revealed: dict[Index, tuple[RevealedShare, ...]] = field(default_factory=dict)

    @property
    def answered(self) -> Mapping[int, Any]:
        """What was kept of each good answer in the open phase."""
        answers = (self.advertisements, self.dealt, self.masked, self.confirmed, self.revealed)
        return answers[PHASES.index(self.phase)]

    def shares_by_owner(self) -> dict[int, dict[int, bytes]]:
        """Return what was revealed, by owner and holder."""
        by_owner: dict[int, dict[int, bytes]] = {}
        for holder, shares in self.revealed.items():
            for revealed in shares:
                by_owner.setdefault(revealed.owner, {})[holder] = revealed.share
        return by_owner

    def forget(self) -> None:
        """Drop what only an open session needs."""
        self.parcels, self.revealed = {}, {}


@dataclass(frozen=True, repr=False)
class SavedServer(Redacted):
    """A server's whole state: `total` is the sum so far, 4 bytes for each entry, or empty."""

    KIND: ClassVar[int] = 160
    state: ServerState
    total: Annotated[bytes, UpTo(2**32 - 1)]
