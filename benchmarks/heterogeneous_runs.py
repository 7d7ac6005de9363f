"""One run of the study of unequal clients: a setting in, a line of results out.

Every client trains its part with `PrivateTrainer`, and what it uploads is what it would in a federation, zeros and
counts included (`Allocation.method`). Sums are float64 in the clear; under masks they are the same but for rounding.
All randomness comes from the setting's seed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.heterogeneous_cells import CELLS, EVERY_SCORES, TIERS, same_for_all
from benchmarks.heterogeneous_setting import Setting
from benchmarks.methods_runs import client_plan, make_trainer, priced, repeatable_stream, step_settings
from benchmarks.methods_task import StudyTask
from fedlora_priv.adapters import read_state, write_state
from fedlora_priv.allocation import Allocation, CostModel, LayerScores, Public
from fedlora_priv.allocation.fisher_scores import fisher_scores
from fedlora_priv.allocation.measuring import support_of_modules
from fedlora_priv.methods.base import Method, Shared
from fedlora_priv.methods.layout import State
from fedlora_priv.training import PrivateTrainer


class Diverged(Exception):  # noqa: N818 - it names what was met
    """A client's trained values are not finite any more."""


SCORED_ROWS = 100
"""Validation rows that layers are scored on: the server's own, public."""


def run(setting: Setting, task: StudyTask, *, test: bool) -> dict[str, Any]:
    """Return what one run gave.

    validation, accuracy: after the last round, on held-out training rows or, if `test`, on the test rows. counts: by
    round, how many clients trained each layer. tier_seconds: CPU time that the clients of each tier trained, one
    client and round. trained: coordinates of A, B and head that one of each tier trained, mean over the rounds.
    spent: epsilon of the client that spent most. A run that diverges is as good as none: 0.
    """
    began = time.process_time()
    federation = Federation(setting, task)
    found = {"accuracy": 0.0 if test else None, "validation": None if test else 0.0}
    with suppress(Diverged):
        for number in range(1, setting.rounds + 1):
            federation.round(number)
        judged = task.test if test else task.validation
        found["accuracy" if test else "validation"] = federation.accuracy(judged)
    return {
        **found,
        "counts": federation.counts,
        "tier_seconds": federation.by_tier(federation.seconds),
        "trained": federation.by_tier(federation.trained),
        "spent": federation.spent(),
        "noise": federation.noise(),
        "cpu_minutes": (time.process_time() - began) / 60,
    }


class Federation:
    """The clients and the global state of one run.

    Attributes:
        state: the global one.
        counts: by round, how many clients trained each layer.
        seconds, trained: by client, CPU time and coordinates of each round.
    """

    def __init__(self, setting: Setting, task: StudyTask) -> None:
        self._setting, self._cell = setting, CELLS[setting.method]
        self._task, self._trainers = task, {setting.rank: make_trainer(setting, task, setting.rank)}
        self._judge = self._trainers[setting.rank]
        self._layout = self._judge.layout
        self._cost = CostModel.declared(self._layout)
        self._profiles = self._cell.profiles(setting.clients, len(self._cost.layers), setting.rank)
        self._examples = task.clients(setting.clients, setting.partition, setting.seed)
        self._plans = [client_plan(setting, len(part)) for part in self._examples]
        self._scores: LayerScores | None = None
        self.state: State = read_state(self._judge.model)
        server = self._cell.server(self.allocation(1), self._layout)
        self.state = server.begin(self._layout, self.state, Shared(setting.seed, 1))
        self.counts: list[list[int]] = []
        self.seconds: dict[int, list[float]] = defaultdict(list)
        self.trained: dict[int, list[float]] = defaultdict(list)

    def round(self, number: int) -> None:
        """Run one round."""
        shared = Shared(self._setting.seed, number)
        allocation = self.allocation(number)
        self.counts.append(allocation.counts())
        clients = [
            self._cell.client(allocation, self._layout, client_id) for client_id in sorted(allocation.parts)
        ]
        own = [self.trained_by(k, method, allocation, shared) for k, method in enumerate(clients)]
        if not all(np.isfinite(array).all() for trained in own for array in trained.values()):
            raise Diverged
        server = self._cell.server(allocation, self._layout)
        sums: dict[str, NDArray[np.float64]] = {}
        while True:
            for method, trained in zip(clients, own, strict=True):
                for name, array in method.upload(self._layout, self.state, trained, shared).items():
                    sums[name] = sums.get(name, 0.0) + array.astype(np.float64)
            announced = server.announce(self._layout, self.state, sums, len(clients), shared)
            if announced is None:
                break
            shared = replace(shared, exchange=shared.exchange + 1, announced=announced)
        self.state = server.combine(self._layout, self.state, sums, len(clients), shared)

    def accuracy(self, examples: Any) -> float:
        """Return the accuracy of the global state."""
        return self._judge.evaluate(examples, self.state, max_tokens_per_microbatch=4096).value

    def by_tier(self, values: dict[int, list[float]]) -> list[float]:
        """Return the mean over the rounds and clients of each tier."""
        return [
            float(np.mean([v for k, mine in values.items() if k % len(TIERS) == tier for v in mine]))
            for tier in range(len(TIERS))
        ]

    def spent(self) -> float | None:
        """Return the epsilon of the client that spent most, as the ledger's accountant prices all rounds."""
        return max(
            (priced(plan) for plan in {plan for plan in self._plans if plan is not None}), default=None
        )

    def noise(self) -> float:
        """Return the largest noise multiplier."""
        return max((plan.noise_multiplier for plan in self._plans if plan is not None), default=0.0)

    def allocation(self, number: int) -> Allocation:
        """Return who trains what in a round; layers are scored first, where it is due."""
        cell, layers = self._cell, len(self._cost.layers)
        if cell.part is not None:
            part = cell.part(layers, self._setting.rank)
            return same_for_all(part, self._cost, number, self._setting.clients)
        assert cell.dealer is not None
        if cell.is_scored and (self._scores is None or number % EVERY_SCORES == 0):
            self._scores = self.scored()
        public = Public(self._setting.seed, self._cost, self._scores)
        return cell.dealer(self._setting.rank).allocate(number, self._profiles, public)

    def scored(self) -> LayerScores:
        """Return the layers' scores at the present state."""
        write_state(self._judge.model, self.state)
        rows = self._task.validation.subset(range(min(SCORED_ROWS, len(self._task.validation))))
        return fisher_scores(self._judge.model, rows, f"{self._task.name}, held-out training rows")

    def trained_by(self, k: int, method: Method, allocation: Allocation, shared: Shared) -> State:
        """Return what a client makes of the state in a round's steps."""
        client_id = sorted(allocation.parts)[k]
        trainer = self._trainer(allocation.parts[client_id].rank)
        roles = method.contract(self._layout).trains
        support = support_of_modules(trainer, roles, allocation.trains(client_id))
        began = time.process_time()
        result = trainer.train(
            self._examples[k],
            method.start(self._layout, self.state, shared),
            step_settings(self._setting, len(self._examples[k]), self._plans[k]),
            stream=repeatable_stream(self._setting, shared.round, k, "train"),
            trainable=roles,
            support=support,
        )
        self.seconds[k].append(time.process_time() - began)
        self.trained[k].append(float(result.dimension))
        return result.state

    def _trainer(self, rank: int) -> PrivateTrainer:
        """Return the trainer of clients of a rank, made when it is first needed."""
        if rank not in self._trainers:
            self._trainers[rank] = make_trainer(self._setting, self._task, rank)
        return self._trainers[rank]
