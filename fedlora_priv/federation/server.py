"""The server's half of a round: from public state to a task, and from a sum to the next public state.

Everything here is a function of the experiment file and of sums that were already released, so all of it is
public: the global state, the scores that choose the support, the quantisation bounds. Nothing here sees one
client's upload.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.config import Experiment
from fedlora_priv.federation.channel import UploadChannel
from fedlora_priv.federation.task import RoundTask
from fedlora_priv.methods.base import Contract, Layout, Method, Shared, State
from protocols.sparsify import Support, dense, seeded_random_k, server_topk

REHEARSAL_HEADROOM = 2.0
"""First bounds: this many times the largest entry of a rehearsed upload (a clipped value is not an error)."""

SUM_HEADROOM = 2.0
"""Later bounds: this many times √n times the largest entry of the last mean.

Under DP noise one client's entries are about √n times those of the mean over n clients.
"""

SLOWEST_SHRINK = 0.5
"""A bound at most halves from one round to the next, so that one quiet round cannot starve the next."""


@dataclass(frozen=True)
class ServerState:
    """All that the server carries from round to round; public, checkpointed.

    Args:
        round: rounds finished so far.
        state: the global adapter.
        bounds: for each uploaded array the largest magnitude that may travel in the next round.
        scores: accumulated mean upload, float32 of shape (dimension,); its magnitude ranks coordinates.
    """

    round: int
    state: State
    bounds: Mapping[str, float]
    scores: NDArray[np.float32]


class FederationServer:
    """Turns state into tasks and sums into state, for one experiment."""

    def __init__(self, experiment: Experiment, layout: Layout, method: Method) -> None:
        self._experiment = experiment
        self._layout = layout
        self._method = method
        self.contract: Contract = method.contract(layout)

    def begin(self, initial: State, noise_multiplier: float) -> ServerState:
        """Return the state before the first round; `noise_multiplier` is the largest of the plans."""
        bounds = self._rehearsed_bounds(initial, noise_multiplier)
        return ServerState(0, initial, bounds, np.zeros(self.contract.dimension, dtype=np.float32))

    def task(self, server: ServerState) -> RoundTask:
        """Return the task of the next round."""
        number = server.round + 1
        channel = UploadChannel(
            self.contract,
            self._support(server.scores, number),
            server.bounds,
            self._experiment.communication.value_bits,
            self._experiment.federation.clients,
        )
        return RoundTask(number, server.state, channel)

    def advance(
        self, server: ServerState, task: RoundTask, ring_sum: NDArray[np.uint32], n: int
    ) -> ServerState:
        """Return the state after the task's round, given the modular sum over `n` survivors."""
        sums = task.channel.sums(ring_sum)
        state = self._method.combine(self._layout, server.state, sums, n, self._shared(task.round))
        mean = task.channel.flatten({name: (total / n).astype(np.float32) for name, total in sums.items()})
        bounds = {name: _next_bound(server.bounds[name], total / n, n) for name, total in sums.items()}
        return ServerState(task.round, state, bounds, server.scores + mean)

    def skip(self, server: ServerState, task: RoundTask) -> ServerState:
        """Return the state after a round that was lost: nothing changed but its number."""
        return ServerState(task.round, server.state, server.bounds, server.scores)

    def _shared(self, number: int) -> Shared:
        """Return what everybody knows in that round."""
        return Shared(self._experiment.experiment.seed, number)

    def _support(self, scores: NDArray[np.float32], number: int) -> Support:
        """Return the coordinates that travel in that round, from public things only."""
        communication = self._experiment.communication
        d = self.contract.dimension
        k = max(1, math.ceil(communication.density * d))
        seed = f"{self._experiment.experiment.seed}/{number}".encode()
        if communication.support == "seeded-random-k":
            return seeded_random_k(d, k, seed)
        if communication.support == "server-topk":
            return server_topk(np.abs(scores), k, communication.exploration, seed)
        return dense(d)

    def _rehearsed_bounds(self, initial: State, noise_multiplier: float) -> dict[str, float]:
        """Return the first bounds, from the upload of a made-up client.

        Before the first sum nothing is known of the uploads but what the experiment file says, so a client is
        acted out whose trained arrays move by Gaussian steps of the planned size, from the public seed.
        """
        spread = planned_step(self._experiment, self._layout, self.contract, noise_multiplier)
        trained = dict(initial)
        for name, array in initial.items():
            if self._layout.role(name) in self.contract.trains:
                rng = np.random.default_rng([self._experiment.experiment.seed, zlib.crc32(name.encode())])
                trained[name] = (array + spread * rng.standard_normal(array.shape)).astype(np.float32)
        upload = self._method.upload(self._layout, initial, trained, self._shared(0))
        return {name: REHEARSAL_HEADROOM * float(np.abs(array).max()) for name, array in upload.items()}


def planned_step(
    experiment: Experiment, layout: Layout, contract: Contract, noise_multiplier: float
) -> float:
    """Return how far one coordinate is planned to move in a round (root mean square), from public values.

    SGD adds, per step, noise of standard deviation z·C/batch and a signal of norm at most about C, spread
    over the d trained coordinates; Adam moves every coordinate by about the learning rate.
    """
    training, steps = experiment.training, experiment.federation.local_steps
    if training.optimizer == "adam":
        return training.learning_rate * steps
    trained = [shape for name, shape in layout.shapes().items() if layout.role(name) in contract.trains]
    d = sum(int(np.prod(shape)) for shape in trained)
    noise = math.sqrt(steps) * noise_multiplier / training.batch_size
    return training.learning_rate * training.clip_norm * (noise + steps / math.sqrt(d))


def _next_bound(bound: float, mean: NDArray[np.float64], n: int) -> float:
    """Return the next bound of one array from the mean upload; the first bound stays while all is zero."""
    return max(SUM_HEADROOM * math.sqrt(n) * float(np.abs(mean).max(initial=0.0)), SLOWEST_SHRINK * bound)
