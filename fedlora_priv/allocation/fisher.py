"""FIM-HLA: layers drawn by how much the model's output depends on them, scored again every so many rounds.

Source: Fed-HeLLo and its code: the mean squared gradient of the label's logit on 100 held-out samples of the
*server*, summed by layer, from round 50 on every 50 rounds; three clusters of layers by that score, drawn with
chances in proportion to 1/27, 2/27 and 1/9, the highest scores most often.

The original takes its clusters in whatever order 3-means gives them; here they are sorted by centroid, and 3-means
is solved exactly (on a line the best clusters are intervals, so all of them are tried). Before the first scores all
layers are drawn alike.

Scores are public: the server makes them of its own public data (`allocation.fisher_scores`). Scores of clients'
data tell of those data. They are refused unless they were noised and charged (`LayerScores.charged`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.allocation import shapes
from fedlora_priv.allocation.base import Public
from fedlora_priv.allocation.errors import AllocationError
from fedlora_priv.allocation.hello import Random
from fedlora_priv.allocation.scores import require_scores

CLUSTERS = 3


class FisherLayers(Random):
    """FIM-HLA: layers drawn by clusters of their scores.

    Args:
        first, every: the rounds before which layers are scored: `first`, and each `every` rounds after it.
        holders: see `Allocator`.

    Raises:
        AllocationError: rounds that are not positive.
    """

    name = "fim-hla"
    title = "FIM-HLA (layers by Fisher information)"
    source = "Fed-HeLLo"

    def __init__(self, first: int = 50, every: int = 50, holders: int = 1) -> None:
        super().__init__(holders)
        if first < 1 or every < 1:
            raise AllocationError(
                f"layers cannot be scored from round {first} every {every} rounds", "use 50"
            )
        self.first, self.every = first, every

    def scores_before(self, round: int) -> bool:
        """Whether layers are to be scored, on the global state, before that round's allocation."""
        return round >= self.first and (round - self.first) % self.every == 0

    def _weights(self, round: int, public: Public) -> NDArray[np.float64]:
        """Return weights 1, 2, 3 by cluster, or equal ones while there are no scores."""
        layers = len(public.cost.layers)
        if round < self.first:
            return shapes.weights("uniform", layers)
        scores = require_scores(public.scores, layers, self.name)
        return 1.0 + np.array(clusters(scores.values), dtype=np.float64)


def clusters(values: Sequence[float], count: int = CLUSTERS) -> list[int]:
    """Return the cluster of each value, 0 the one of the least centroid, with the least sum of squared distances.

    Equal values are in one cluster; there are as many clusters as different values if those are fewer than `count`.

    Example:
        >>> clusters([0.2, 9.0, 0.1, 4.0, 8.0])
        [0, 2, 0, 1, 2]
    """
    distinct = sorted(set(values))
    times = [sum(value == other for other in values) for value in distinct]
    inner = range(1, len(distinct))
    cuts = [(0, *cut, len(distinct)) for cut in itertools.combinations(inner, min(count, len(distinct)) - 1)]
    best = min(
        cuts, key=lambda cut: sum(_spread(distinct[a:b], times[a:b]) for a, b in itertools.pairwise(cut))
    )
    return [sum(distinct.index(value) >= cut for cut in best[1:-1]) for value in values]


def _spread(values: Sequence[float], times: Sequence[int]) -> float:
    """Return the sum of squared distances from the mean of values that occur so many times."""
    mean = np.average(values, weights=times)
    return float(np.sum(np.array(times) * (np.array(values) - mean) ** 2))
