"""Would this trainer, on this machine, really train privately? Whole steps on made-up data, at no budget.

What is asked is the very thing that a run will use: its model where it lies, its engine and mode, its steps. After
the `preflight` of the engine:

- a step without noise, cut into microbatches, is the clipped sum of brute force over the planned batch size;
- a step of the run's own settings moves every trained array and nothing else;
- the noise that arrives in the parameters, on a batch and on empty batches, is the planned noise.

Everything is made up: tokens or pixels, adapters, and a secret stream that is thrown away. The model's state and
everybody's generators are as before afterwards.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlora_priv.adapters import read_state, trainable_parameters, write_state
from fedlora_priv.errors import ConfigError
from fedlora_priv.methods.layout import Role
from fedlora_priv.training.checks import StepCheck
from fedlora_priv.training.exactness import Gradients, clip, cut_to, difference, gradient_alone
from fedlora_priv.training.made_up import made_up_examples, made_up_state
from fedlora_priv.training.noise_check import NoiseReport, check_noise, steps_to_look_at
from fedlora_priv.training.penalty import Penalty
from fedlora_priv.training.preflight import LENGTHS, TOLERANCES, PreflightReport, preflight
from fedlora_priv.training.settings import StepSettings
from fedlora_priv.training.support import TrainSupport, coordinates
from fedlora_priv.training.trainer import ALL_ROLES, PrivateTrainer, TrainResult
from protocols.prg import SecretStream

_ENLARGED = 1e6
_NOISE_VALUES = 12_000_000  # as many are drawn in about two seconds


@dataclass(frozen=True)
class Rehearsal:
    """What was seen of a trainer that is fit to train privately.

    Attributes:
        preflight: how exact its clipped gradients are.
        step_error: between a whole step without noise and brute force, relative as in `preflight`.
        noise: what was seen of the noise; None if none was asked for.
        seconds: how long all of it took.
    """

    preflight: PreflightReport
    step_error: float
    noise: NoiseReport | None
    seconds: float

    def lines(self) -> list[str]:
        """Return what was seen, a line for each thing."""
        return [
            *self.preflight.lines(),
            f"a step equals brute force within {self.step_error:.0e}, moves all that is trained and nothing else",
            "no noise was asked for: NOT PRIVATE" if self.noise is None else f"noise: {self.noise}",
        ]


def rehearse(
    trainer: PrivateTrainer,
    settings: StepSettings,
    *,
    trainable: frozenset[Role] = ALL_ROLES,
    support: TrainSupport | None = None,
    penalty: Penalty | None = None,
) -> Rehearsal:
    """Return what was seen of a trainer that is fit to train privately with these settings.

    Args:
        trainer: the one that will train; as before afterwards, but that its next step is checked again.
        settings: the run's own; how many steps, and how large a batch, make no difference.
        trainable: the roles that the run will train.
        support: coordinates of their arrays, as the run will train in one of its rounds; None for all of them.
        penalty: on the weights, as in the run; steps that are held to the clipped sum or to the noise have none.

    Raises:
        ConfigError: DP-SGD on this model would not do what is claimed, or nothing could be learnt.
        EnvironmentProblem: the noise of its steps is not what it should be; wrong with probability 1e-9.
        FedloraError: a step leaves something unchanged that it should train, or the other way round; the penalty does
            not fit what is trained.
    """
    began = time.perf_counter()
    parameters = trainable_parameters(trainer.model)
    trained = {name: value for name, value in parameters.items() if trainer.layout.role(name) in trainable}
    if not trained:
        raise ConfigError(f"the model has nothing to train of the roles {sorted(trainable)}")
    seen = preflight(
        trainer.model,
        trained=trained,
        device=trainer.device,
        mode=settings.mode,
        clipping=settings.clipping,
        gradient_checkpointing=settings.gradient_checkpointing,
        support=support,
    )
    start = read_state(trainer.model)
    try:
        steps = _Steps(trainer, settings, trainable, trained, support)
        step_error = steps.require_exact(TOLERANCES[seen.base_dtype].exact)
        steps.require_changes(penalty)
        noise = steps.look_at_noise() if settings.noise_multiplier > 0 else None
    finally:
        trainer.check_next_step()
        write_state(trainer.model, start)
    return Rehearsal(seen, step_error, noise, time.perf_counter() - began)


class _Steps:
    """Steps of one trainer on three made-up examples, from one made-up state."""

    def __init__(
        self,
        trainer: PrivateTrainer,
        settings: StepSettings,
        trainable: frozenset[Role],
        trained: dict[str, nn.Parameter],
        support: TrainSupport | None,
    ) -> None:
        model: Any = trainer.model
        self._trainer, self._settings = trainer, settings
        self._trainable, self._support = trainable, support
        self._trained, self._parts = coordinates(trained, support)
        self._state = made_up_state(model)
        self._examples = made_up_examples(model, LENGTHS)
        write_state(model, self._state)
        self._scaled = [self._clipped_alone(i) for i in range(len(self._examples))]
        self._clipped = [cut_to(gradient, self._parts) for gradient in self._scaled]

    def require_exact(self, tolerance: float) -> float:
        """Return how far a step without noise, of two microbatches, is from brute force; raise if too far."""
        # Else parameters in float32 would round away most of what an array with small gradients moves by.
        settings = replace(self._plain(_ENLARGED), noise_multiplier=0.0)
        after = self._train(settings).state
        moved = {
            name: torch.from_numpy((self._state[name].astype(np.float64) - after[name]) / _ENLARGED)
            for name in self._trained
        }
        error = difference(moved, self._clipped, self._scaled)
        if not error <= tolerance:
            raise ConfigError(
                f"a step is not the clipped sum of its examples ({error:.1e})", "use another mode"
            )
        return error

    def require_changes(self, penalty: Penalty | None) -> None:
        """Take one step of the run's own settings; raise unless it changes what is trained and nothing else."""
        write_state(self._trainer.model, self._state)
        check = StepCheck(self._trainer.model, self._trained, self._parts)
        self._train(replace(self._settings, steps=1, sample_rate=1.0), penalty=penalty)
        check.require_changes(noised=True)  # no gradient is zero here, so that holds without noise too

    def look_at_noise(self) -> NoiseReport:
        """Return what was seen of the noise of a step on all examples, and of steps on none.

        Raises:
            EnvironmentProblem: it is not the noise that was planned.
        """
        sizes = {name: len(self._taken(name, p)) for name, p in self._trained.items()}
        stream, plain = SecretStream(), self._plain(1.0)
        known = sum(
            np.concatenate([self._taken(name, value).numpy() for name, value in part.items()])
            for part in self._clipped
        )
        write_state(self._trainer.model, self._state)
        start = self._flat()
        self._train(plain, stream)
        rows = [start - self._flat() - known]

        passed = [start]
        self._train(
            replace(plain, steps=steps_to_look_at(sizes, _NOISE_VALUES)), stream, empty=True,
            on_step=lambda _: passed.append(self._flat()),
        )  # fmt: skip
        rows += [before - after for before, after in itertools.pairwise(passed)]
        planned = self._settings.noise_multiplier  # these steps move by the noised sum over the clip norm
        return check_noise((np.stack(rows) / planned).astype(np.float32), sizes)

    def _clipped_alone(self, index: int) -> Gradients:
        """Return by brute force what an example adds to a step's sum, over the clip norm, before it is cut."""
        trainer, settings = self._trainer, self._settings
        example = self._examples.subset([index]).collate(trainer.device)
        gradient = gradient_alone(trainer.model, self._trained, example)
        cut = cut_to(gradient, self._parts)
        clipped = clip(cut, settings.clip_norm, settings.clipping, of=gradient)
        return {name: value.cpu() / settings.clip_norm for name, value in clipped.items()}

    def _plain(self, enlarged: float) -> StepSettings:
        """Return settings of a step with everybody, that moves by the noised sum over the clip norm, enlarged."""
        return replace(
            self._settings,
            steps=1,
            sample_rate=1.0,
            optimizer="sgd",
            learning_rate=enlarged * self._settings.planned_batch_size / self._settings.clip_norm,
            max_tokens_per_microbatch=2 * int(self._examples.lengths().max()),
            adaptive=None,  # a clip norm that moves would hide the size of the noise
        )

    def _train(
        self,
        settings: StepSettings,
        stream: SecretStream | None = None,
        *,
        empty: bool = False,
        penalty: Penalty | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> TrainResult:
        """Take these steps from the made-up state, on all the examples or on none."""
        return self._trainer.train(
            self._examples.subset([] if empty else range(len(self._examples))),
            self._state,
            settings,
            stream=SecretStream() if stream is None else stream,
            trainable=self._trainable,
            support=self._support,
            penalty=penalty,
            on_step=on_step,
        )

    def _flat(self) -> NDArray[np.float64]:
        """Return what is trained as it is now, in one vector."""
        values = [self._taken(name, p.detach()).double() for name, p in self._trained.items()]
        return torch.cat(values).cpu().numpy()

    def _taken(self, name: str, values: Tensor) -> Tensor:
        """Return the trained coordinates of one array, flat."""
        part = self._parts.get(name)
        return values.flatten() if part is None else values.flatten()[part.positions.to(values.device)]
