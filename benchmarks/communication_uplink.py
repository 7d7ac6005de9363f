"""How changes travel up in the communication study: support, feedback, rounding, the sum, and what follows from it.

Everything but training is what a masked federation does, by the same functions of `protocols` and
`fedlora_priv.communication`, and the integers are added modulo 2^b as they would be under masks: masks cancel
exactly, so the sums are the same bit for bit. Nothing here is protected; it is a measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.communication_setting import Setting
from benchmarks.methods_runs import repeatable_stream
from fedlora_priv.communication.scales import Channels, Scales
from protocols.feedback import ErrorFeedback
from protocols.private import PrivateAtClient
from protocols.quantise import Quantiser
from protocols.sparsify import Support, dense, seeded_random_k, server_topk
from protocols.voting import VoteRules

Vector = NDArray[np.float32]
Scalar = TypeVar("Scalar", np.uint32, np.float64)

EXPLORATION = 0.25
"""The share of a `server-topk` support that is drawn at random, as federations have it."""

DECLARED = "one client's rounds, in a simulation that releases nothing"


class Uplink:
    """Ten clients' way up, and what a server remembers of it: scores, scales, the support that was voted.

    Args:
        setting: how changes travel.
        channels: which coordinate is in which channel of the scales.
        spreads: each channel's first spread, public.
    """

    def __init__(self, setting: Setting, channels: Channels, spreads: NDArray[np.float64]) -> None:
        self._setting = setting
        self._scores = np.zeros(channels.index.size)
        self._voted: Support | None = None
        self._feedback = [ErrorFeedback(self.dimension) for _ in range(setting.clients * setting.feedback)]
        bits = setting.value_bits
        self._scales = None if bits is None else Scales(channels, spreads, bits, setting.clients)

    @property
    def dimension(self) -> int:
        """Number of coordinates before any are left out."""
        return int(self._scores.size)

    def support(self, number: int) -> Support | None:
        """Return what travels in a round; None if it is voted on once everybody has trained."""
        setting, d = self._setting, self.dimension
        k, seed = setting.travelling(d), self._seed(number)
        if k == d or number <= setting.whole:
            return dense(d)
        if setting.support == "seeded-random-k":
            return seeded_random_k(d, k, seed)
        if setting.support == "server-topk":
            # Before the first sum all scores are zero, and an order of nothing would be that of the names.
            exploration = EXPLORATION if self._scores.any() else 1.0
            return server_topk(np.abs(self._scores), k, exploration, seed)
        return None if (number - 1) % setting.vote_every == 0 else self._voted

    def mean(self, number: int, changes: Sequence[Vector]) -> NDArray[np.float64]:
        """Return the mean of what arrives of the clients' changes, shape (dimension,), zero where nothing travels."""
        wanted = [PrivateAtClient(change, DECLARED) for change in changes]
        if self._feedback:
            pairs = zip(self._feedback, wanted, strict=True)
            wanted = [feedback.compensate(update) for feedback, update in pairs]
        support = self.support(number) or self._vote(number, wanted)
        if self._scales is None:
            sent = [support.take(update.values).astype(np.float32).astype(np.float64) for update in wanted]
            total = added(sent)
        else:
            quantiser = self._scales.quantiser(support)
            rings = self.rings(number, quantiser, support, wanted)
            sent = [quantiser.dequantise_sum(ring, clients=1) for ring in rings]
            total = quantiser.dequantise_sum(ring_sum(rings, quantiser), clients=len(rings))
        for feedback, update, own in zip(self._feedback, wanted, sent, strict=False):
            feedback.record(update, support.scatter(own))
        mean = support.scatter(total) / len(changes)
        if self._scales is not None:
            self._scales = self._scales.after(mean, support, len(changes))
        self._scores += mean
        return mean

    def rings(
        self, number: int, quantiser: Quantiser, support: Support, updates: Sequence[PrivateAtClient]
    ) -> list[NDArray[np.uint32]]:
        """Return each client's ring elements, which secure aggregation would mask."""
        return [
            quantiser.quantise(
                support.take(update.values), repeatable_stream(self._setting, number, k, "rounding")
            )
            for k, update in enumerate(updates)
        ]

    def _vote(self, number: int, updates: Sequence[PrivateAtClient]) -> Support:
        """Return the support that the clients vote for, and keep it."""
        k = self._setting.travelling(self.dimension)
        rules = VoteRules(self.dimension, k, k, len(updates), self._seed(number))
        self._voted = rules.support(added([rules.ballot(update) for update in updates]), len(updates))
        return self._voted

    def _seed(self, number: int) -> bytes:
        """Return a round's public seed."""
        return f"{self._setting.seed}/{number}".encode()


def ring_sum(rings: Sequence[NDArray[np.uint32]], quantiser: Quantiser) -> NDArray[np.uint32]:
    """Return the sum modulo 2^b, as it comes out of secure aggregation."""
    return added(rings) & np.uint32(2**quantiser.modulus_bits - 1)


def added(vectors: Sequence[NDArray[Scalar]]) -> NDArray[Scalar]:
    """Return the sum of vectors in their own kind of number; uint32 wraps around."""
    total = np.zeros_like(vectors[0])
    for vector in vectors:
        total += vector
    return total
