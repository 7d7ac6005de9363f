"""One run of the methods study: a setting in, a line of results out.

Every client trains with `PrivateTrainer`; the method's uploads are summed in float64, or as the integers that would
travel masked (`Setting.value_bits`). All randomness comes from the setting's seed, so a run can be repeated: it is
a measurement, and nothing it publishes is protected.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from accounting.planning import Plan, plan
from accounting.pricing import epsilon
from benchmarks.methods_list import build, ranks
from benchmarks.methods_task import Name, Partition, StudyTask
from benchmarks.resumable import stored_as
from fedlora_priv.adapters import read_state
from fedlora_priv.methods import residual
from fedlora_priv.methods.base import Method, Shared
from fedlora_priv.methods.errors import MethodError
from fedlora_priv.methods.layout import Layout, LoraModule, State
from fedlora_priv.methods.thin import Thin, plus
from fedlora_priv.modeling import add_squares
from fedlora_priv.precision import BaseDtype
from fedlora_priv.training import PrivateTrainer, StepSettings, TokenisedExamples
from protocols.prg import SecretStream
from protocols.quantise import Quantiser

Arrays = dict[str, NDArray[np.float32]]
Sum = NDArray[np.float64]
Sums = dict[str, Sum]

NO_CLIPPING = 1e6
"""A clip norm that no gradient reaches: the runs without DP."""

JUDGED = (1, 2, 3, 5, 10)
"""The rounds after which the test rows are looked at."""

STILL = 1e-5
"""A mean product that moves by less than this part of itself has not moved: float32 shows no more."""

SMALLEST_BOUND = 1e-12
"""Of a quantised array that is all zeros."""


@dataclass(frozen=True)
class Setting:
    """Everything that a run depends on.

    Args:
        epsilon: what each client may spend in the whole run at `delta`; None for neither noise nor clipping.
        rounds, steps: rounds, and each client's DP-SGD steps in one.
        batch: the mean size of the Poisson batches, at every client.
        seed: of initialisation, partition, batches and noise.
        value_bits: sum integers of so many bits, as they travel masked; None sums float64.
    """

    dataset: Name
    method: str
    learning_rate: float
    epsilon: float | None
    partition: Partition
    seed: int
    clients: int = 5
    rounds: int = 10
    steps: int = 3
    batch: int = 64
    clip_norm: float = 1.0
    delta: float = 1e-5
    rank: int = 8
    alpha: float = 16.0
    optimizer: str = "sgd"
    upper_layers: int = 1
    targets: tuple[str, ...] = ("query", "value")
    base_dtype: BaseDtype = "bfloat16"
    value_bits: int | None = None

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Return the setting that `asdict` and JSON made `stored` of; what else is there is ignored."""
        return stored_as(cls, stored)


def run(setting: Setting, task: StudyTask, judged: Sequence[int]) -> dict[str, Any]:
    """Return what one run gave.

    accuracy: on the test rows, by round, after each of the rounds `judged`. validation: on the held-out rows, at the
    end. lost: by round, how far the state is from the mean of the clients' products, relative to how far that mean
    moved. least: the same for the best rank-r state there is. spent: epsilon of the client that spent most.
    coordinates: what a client uploads, mean over the rounds. A run that diverges is as good as none: validation 0.
    """
    began = time.process_time()
    federation = Federation(setting, task)
    accuracy: dict[int, float] = {}
    losses: dict[int, tuple[float, float]] = {}
    validation = 0.0
    with suppress(MethodError):  # a NaN in what was trained
        for number in range(1, setting.rounds + 1):
            if (loss := federation.round(number)) is not None:
                losses[number] = loss
            if number in judged:
                accuracy[number] = federation.accuracy(task.test)
        validation = federation.accuracy(task.validation)
    return {
        "accuracy": accuracy,
        "validation": validation,
        "lost": {number: lost for number, (lost, _) in losses.items()},
        "least": {number: least for number, (_, least) in losses.items()},
        "spent": federation.spent(),
        "noise": federation.noise(),
        "coordinates": federation.coordinates(),
        "cpu_minutes": (time.process_time() - began) / 60,
    }


@dataclass
class Client:
    """One client of a run; `own` is what it last trained."""

    number: int
    examples: TokenisedExamples
    plan: Plan | None
    method: Method
    trainer: PrivateTrainer
    own: State

    def start(self, layout: Layout, state: State, shared: Shared) -> Arrays:
        """Return what it trains from: what stays at home in this method is its own, the rest global."""
        method = self.method.at(shared.round)
        home = method.contract(layout).stays_home
        start = dict(method.start(layout, state, shared))
        return start | {name: array for name, array in self.own.items() if layout.role(name) in home}

    def train(self, layout: Layout, state: State, shared: Shared, setting: Setting) -> None:
        """Take one round's steps."""
        contract = self.method.at(shared.round).contract(layout)
        result = self.trainer.train(
            self.examples,
            self.start(layout, state, shared) | _residual(layout, state),
            step_settings(setting, len(self.examples), self.plan),
            stream=repeatable_stream(setting, shared.round, self.number, "train"),
            trainable=contract.trains,
        )
        self.own = result.state


class Federation:
    """The clients and the global state of one run."""

    def __init__(self, setting: Setting, task: StudyTask) -> None:
        self._setting = setting
        own_ranks = ranks(setting.method, setting.rank, setting.clients)
        trainers = {rank: make_trainer(setting, task, rank) for rank in {setting.rank, *own_ranks}}
        self._judge = trainers[setting.rank]
        self._layout = self._judge.layout
        self._method = build(setting.method, setting.rounds)
        initial = read_state(self._judge.model)
        self._state: State = self._method.begin(self._layout, initial, Shared(setting.seed, 1))
        self._clients = [
            Client(
                number,
                part,
                client_plan(setting, len(part)),
                self._method.at_client(trainers[rank].layout),
                trainers[rank],
                self._state,
            )
            for number, (part, rank) in enumerate(
                zip(task.clients(setting.clients, setting.partition, setting.seed), own_ranks, strict=True)
            )
        ]

    def round(self, number: int) -> tuple[float, float] | None:
        """Run one round and return what was lost of the mean product, and the least possible at the state's rank.

        None where clients share no product, or have not moved it.
        """
        shared, before = Shared(self._setting.seed, number), self._state
        for client in self._clients:
            client.train(self._layout, before, shared, self._setting)
        sums, last = self._sums(shared)
        method = self._method.at(number)
        self._state = method.combine(self._layout, before, sums, len(self._clients), last)
        home = method.contract(self._layout).stays_home
        return None if home else self._lost(before)

    def accuracy(self, examples: TokenisedExamples) -> float:
        """Return the accuracy of the global model; where arrays stay at home, the mean over the clients' own."""
        shared = Shared(self._setting.seed, self._setting.rounds)
        if not self._method.contract(self._layout).stays_home:
            states = [dict(self._state)]
        else:
            states = [client.start(self._layout, self._state, shared) for client in self._clients]
        values = [self._judge.evaluate(examples, s, max_tokens_per_microbatch=4096).value for s in states]
        return float(np.mean(values))

    def spent(self) -> float | None:
        """Return the epsilon of the client that spent most, as the ledger's accountant prices all rounds."""
        plans = {client.plan for client in self._clients if client.plan is not None}
        return max((priced(planned) for planned in plans), default=None)

    def noise(self) -> list[float]:
        """Return each client's noise multiplier."""
        return [0.0 if c.plan is None else c.plan.noise_multiplier for c in self._clients]

    def coordinates(self) -> float:
        """Return how many coordinates a client uploads in a round, mean over the rounds."""
        rounds = range(1, self._setting.rounds + 1)
        contracts = [self._method.at(number).contract(self._layout) for number in rounds]
        return float(np.mean([contract.round_dimension for contract in contracts]))

    def _sums(self, shared: Shared) -> tuple[Sums, Shared]:
        """Return the sums of all the round's exchanges, and what was shared in the last."""
        method = self._method.at(shared.round)
        sums: Sums = {}
        while True:
            sums |= _summed(self._uploads(shared), self._setting, shared)
            announced = method.announce(self._layout, self._state, sums, len(self._clients), shared)
            if announced is None:
                return sums, shared
            shared = replace(shared, exchange=shared.exchange + 1, announced=announced)

    def _uploads(self, shared: Shared) -> list[Arrays]:
        """Return every client's arrays of one exchange."""
        return [
            client.method.at(shared.round).upload(self._layout, self._state, client.own, shared)
            for client in self._clients
        ]

    def _lost(self, before: State) -> tuple[float, float] | None:
        """Return ‖mean product − what the state holds‖ / ‖mean product − what it held‖, and the least at its rank.

        All modules together; the least is without a residual, which has no rank. None where nothing has moved.
        """
        squares = np.zeros(4)
        for i, module in enumerate(self._layout.modules):
            layouts = [client.trainer.layout.modules[i] for client in self._clients]
            mean = _mean([_product(m, client.own) for m, client in zip(layouts, self._clients, strict=True)])
            total = plus(mean, residual.kept(module, before)).dense()
            now, then = (
                plus(_product(module, state), residual.kept(module, state)) for state in (self._state, before)
            )
            tail = mean.svd(min(mean.left.shape[2], module.out_features, module.in_features)).singular[
                0, module.rank :
            ]
            missed, moved = (np.square(total - product.dense()).sum() for product in (now, then))
            squares += (missed, moved, np.square(tail).sum(), np.square(total).sum())
        missed, moved, least, size = np.sqrt(squares)
        return (float(missed / moved), float(least / moved)) if moved > STILL * size else None


def _mean(products: Sequence[Thin]) -> Thin:
    """Return the mean of thin products, thin."""
    left = np.concatenate([product.left for product in products], axis=2) / len(products)
    return Thin(left, np.concatenate([product.right for product in products], axis=1))


def _product(module: LoraModule, state: State) -> Thin:
    """Return s·B·A, or s·B·R·A where there is an R; L = 1."""
    right = state[module.a_name].astype(np.float64)
    if module.r_name in state:
        right = state[module.r_name] @ right
    return Thin(module.scaling * state[module.b_name].astype(np.float64)[None], right[None])


def _residual(layout: Layout, state: State) -> Arrays:
    """Return what a method has added to the base weights."""
    return {name: array for name, array in state.items() if layout.role(name) == "base"}


def make_trainer(setting: Setting, task: StudyTask, rank: int) -> PrivateTrainer:
    """Return a trainer of the study's model at one rank, with the same scaling at each."""
    alpha = setting.alpha * rank / setting.rank
    model = task.model(rank, alpha, setting.targets, setting.base_dtype, setting.seed)
    if setting.method == "fed-sb":
        add_squares(model)
    return PrivateTrainer(model)


def step_settings(setting: Setting, examples: int, planned: Plan | None) -> StepSettings:
    """Return one round's steps of a client."""
    return StepSettings(
        steps=setting.steps,
        sample_rate=setting.batch / examples,
        planned_batch_size=setting.batch,
        noise_multiplier=0.0 if planned is None else planned.noise_multiplier,
        clip_norm=NO_CLIPPING if planned is None else setting.clip_norm,
        learning_rate=setting.learning_rate,
        optimizer=setting.optimizer,
    )


def client_plan(setting: Setting, examples: int) -> Plan | None:
    """Return a client's plan; None without DP."""
    if setting.epsilon is None:
        return None
    return _planned(
        setting.epsilon,
        setting.delta,
        examples,
        setting.batch,
        setting.rounds,
        setting.steps,
        setting.clip_norm,
    )


@lru_cache(maxsize=4096)
def _planned(
    target: float, delta: float, examples: int, batch: int, rounds: int, steps: int, clip_norm: float
) -> Plan:
    """Return the plan of a client with so many examples; kept, for many runs share it."""
    return plan(
        client_id="a client of the study",
        target_epsilon=target,
        delta=delta,
        declared_examples=examples,
        planned_batch_size=batch,
        rounds=rounds,
        steps_per_round=steps,
        clip_norm=clip_norm,
    )


@lru_cache(maxsize=4096)
def priced(planned: Plan) -> float:
    """Return the epsilon of all rounds of a plan; kept, as plans are."""
    return epsilon([planned.round_event()] * planned.rounds, planned.delta)


def repeatable_stream(setting: Setting, *labels: object) -> SecretStream:
    """Return randomness that seed and labels decide: the same for every method, and a run can be repeated."""
    return SecretStream(hashlib.sha256(repr(("methods study", setting.seed, *labels)).encode()).digest())


def _summed(uploads: list[Arrays], setting: Setting, shared: Shared) -> Sums:
    """Return the sums over clients: in float64, or of the integers that would travel masked."""
    if setting.value_bits is None:
        return {name: np.sum([u[name].astype(np.float64) for u in uploads], axis=0) for name in uploads[0]}
    return {name: _ring_sum(name, uploads, setting, shared) for name in uploads[0]}


def _ring_sum(name: str, uploads: list[Arrays], setting: Setting, shared: Shared) -> Sum:
    """Return one array's sum as secure aggregation gives it: quantised, added modulo 2^b, read back.

    The bound is the largest magnitude of all; a federation takes it from earlier sums.
    """
    assert setting.value_bits is not None
    bound = max(float(np.abs(u[name]).max()) for u in uploads)
    quantiser = Quantiser(max(bound, SMALLEST_BOUND), setting.value_bits, len(uploads))
    total = np.zeros(uploads[0][name].size, dtype=np.uint32)
    for k, upload in enumerate(uploads):
        total += quantiser.quantise(
            upload[name].ravel(), repeatable_stream(setting, shared.round, k, shared.exchange, name)
        )
    total &= np.uint32(2**quantiser.modulus_bits - 1)
    return quantiser.dequantise_sum(total).reshape(uploads[0][name].shape)
