"""What is refused about how uploads travel."""

from __future__ import annotations

from fedlora_priv.errors import FederationError


class CommunicationError(FederationError):
    """A support, a scale or a budget that cannot be, or that would leak or lose what it must not."""
