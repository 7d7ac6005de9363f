"""One run of the communication study: a setting in, a line of results out.

Every client trains with `PrivateTrainer`, so ε is that of a real federation; what travels goes through `Uplink`, or
through `communication.flasc` for FLASC as published. All randomness comes from the setting's seed.

FLASC's own DP is for a client among hundreds and noises the sum; of ten clients nothing would be left. Here its clients
train with DP-SGD as all others do, and what it does to their changes costs nothing more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accounting.planning import Plan
from benchmarks.communication_setting import Setting
from benchmarks.communication_uplink import Uplink, Vector
from benchmarks.methods_runs import client_plan, make_trainer, priced, repeatable_stream, step_settings
from benchmarks.methods_task import StudyTask
from fedlora_priv.adapters import read_state
from fedlora_priv.communication import flasc
from fedlora_priv.communication.download import largest
from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.communication.scales import lora_channels
from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.errors import MethodError
from fedlora_priv.methods.layout import State
from fedlora_priv.methods.optimizers import Adam
from fedlora_priv.methods.registry import Options, make
from fedlora_priv.training import TokenisedExamples
from protocols.errors import QuantisationError
from protocols.sparsify import Support

DIVERGED = (MethodError, CommunicationError, QuantisationError)
"""What a NaN in a change ends in."""

FLOOR = 1e-3
"""A first spread is at least this part of the mean one: A stands still until B has moved."""

REHEARSER = -1
"""The number of the client that acts out a first round on public rows."""


def run(setting: Setting, task: StudyTask, *, test: bool) -> dict[str, Any]:
    """Return what one run gave.

    validation, accuracy: after the last round, on held-out training rows and, if `test`, on the test rows. spent:
    epsilon of the client that spent most. noise: the largest noise multiplier. coordinates: of a change, before any are
    left out. A run that diverges is as good as none: validation 0.
    """
    began = time.process_time()
    clients = Clients(setting, task)
    server = Published(clients) if setting.method == "flasc" else Masked(clients, task.validation)
    validation, accuracy = 0.0, None
    with suppress(*DIVERGED):
        for number in range(1, setting.rounds + 1):
            server.round(number)
        validation = clients.accuracy(task.validation, server.evaluated())
        accuracy = clients.accuracy(task.test, server.evaluated()) if test else None
    return {
        "accuracy": accuracy,
        "validation": validation,
        "spent": clients.spent(),
        "noise": clients.noise(),
        "coordinates": clients.dimension,
        "cpu_minutes": (time.process_time() - began) / 60,
    }


class Clients:
    """The clients of one run, their one model, and what of it travels."""

    def __init__(self, setting: Setting, task: StudyTask) -> None:
        self.setting = setting
        self.trainer = make_trainer(setting, task, setting.rank)
        self.layout = self.trainer.layout
        self.method = make("fedit" if setting.method == "flasc" else setting.method, Options())
        self.contract = self.method.contract(self.layout)
        self.begun: State = read_state(self.trainer.model)
        self.parts = task.clients(setting.clients, setting.partition, setting.seed)
        self._plans = [client_plan(setting, len(part)) for part in self.parts]

    @property
    def dimension(self) -> int:
        """How many coordinates a change has."""
        return self.contract.dimension

    def trained(
        self, k: int, start: State, number: int, support: Support | None = None, rows: Any = None
    ) -> State:
        """Return what client `k` makes of `start` in a round; with a support, on its coordinates alone.

        Args:
            rows: other examples than its own.
        """
        examples: TokenisedExamples = self.parts[k] if rows is None else rows
        return self.trainer.train(
            examples,
            start,
            step_settings(self.setting, len(examples), self._plans[k]),
            stream=repeatable_stream(self.setting, number, k, "train"),
            trainable=self.contract.trains,
            support=None if support is None else self.masks(support),
        ).state

    def change(self, start: State, trained: State, number: int) -> Vector:
        """Return what a client uploads, flattened."""
        shared = Shared(self.setting.seed, number)
        return self.flat(self.method.upload(self.layout, start, trained, shared))

    def flat(self, arrays: Mapping[str, NDArray[Any]]) -> Vector:
        """Return what travels of named arrays as one vector."""
        return np.concatenate([arrays[name].ravel() for name in self.contract.uploads]).astype(np.float32)

    def named(self, vector: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return a vector as named arrays."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.contract.uploads.values()])
        pairs = zip(self.contract.uploads.items(), np.split(vector, ends[:-1]), strict=True)
        return {name: part.reshape(shape) for (name, shape), part in pairs}

    def masks(self, support: Support) -> dict[str, NDArray[np.bool_]]:
        """Return a support as named masks."""
        return self.named(support.scatter(np.ones(len(support), dtype=np.bool_)))

    def accuracy(self, examples: TokenisedExamples, state: State) -> float:
        """Return the accuracy of a state."""
        return self.trainer.evaluate(examples, state, max_tokens_per_microbatch=4096).value

    def spent(self) -> float | None:
        """Return the epsilon of the client that spent most, as the ledger's accountant prices all rounds."""
        return max((priced(plan) for plan in set(self._made())), default=None)

    def noise(self) -> float:
        """Return the largest noise multiplier."""
        return max((plan.noise_multiplier for plan in self._made()), default=0.0)

    def _made(self) -> list[Plan]:
        return [plan for plan in self._plans if plan is not None]


class Masked:
    """A server that sees sums: every support is shared, and the state moves by the mean change.

    The first scales are of one client's first round on validation rows, which stand for public ones.
    """

    def __init__(self, clients: Clients, public: TokenisedExamples) -> None:
        self._clients = clients
        self._state = clients.begun
        rehearsed = clients.trained(0, clients.begun, REHEARSER, rows=public)
        change = clients.change(clients.begun, rehearsed, 1).astype(np.float64)
        channels = lora_channels(clients.layout, clients.contract.uploads)
        spreads = np.sqrt(np.bincount(channels.index, change**2) / np.bincount(channels.index))
        floor = FLOOR * float(np.sqrt(np.mean(change**2)))
        self.uplink = Uplink(clients.setting, channels, np.maximum(spreads, floor))

    def round(self, number: int) -> None:
        """Run one round."""
        clients, setting = self._clients, self._clients.setting
        start = self._start()
        support = self.uplink.support(number) if setting.train == "support" else None
        changes = [
            clients.change(start, clients.trained(k, start, number, support), number)
            for k in range(setting.clients)
        ]
        mean = self.uplink.mean(number, changes) * setting.density**-setting.server_power
        sums = clients.named(mean * setting.clients)
        shared = Shared(setting.seed, number)
        self._state = clients.method.combine(clients.layout, self._state, sums, setting.clients, shared)

    def evaluated(self) -> State:
        """Return the state that the run ends with."""
        return self._state

    def _start(self) -> State:
        """Return what travels down: what has changed most since the beginning, the rest as it began."""
        density = self._clients.setting.download_density
        if density == 1:
            return self._state
        begun = self._clients.flat(self._clients.begun)
        moved = largest(self._clients.flat(self._state) - begun, density)
        start = begun + moved.onto(np.zeros_like(begun))
        return {**self._state, **self._clients.named(start)}


class Published:
    """FLASC as published, but for where its noise is drawn: at the clients, as everybody's here."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._state = flasc.FlascState(clients.flat(clients.begun))
        setting = clients.setting
        self._density = flasc.Density(setting.density, setting.density)
        self._optimizer = Adam(learning_rate=setting.server_rate, weight_decay=flasc.ADAMW.weight_decay)

    def round(self, number: int) -> None:
        """Run one round."""
        clients = [(self._training(k, number), self._density) for k in range(self._clients.setting.clients)]
        self._state = flasc.flasc_round(self._state, clients, optimizer=self._optimizer)

    def evaluated(self) -> State:
        """Return the masked state that FLASC reports."""
        return self._clients.named(self._state.evaluated(self._density.down))

    def _training(self, k: int, number: int) -> flasc.Train:
        """Return a client's training as a map of vectors."""

        def train(start: Vector) -> Vector:
            return self._clients.flat(self._clients.trained(k, self._clients.named(start), number))

        return train
