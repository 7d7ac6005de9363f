"""Which coordinates travel in a round, from public things: the seed, earlier sums, the last vote.

One support for each tier, each part of the next; what a tier adds to the one before is its *band*.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.config import Experiment
from fedlora_priv.federation.course import public_seed, tier_sizes
from fedlora_priv.methods.base import Contract
from protocols.sparsify import Support, dense, seeded_random_k
from protocols.tiers import Tiers, nested_topk


def bands(experiment: Experiment, supports: tuple[Support, ...]) -> tuple[Support, ...]:
    """Return what each tier adds to the one before; with one tier, its support."""
    if len(supports) == 1:
        return supports
    communication = experiment.communication
    mine = zip(experiment.client_ids, communication.densities, strict=True)
    tier_of = {client_id: communication.tiers.index(density) for client_id, density in mine}
    return tuple(band.support for band in Tiers(supports, tier_of).bands)


def random_supports(experiment: Experiment, contract: Contract, round: int) -> tuple[Support, ...]:
    """Return each tier's coordinates as the public seed draws them: anybody can."""
    seed = public_seed(experiment, round)
    return tuple(
        seeded_random_k(contract.dimension, k, seed) for k in tier_sizes(experiment, contract, round)
    )


def largest_supports(
    experiment: Experiment, contract: Contract, round: int, scores: NDArray[np.float32]
) -> tuple[Support, ...]:
    """Return each tier's coordinates: those of the largest public scores, and some at random.

    Args:
        scores: of shape (d,), in the order in which an upload is flattened.
    """
    d, sizes = contract.dimension, tier_sizes(experiment, contract, round)
    if sizes == (d,):
        return (dense(d),)
    exploration = experiment.communication.exploration
    return nested_topk(np.abs(scores), sizes, exploration, public_seed(experiment, round))
