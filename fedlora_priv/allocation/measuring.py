"""What private steps of parts of a model take on this machine, measured: for a `CostModel`, on made-up rows.

The steps are a run's own: its model where it lies, its engine, noise and optimizer. One microbatch of rows as long as
they may be decides the memory; a step's time is that of as many microbatches as the batch has. Where nothing tells
how much memory was needed at the most (neither a GPU nor /proc), the process' largest ever stands for every part, and
the model says that all parts need the same: safe, and of little use.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedlora_priv.adapters import read_state, trainable_parameters, write_state
from fedlora_priv.allocation.cost import CostModel, Measurement
from fedlora_priv.allocation.errors import AllocationError
from fedlora_priv.allocation.layers import layers_of
from fedlora_priv.memory import peak_bytes, reset_peak
from fedlora_priv.methods.layout import Role
from fedlora_priv.training import PrivateTrainer, StepSettings
from fedlora_priv.training.made_up import made_up_examples
from fedlora_priv.training.support import TrainSupport
from fedlora_priv.training.trainer import ALL_ROLES
from protocols.prg import SecretStream

REPEATS = 5
"""All parts are measured by turns, so many times; the fastest step counts, and the largest memory."""

ENOUGH_S = 4.0
"""No further turn begins after so many seconds."""


@dataclass(frozen=True)
class Measured:
    """What was measured, and the model that fits it.

    Attributes:
        cost: the numbers of a step of `rows` rows of `length` tokens.
        parts: all layers, the upper half, the top one, the lowest one; those that are the same once.
    """

    cost: CostModel
    parts: tuple[Measurement, ...]
    rows: int
    length: int


def measure(
    trainer: PrivateTrainer,
    settings: StepSettings,
    *,
    rows: int,
    length: int,
    trainable: frozenset[Role] = ALL_ROLES,
) -> Measured:
    """Return what parts of a trainer's model cost here, in bytes and in seconds of a step; costs no budget.

    Args:
        trainer: the one that will train; its state is as before afterwards.
        settings: the run's own.
        rows: of a step.
        length: of a row, in tokens.
        trainable: roles that the run trains.

    Raises:
        AllocationError: the model's layers cannot be told apart, or it has only one.
    """
    layers = layers_of(trainer.layout)
    if len(layers) < 2:
        raise AllocationError("the model has a single adapted layer", "there are no parts of it to deal out")
    count, rank = len(layers), max(module.rank for module in trainer.layout.modules)
    at_once = max(1, min(rows, settings.max_tokens_per_microbatch // length))
    steps = _Steps(trainer, settings, trainable, at_once, length)
    chosen = ((count - 1,), (0,), tuple(range(count // 2, count)), tuple(range(count)))
    start = read_state(trainer.model)
    try:
        costs = steps.costs(tuple(dict.fromkeys(chosen)))
    finally:
        trainer.check_next_step()
        write_state(trainer.model, start)
    parts = tuple(
        Measurement(held, rank, peak, seconds * rows / at_once) for held, (peak, seconds) in costs.items()
    )
    return Measured(CostModel.measured(trainer.layout, parts), parts, rows, length)


class _Steps:
    """Steps of one trainer on one microbatch of made-up rows."""

    def __init__(
        self,
        trainer: PrivateTrainer,
        settings: StepSettings,
        trainable: frozenset[Role],
        rows: int,
        length: int,
    ) -> None:
        self._trainer, self._trainable = trainer, trainable
        self._settings = replace(settings, steps=1, sample_rate=1.0)
        self._examples = made_up_examples(trainer.model, (length,) * rows)
        self._start = read_state(trainer.model)
        self._layers = layers_of(trainer.layout)

    def costs(self, parts: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[float, float]]:
        """Return the largest memory and the fewest seconds of a step that trains these layers, for each part."""
        self.take(parts[-1])  # brings in kernels, and what they keep for every shape
        began, taken = time.perf_counter(), dict.fromkeys(parts, (0.0, math.inf))
        for _ in range(REPEATS):
            for held, (peak, least) in taken.items():
                reset_peak(self._trainer.device)
                seconds = self.take(held)
                taken[held] = max(peak, peak_bytes(self._trainer.device)), min(least, seconds)
            if time.perf_counter() - began > ENOUGH_S:
                break
        return taken

    def take(self, held: Sequence[int]) -> float:
        """Return the seconds of one step that trains these layers."""
        modules = {module.name for layer in held for module in self._layers[layer].modules}
        support = support_of_modules(self._trainer, self._trainable, modules)
        began = time.perf_counter()
        self._trainer.train(
            self._examples, self._start, self._settings,
            stream=SecretStream(), trainable=self._trainable, support=support,
        )  # fmt: skip
        return time.perf_counter() - began


def support_of_modules(
    trainer: PrivateTrainer, trainable: frozenset[Role], modules: Collection[str]
) -> TrainSupport:
    """Return the support of steps that train these modules whole, the head, and nothing of the others."""
    layout = trainer.layout
    return {
        name: np.full(tuple(array.shape), layout.belongs(name, modules))
        for name, array in trainable_parameters(trainer.model).items()
        if layout.role(name) in trainable
    }
