"""Everything that `protocols` raises, as one tree. A caller may catch at the level it can act on::

    ProtocolError
    ├── LocalProtocolError        we were misused: wrong phase, wrong shape, wrong type
    │   ├── QuantisationError     a vector, bound or sum that cannot be encoded or decoded
    │   ├── SupportError          a set of coordinates that is not one
    │   └── GuardViolation        an output that would contradict one already given away
    ├── SignatureError            a signature that does not verify
    ├── RemoteProtocolError       the peer broke the protocol; carries its `client_id`
    ├── PolicyViolation           a client refuses what the server proposes
    └── SessionAborted            the session ends without a sum; carries the phase and who was lost

Verification never returns False: it raises. No error carries a secret, and none carries bytes of a message.
"""

from __future__ import annotations

SERVER = "server"
"""The name a client gives its peer in a `RemoteProtocolError`. No client may be called that."""


class ProtocolError(Exception):
    """Anything that went wrong inside `protocols`."""


class LocalProtocolError(ProtocolError):
    """The caller broke a rule of this library: wrong phase, wrong shape, wrong type."""


class QuantisationError(LocalProtocolError):
    """A vector, bound or sum that cannot be encoded or decoded."""


class SupportError(LocalProtocolError):
    """A set of coordinates that is not a valid support."""


class GuardViolation(LocalProtocolError):  # noqa: N818  (reads as what happened)
    """An output that would contradict one this client already gave away; it was not produced."""


class SignatureError(ProtocolError):
    """A signature that does not verify under the public key it is claimed for."""


class RemoteProtocolError(ProtocolError):
    """The peer `client_id` (a client, or `SERVER`) sent something the protocol forbids: `reason`."""

    def __init__(self, client_id: str, reason: str) -> None:
        super().__init__(client_id, reason)
        self.client_id = client_id
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.client_id}: {self.reason}"


class PolicyViolation(ProtocolError):  # noqa: N818  (likewise)
    """This client's own policy refuses what the server proposes; nothing was sent."""


class SessionAborted(ProtocolError):  # noqa: N818  (likewise)
    """The session ended in `phase` without a sum, after losing `lost`. Start a new session to retry."""

    def __init__(self, phase: str, lost: tuple[str, ...], reason: str) -> None:
        super().__init__(phase, lost, reason)
        self.phase = phase
        self.lost = lost
        self.reason = reason

    def __str__(self) -> str:
        lost = ", ".join(self.lost) or "nobody"
        return f"aborted in phase {self.phase}: {self.reason} (lost so far: {lost})"
