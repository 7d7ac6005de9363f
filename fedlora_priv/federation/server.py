"""The server's half of a round: from public state to a task, between its exchanges, and from sums to the next state.

Everything here is a function of the experiment file and of sums that were already released, so all of it is
public: the global state, the scores that choose the support, the quantisation bounds, an optimiser's moments.
Nothing here sees one client's upload.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.config import Experiment
from fedlora_priv.federation.channel import UploadChannel
from fedlora_priv.federation.exchange import Exchange, Summed, travelling
from fedlora_priv.federation.rehearsal import rehearsed_bounds
from fedlora_priv.federation.task import RoundTask, begin
from fedlora_priv.methods.base import Contract, Layout, Method, Shared, State
from fedlora_priv.methods.certificate import Certificate
from fedlora_priv.methods.optimizers import Moments, ServerOptimizer, require_mean_moves
from protocols.sparsify import Support, dense, seeded_random_k, server_topk

SUM_HEADROOM = 2.0
"""A bound is this many times √n times the largest entry of the last mean.

Under DP noise one client's entries are about √n times those of the mean over n clients.
"""

SLOWEST_SHRINK = 0.5
"""A bound at most halves from one sum of an array to the next, so that one quiet round cannot starve the next."""


@dataclass(frozen=True)
class ServerState:
    """All that the server carries from round to round; public, checkpointed.

    Args:
        round: rounds finished so far.
        state: the global state.
        bounds: for each array that has been summed, the largest magnitude that may travel when it next does.
        scores: for each array that has been summed, its accumulated mean, float32: its magnitude ranks coordinates.
            Only where an experiment chooses coordinates by them.
        moments: what the server optimiser remembers.
    """

    round: int
    state: State
    bounds: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    moments: Moments = field(default_factory=dict)


class FederationServer:
    """Turns state into tasks and sums into state, for one experiment.

    Args:
        experiment, layout, method: what is run, on which arrays, and how they are combined.
        noise_multiplier: the largest of the clients' plans, for a rehearsal of what has never been summed.
        optimizer: what is made of a mean change; None just adds it.

    Raises:
        AssumptionError: the method does more than move arrays by their mean change, and there is an optimiser.
    """

    def __init__(
        self,
        experiment: Experiment,
        layout: Layout,
        method: Method,
        noise_multiplier: float,
        optimizer: ServerOptimizer | None = None,
    ) -> None:
        if optimizer is not None:
            require_mean_moves(method)
        self._experiment = experiment
        self._layout = layout
        self._method = method
        self._noise_multiplier = noise_multiplier
        self._optimizer = optimizer

    def begin(self, initial: State) -> ServerState:
        """Return the state before the first round, from the model as it was loaded."""
        return ServerState(0, begin(self._method, self._layout, initial, self._experiment))

    def task(self, server: ServerState) -> RoundTask:
        """Return the task of the next round."""
        number = server.round + 1
        support = self._support(server.scores, number)
        return RoundTask(number, server.state, Exchange(0, {}, self._channel(server, number, 0, support)))

    def announce(self, server: ServerState, task: RoundTask, summed: Summed) -> Exchange | None:
        """Return the round's next exchange, given the sums so far, or None if they are enough.

        Raises:
            SumError: a sum is none that honest clients can have added up to.
        """
        method, shared = self._method.at(task.round), self._shared(task, summed.exchanges[-1])
        announced = method.announce(self._layout, server.state, summed.sums, summed.n, shared)
        if announced is None:
            return None
        number, contract = shared.exchange + 1, method.contract(self._layout)
        channel = self._channel(server, task.round, number, dense(contract.size(number)))
        return Exchange(number, announced, channel, optional=contract.may_stop_early)

    def advance(self, server: ServerState, task: RoundTask, summed: Summed) -> ServerState:
        """Return the state after the task's round, given the sums of all its exchanges.

        Raises:
            SumError: as in `announce`.
        """
        method, shared = self._method.at(task.round), self._shared(task, summed.exchanges[-1])
        state = method.combine(self._layout, server.state, summed.sums, summed.n, shared)
        moments = server.moments
        if self._optimizer is not None:
            state, moments = self._optimizer.step(method, self._layout, server.state, state, moments)
        means = {name: total / summed.n for name, total in summed.sums.items()}
        bounds = dict(server.bounds)
        for exchange in summed.exchanges:
            for name, bound in exchange.channel.bounds.items():
                bounds[name] = _next_bound(bound, means[name], summed.n)
        scores = self._scores(server, method.contract(self._layout), means)
        return ServerState(task.round, state, bounds, scores, moments)

    def certify(
        self, server: ServerState, task: RoundTask, summed: Summed, advanced: ServerState
    ) -> Certificate | None:
        """Return how far the state after the round is from the mean of the clients' products, where sums tell."""
        method, shared = self._method.at(task.round), self._shared(task, summed.exchanges[-1])
        return method.certify(self._layout, server.state, summed.sums, summed.n, shared, advanced.state)

    def skip(self, server: ServerState, task: RoundTask) -> ServerState:
        """Return the state after a round that was lost: nothing changed but its number."""
        return replace(server, round=task.round)

    def _shared(self, task: RoundTask, exchange: Exchange) -> Shared:
        """Return what everybody knew in that exchange."""
        seed = self._experiment.experiment.seed
        return Shared(seed, task.round, exchange.number, exchange.announced)

    def _channel(self, server: ServerState, round: int, number: int, support: Support) -> UploadChannel:
        """Return the channel of an exchange, with rehearsed bounds for arrays of which nothing is known yet."""
        method = self._method.at(round)
        contract = method.contract(self._layout)
        shapes = contract.exchange(number)
        bounds = {**server.bounds, **contract.limits}
        if not shapes.keys() <= bounds.keys():
            bounds = self._rehearsed(server, method, round, number) | bounds
        bits, clients = self._experiment.communication.value_bits, self._experiment.federation.clients
        return UploadChannel(shapes, support, {name: bounds[name] for name in shapes}, bits, clients)

    def _rehearsed(self, server: ServerState, method: Method, round: int, number: int) -> dict[str, float]:
        """Return bounds of an exchange's arrays that no sum has had a part in."""
        return rehearsed_bounds(
            self._experiment,
            self._layout,
            method,
            server.state,
            round=round,
            exchange=number,
            noise_multiplier=self._noise_multiplier,
        )

    def _support(self, scores: Mapping[str, NDArray[np.float32]], number: int) -> Support:
        """Return the coordinates that travel in a round's first exchange, from public things only."""
        communication = self._experiment.communication
        contract = self._method.at(number).contract(self._layout)
        d, k = contract.dimension, travelling(self._experiment, contract, 0)
        seed = f"{self._experiment.experiment.seed}/{number}".encode()
        if k == d:
            return dense(d)
        if communication.support == "seeded-random-k":
            return seeded_random_k(d, k, seed)
        flat = [scores.get(name, np.zeros(shape)).ravel() for name, shape in contract.uploads.items()]
        return server_topk(
            np.abs(np.concatenate(flat)).astype(np.float32), k, communication.exploration, seed
        )

    def _scores(
        self, server: ServerState, contract: Contract, means: Mapping[str, NDArray[np.float64]]
    ) -> dict[str, NDArray[np.float32]]:
        """Return the scores with the means added of what travels in part."""
        scores = dict(server.scores)
        if self._experiment.communication.support == "server-topk" and not contract.travels_whole:
            for name in contract.uploads:
                mean = means[name].astype(np.float32)
                scores[name] = scores[name] + mean if name in scores else mean
        return scores


def _next_bound(bound: float, mean: NDArray[np.float64], n: int) -> float:
    """Return the next bound of one array from the mean upload; the first bound stays while all is zero."""
    return max(SUM_HEADROOM * math.sqrt(n) * float(np.abs(mean).max(initial=0.0)), SLOWEST_SHRINK * bound)
