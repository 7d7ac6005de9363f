"""The server's half of a round: from public state to a task, between its exchanges, and from sums to the next state.

Everything here is a function of the experiment file, of sums that were already released and of what else has been
found in public (`allocation.findings`), so all of it is public: the global state, the scores that choose the support,
the quantisation bounds, an optimiser's moments. Nothing here sees one client's upload.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.federation.ballots import BallotChannel
from fedlora_priv.federation.bounds import Spreads
from fedlora_priv.federation.channel import UploadChannel
from fedlora_priv.federation.exchange import Exchange, Planned, Summed
from fedlora_priv.federation.own_rank import after
from fedlora_priv.federation.rehearsal import rehearsed_spreads
from fedlora_priv.federation.start import masked, moving
from fedlora_priv.federation.supports import bands, largest_supports, random_supports
from fedlora_priv.federation.task import RoundTask, begin
from fedlora_priv.federation.vectors import flatten
from fedlora_priv.methods.base import Contract, Method, Shared
from fedlora_priv.methods.certificate import Certificate
from fedlora_priv.methods.layout import Layout, State
from fedlora_priv.methods.optimizers import Moments, ServerOptimizer, require_mean_moves
from protocols.sparsify import Support, dense


@dataclass(frozen=True)
class ServerState:
    """All that the server carries from round to round; public, checkpointed.

    Args:
        round: rounds finished so far.
        state: the global state, all of it, whatever part of it clients start from.
        spreads: for each array that has been summed, the standard deviation of one client's values by channel: bounds
            are made of it when it next travels.
        scores: for each array that has been summed, its accumulated mean, float32: its magnitude ranks coordinates.
            Only where an experiment chooses coordinates by them.
        moments: what the server optimiser remembers.
        voted: the indices that the last vote chose; None before the first, and where nobody votes.
        findings: what the next round's allocation follows from beside the file.
    """

    round: int
    state: State
    spreads: Spreads = field(default_factory=dict)
    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    moments: Moments = field(default_factory=dict)
    voted: NDArray[np.int64] | None = None
    findings: Findings = field(default_factory=Findings)


class FederationServer:
    """Turns state into tasks and sums into state, for one experiment.

    Args:
        experiment, layout, method: what is run, on which arrays, and how they are combined.
        initial: the model's arrays as they were loaded.
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
        initial: State,
        noise_multiplier: float,
        optimizer: ServerOptimizer | None = None,
    ) -> None:
        if optimizer is not None:
            require_mean_moves(method)
        self._experiment = experiment
        self._layout = layout
        self._method = method
        self._begun = begin(method, layout, initial, experiment)
        self._moves = moving(method, layout, experiment.federation.rounds)
        self._noise_multiplier = noise_multiplier
        self._optimizer = optimizer

    def begin(self) -> ServerState:
        """Return the state before the first round."""
        return ServerState(0, self._begun)

    def task(self, server: ServerState) -> RoundTask:
        """Return the task of the next round, which starts from as much of the state as is sent down."""
        planned = self._planned(server.round + 1, server.findings)
        density = self._experiment.communication.download_density
        start = masked(server.state, self._begun, self._moves, density)
        if planned.legs[0].carries == "votes":
            ballots = Exchange(0, planned.legs[0], {}, planned.ballots())
            return RoundTask(planned.round, planned.findings, start, ballots)
        supports = self._supports(server, planned)
        first, *others = (
            Exchange(j, planned.legs[j], {}, self._channel(server, planned, 0, support))
            for j, support in enumerate(bands(self._experiment, supports))
        )
        return RoundTask(planned.round, planned.findings, start, first, tuple(others))

    def announce(self, server: ServerState, task: RoundTask, summed: Summed) -> Exchange | None:
        """Return the round's next exchange, given the sums so far, or None if they are enough.

        Raises:
            SumError: a sum is none that honest clients can have added up to.
        """
        planned, part = self._planned(task.round, task.findings), summed.parts[-1]
        if isinstance(part.exchange.channel, BallotChannel):
            return self._elected(server, planned, part.exchange.channel.winners(part.ring_sum, part.n))
        method, shared = self._method.at(task.round), self._shared(task, summed)
        announced = method.announce(self._layout, server.state, summed.sums, summed.n, shared)
        if announced is None:
            return None
        upload = shared.exchange + 1
        channel = self._channel(server, planned, upload, dense(planned.contract.size(upload)))
        optional = planned.contract.may_stop_early
        return Exchange(upload, planned.legs[upload], announced, channel, optional=optional)

    def _elected(self, server: ServerState, planned: Planned, winners: Support) -> Exchange:
        """Return the exchange of values on the coordinates that won a vote."""
        return Exchange(1, planned.legs[1], {}, self._channel(server, planned, 0, winners))

    def advance(self, server: ServerState, task: RoundTask, summed: Summed) -> ServerState:
        """Return the state after the task's round, given the sums of all its exchanges.

        Raises:
            SumError: as in `announce`.
        """
        method, shared = self._method.at(task.round), self._shared(task, summed)
        state = method.combine(self._layout, server.state, summed.sums, summed.n, shared)
        moments = server.moments
        if self._optimizer is not None:
            state, moments = self._optimizer.step(method, self._layout, server.state, state, moments)
        means = {name: total / summed.n for name, total in summed.sums.items()}
        scores = self._scores(server, method.contract(self._layout), means)
        spreads = self._spreads(server, self._planned(task.round, task.findings), summed)
        voted = _voted(server, summed)
        return ServerState(task.round, state, spreads, scores, moments, voted, server.findings)

    def _spreads(self, server: ServerState, planned: Planned, summed: Summed) -> Spreads:
        """Return the spreads of everything that has ever been summed."""
        spreads, method = server.spreads, self._method.at(planned.round)
        counts = method.contributors(self._layout, summed.sums, summed.n)
        means = {name: total / np.maximum(counts[name], 1) for name, total in summed.sums.items()}
        for upload, exchange in summed.uploads().items():
            shapes = exchange.values.shapes
            among = flatten(shapes, {name: np.broadcast_to(counts[name], shapes[name]) for name in shapes})
            senders = np.minimum(summed.senders(upload), among)
            spreads = {**spreads, **planned.scales(upload).after(exchange.values.bounds, means, senders)}
        return spreads

    def certify(
        self, server: ServerState, task: RoundTask, summed: Summed, advanced: ServerState
    ) -> Certificate | None:
        """Return how far the state after the round is from the mean of the clients' products, where sums tell."""
        method, shared = self._method.at(task.round), self._shared(task, summed)
        return method.certify(self._layout, server.state, summed.sums, summed.n, shared, advanced.state)

    def heard(self, server: ServerState, task: RoundTask, faded: Collection[str]) -> ServerState:
        """Return the state after a round, lost or not, with the ranks that clients have by what they announced in it.

        Args:
            faded: who has announced that its tail has faded.
        """
        findings = after(self._experiment, self._layout, task.round, task.findings, faded)
        return replace(server, findings=findings)

    def skip(self, server: ServerState, task: RoundTask) -> ServerState:
        """Return the state after a round that was lost: nothing changed but its number."""
        return replace(server, round=task.round)

    def _planned(self, round: int, findings: Findings) -> Planned:
        """Return what everybody knows of a round before it."""
        contract = self._method.at(round).contract(self._layout)
        return Planned(self._experiment, self._layout, contract, round, findings)

    def _shared(self, task: RoundTask, summed: Summed) -> Shared:
        """Return what everybody knew in the last exchange that gave a sum."""
        seed, last = self._experiment.experiment.seed, summed.last
        return Shared(seed, task.round, last.leg.upload, last.announced)

    def _channel(self, server: ServerState, planned: Planned, upload: int, support: Support) -> UploadChannel:
        """Return the channel of an upload, with rehearsed spreads for arrays of which nothing is known yet."""
        scales, spreads = planned.scales(upload), server.spreads
        if not scales.shapes.keys() <= spreads.keys() | scales.limits.keys():
            spreads = {**self._rehearsed(server, planned, upload), **spreads}
        bounds, who = scales.bounds(spreads), planned.contributors(upload)
        return UploadChannel(scales.shapes, support, bounds, scales.value_bits, scales.clients, who)

    def _rehearsed(self, server: ServerState, planned: Planned, upload: int) -> Spreads:
        """Return spreads of an upload's arrays, which no sum has had a part in."""
        return rehearsed_spreads(
            self._experiment,
            self._layout,
            self._method.at(planned.round),
            server.state,
            round=planned.round,
            findings=planned.findings,
            exchange=upload,
            noise_multiplier=self._noise_multiplier,
        )

    def _supports(self, server: ServerState, planned: Planned) -> tuple[Support, ...]:
        """Return the coordinates that each tier sends in a round's first exchange, from public things only."""
        experiment, contract, round = self._experiment, planned.contract, planned.round
        kind = experiment.communication.support
        if kind == "voted-topk" and server.voted is not None:
            return (Support(contract.dimension, server.voted),)
        if kind in ("seeded-random-k", "voted-topk"):
            return random_supports(experiment, contract, round)
        flat = [server.scores.get(name, np.zeros(shape)).ravel() for name, shape in contract.uploads.items()]
        return largest_supports(experiment, contract, round, np.concatenate(flat).astype(np.float32))

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


def _voted(server: ServerState, summed: Summed) -> NDArray[np.int64] | None:
    """Return the indices that the last vote chose: this round's, if there was one."""
    if isinstance(summed.parts[0].exchange.channel, BallotChannel):
        return summed.last.values.support.indices
    return server.voted
