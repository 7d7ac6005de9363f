"""Scores of layers that the server measures on the way: before round 1, and again after every so many rounds.

Source: Fed-HeLLo's FIM-HLA scores layers again every fifty rounds, on a hundred samples of the server. Here so does
Fed-piLot, if asked. Rows are public, and the global state follows from sums that were released, so scores are public.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedlora_priv.allocation import AllocationError
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.errors import FederationError
from fedlora_priv.federation.allocating import allocation
from fedlora_priv.federation.server import ServerState
from fedlora_priv.methods.layout import Layout, State

SCORED_ROWS = 100
"""So many rows are scored on, or all if there are fewer: Fed-HeLLo's number."""

Measure = Callable[[State], Sequence[float]]
"""Given a global state, returns what each layer is worth, the lowest first."""


@dataclass(frozen=True)
class Rescoring:
    """When the server scores layers, and what becomes of the scores."""

    experiment: Experiment
    layout: Layout
    measure: Measure

    def before(self, server: ServerState) -> ServerState:
        """Return the state with what is found of it before the next round, if layers are scored then.

        Scores that are none, as of a state that has diverged, or by which a round until the next scoring would have no
        allocation, are forgotten: those before them stay.

        Raises:
            AllocationError: there are none before them.
        """
        asked, next_round = self.experiment.allocation, server.round + 1
        if next_round > self.experiment.federation.rounds or not asked.scores_before(next_round):
            return server
        try:
            found = replace(server.findings, scores=self._usable(server.state, next_round))
        except AllocationError:
            if not (before := server.findings.scores or asked.scores):
                raise
            found = replace(server.findings, scores=before)
        return replace(server, findings=found)

    def _usable(self, state: State, first: int) -> tuple[float, ...]:
        """Return measured scores, by which every round until the next scoring has an allocation.

        Raises:
            AllocationError: there are none.
        """
        experiment = self.experiment
        last = first - 1 + (experiment.allocation.rescore_every or 1)
        try:
            found = Findings(tuple(map(float, self.measure(state))))
        except FederationError as error:
            raise AllocationError(str(error), "lower training.learning_rate: training has diverged") from None
        for number in range(first, min(last, experiment.federation.rounds) + 1):
            allocation(experiment, self.layout, number, found)
        return found.scores


def scored_rows(count: int, seed: int) -> list[int]:
    """Return which of so many public rows are scored on, in order: drawn by the experiment's public seed.

    >>> len(scored_rows(1000, 7)), scored_rows(3, 7)
    (100, [0, 1, 2])
    """
    drawn = np.random.default_rng([seed, SCORED_ROWS]).permutation(count)[:SCORED_ROWS]
    return sorted(drawn.tolist())
