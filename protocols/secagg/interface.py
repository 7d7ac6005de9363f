"""What a client and a server look like from outside, and what a session gives.

`SecAggClient` and `SecAggServer` are the real ones. `InsecureDummyClient` and `InsecureDummyServer` are the same
without cryptography, for tests of a system that embeds them: write the system against this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Phase = Literal["advertise", "share", "mask", "confirm", "reveal"]
PHASES: tuple[Phase, ...] = ("advertise", "share", "mask", "confirm", "reveal")
"""The phases that clients answer, in order."""


@dataclass(frozen=True)
class SecAggResult:
    """What a session gives: the sum modulo 2^modulus_bits, uint32 of shape (vector_length,), and of whom.

    `transcript` is T1; `attachments` are those of the clients that confirmed; `lost` says in which phase each
    of the others was lost.
    """

    sum: NDArray[np.uint32] = field(repr=False)
    survivors: tuple[str, ...]
    transcript: bytes
    attachments: Mapping[str, bytes] = field(repr=False)
    lost: Mapping[str, str]


class AggregationClient(Protocol):
    """One client in one session: ``advertise → share → mask → confirm → reveal``, each once and in order.

    Every phase takes the server's message and returns this client's answer. See `SecAggClient` for what they
    raise.
    """

    @property
    def phase(self) -> str:
        """What it sends next: one of the five, or "done" or "refused"."""

    @property
    def session_id(self) -> bytes | None:
        """The session it has advertised for and is still in."""

    @property
    def survivors(self) -> tuple[str, ...]:
        """The clients whose sum it confirmed; empty before."""

    def snapshot(self) -> bytes:
        """Return the whole state as bytes, from which the class's `restore` makes the same client."""

    def advertise(self, proposal: bytes) -> bytes:
        """Accept a session."""

    def share(self, advertisements: bytes) -> bytes:
        """Prepare for the loss of clients."""

    def mask(self, shares: bytes, vector: NDArray[np.uint32]) -> bytes:
        """Give the vector."""

    def confirm(self, survivors: bytes, attachment: bytes = b"") -> bytes:
        """Agree to who is in the sum."""

    def reveal(self, confirmations: bytes) -> bytes:
        """Let the server have the sum."""


class AggregationServer(Protocol):
    """The server of one session: ``start``, then for each phase ``receive`` answers and ``advance``."""

    @property
    def phase(self) -> str:
        """The open phase: "propose", the five that clients answer, "done" or "aborted"."""

    @property
    def lost(self) -> Mapping[str, str]:
        """Every lost client with the phase in which it was lost."""

    def snapshot(self) -> bytes:
        """Return the whole state as bytes, from which the class's `restore` makes the same server."""

    def start(self) -> dict[str, bytes]:
        """Return the first message for every client."""

    def receive(self, client_id: str, message: bytes) -> None:
        """Take one client's answer in the open phase."""

    def advance(self) -> dict[str, bytes]:
        """Close the open phase and return the next message for each client that is still there."""

    def result(self) -> SecAggResult:
        """Return the sum, once the last phase was closed."""
