"""The way out of a client for its votes: a private update becomes a ballot here, and a sum of ballots a support.

The counterpart of `channel.UploadChannel` in the exchange before the values. Who votes for what is a function of one
client's update, so only an update that its owner declares private by itself is taken (`protocols.private`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.errors import SumError
from fedlora_priv.methods.layout import Shapes
from protocols.errors import SupportError
from protocols.private import PrivateAtClient
from protocols.secagg.session import VectorForm
from protocols.sparsify import Support
from protocols.voting import BALLOT_BOUND, VoteRules


@dataclass(frozen=True)
class BallotChannel:
    """Private updates → ballots → the coordinates that won, for one exchange.

    Args:
        shapes: names and shapes of what is voted on: the upload of the exchange that follows.
        rules: of the vote, public; every party computes them for itself.
    """

    shapes: Shapes
    rules: VoteRules

    @property
    def form(self) -> VectorForm:
        """What a ballot looks like to secure aggregation."""
        return VectorForm(self.rules.dimension, self.rules.modulus_bits, BALLOT_BOUND)

    def form_on(self, roster: Sequence[str]) -> VectorForm:  # noqa: ARG002 - everybody votes on everything
        """Return that form in a session of these clients."""
        return self.form

    def votes(self, update: PrivateAtClient) -> NDArray[np.uint32]:
        """Return a client's votes for its largest coordinates, uint32 of shape (d,)."""
        return self.rules.ballot(update)

    def sums(self, ring_sum: NDArray[np.uint32], n: int) -> dict[str, NDArray[np.float64]]:
        """Return nothing, once the sum is known to be one of ballots: votes are no array of the method's.

        Raises:
            SumError: as `winners`.
        """
        self.winners(ring_sum, n)
        return {}

    def winners(self, ring_sum: NDArray[np.uint32], n: int) -> Support:
        """Return the coordinates that `n` clients have chosen.

        Raises:
            SumError: `n` honest clients cannot have cast these votes.
        """
        try:
            return self.rules.support(ring_sum, n)
        except SupportError as error:
            raise SumError(str(error), "the round is lost") from error

    def digest(self) -> bytes:
        """Return 32 bytes that differ whenever anything that both sides must agree on differs."""
        names = "\n".join(f"{name} {shape}" for name, shape in self.shapes.items())
        return hashlib.sha256(
            b"fedlora-priv ballots v1" + hashlib.sha256(names.encode()).digest() + self.rules.digest()
        ).digest()
