"""One model, many clients: swap a client's start state in, take private steps, read the noised state out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from accounting.private_audit import StepRecord
from fedlora_priv.adapters import layout, read_trained, trainable_parameters, write_state
from fedlora_priv.errors import ConfigError
from fedlora_priv.methods.layout import Role, State
from fedlora_priv.modeling import refuse_batch_norm
from fedlora_priv.precision import refuse_emulated_bfloat16, resolve_device
from fedlora_priv.training.adaptive import ClipNorm
from fedlora_priv.training.batching import microbatches
from fedlora_priv.training.checks import StepCheck, require_exact_counts, require_in_place, require_unfrozen
from fedlora_priv.training.clipping import (
    ClipCounts,
    ClippingEngine,
    EngineChoice,
    choose_engine,
    per_example_clipping,
)
from fedlora_priv.training.dpsgd import SecretNoiseOptimizer, make_optimizer
from fedlora_priv.training.evaluation import Evaluation, evaluate
from fedlora_priv.training.examples import Batch, Examples
from fedlora_priv.training.fitting import refuse_unfit
from fedlora_priv.training.losses import model_losses
from fedlora_priv.training.made_up import made_up_examples
from fedlora_priv.training.penalty import Penalty, add_gradient
from fedlora_priv.training.preflight import LENGTHS, require_numbers
from fedlora_priv.training.refusals import refuse_training_mode, require_peft
from fedlora_priv.training.sampling import poisson_draw
from fedlora_priv.training.settings import StepSettings
from fedlora_priv.training.support import Coordinates, TrainSupport, coordinates, require_unmoved
from protocols.prg import SecretStream

ALL_ROLES: frozenset[Role] = frozenset({"A", "B", "head"})
"""What plain LoRA trains; Fed-SB's model has an R as well (`modeling.add_squares`)."""


@dataclass(frozen=True)
class TrainResult:
    """A noised state, which may leave the client, and a private audit record, which may not.

    Attributes:
        state: every trainable array, float32, without base residuals; what was frozen is bit-identical to the start.
        steps_taken: steps really executed, noise-only ones included.
        dimension: how many coordinates were trained, so noised.
        clip_norm: what a next step would clip to; public.
        private_audit: one record per step, for the client's own auditor. PRIVATE.
    """

    state: dict[str, NDArray[np.float32]] = field(repr=False)
    steps_taken: int
    dimension: int
    clip_norm: float
    private_audit: tuple[StepRecord, ...] = field(repr=False)


class PrivateTrainer:
    """Trains the LoRA and head of one model with DP-SGD, for any number of clients in turn.

    Args:
        model: a PEFT model, as `modeling.load_model` gives it; its trainables are float32. The trainer moves
            it to `device` and uses it alone: do not train or move it elsewhere meanwhile.
        device: a torch device, or its name, "auto" included; see `precision.resolve_device`.

    Raises:
        ConfigError: the model cannot be trained privately.
    """

    def __init__(self, model: Any, *, device: str | torch.device = "cpu") -> None:
        require_peft(model)
        refuse_batch_norm(model)
        self.device = resolve_device(device) if isinstance(device, str) else device
        refuse_emulated_bfloat16(model, self.device)
        self.model: nn.Module = model.to(self.device).eval()
        self.layout = layout(model)
        self._verified: set[tuple[frozenset[str], bool]] = set()
        require_in_place(model, self.device)
        require_numbers(model, made_up_examples(model, LENGTHS).collate(self.device))

    def train(
        self,
        examples: Examples,
        start_state: State,
        settings: StepSettings,
        *,
        stream: SecretStream,
        trainable: frozenset[Role] = ALL_ROLES,
        support: TrainSupport | None = None,
        penalty: Penalty | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> TrainResult:
        """Return the state after private steps from `start_state` on one client's examples.

        Args:
            examples: the client's, private.
            start_state: all trainable arrays, and the base residuals where there are any; not modified.
            settings: the public constants of the steps.
            stream: the client's secret randomness, for batches and noise.
            trainable: roles that are trained; the others are frozen, noise-free and come back bit-identical.
            support: public coordinates of each array of these roles, to train those alone: gradients are cut to them
                before they are clipped, and nothing else gets noise or moves; see `support`. None trains all.
            penalty: gives a gradient by the weights alone, which is added to the noised one: a public function, or what
                is guaranteed here does not hold; see `penalty`.
            on_step: called with 1, 2, ... after each step.

        Guarantee:
            The state is the result of ``settings.steps`` adaptive Poisson-subsampled Gaussian mechanisms at
            the settings' sample rate and noise multiplier under add/remove of one example; everything
            returned but `private_audit` is post-processing of them.

        Raises:
            ConfigError: nothing to train, or a mode or a support that does not fit the model.
            DataError: a label, token or length that the model has no place for.
            FedloraError: something is not trained that should be, or the other way round; a penalty's gradient does not
                fit what is trained.
        """
        if settings.adaptive is not None:
            require_exact_counts(self.model)
        trained, parts = coordinates(self._trained(trainable), support)
        refuse_unfit(self.model, examples)
        write_state(self.model, start_state)
        optimizer = _noising(settings, trained, parts, stream)
        clip_norm, records = ClipNorm(settings, stream), []
        with per_example_clipping(
            self.model,
            trained,
            mode=settings.mode,
            clipping=settings.clipping,
            gradient_checkpointing=settings.gradient_checkpointing,
            parts=parts,
        ) as engine:
            for step in range(1, settings.steps + 1):
                with self._verifying(
                    trained, parts, whole=support is None, noised=settings.noise_multiplier > 0
                ):
                    drawn = examples.subset(poisson_draw(stream, len(examples), settings.sample_rate))
                    records.append(self._noised(engine, optimizer, drawn, settings, clip_norm))
                    if penalty is not None:
                        add_gradient(penalty, trained, parts)
                    optimizer.original_optimizer.step()
                if on_step is not None:
                    on_step(step)
                    refuse_training_mode(self.model, trained)
        state = read_trained(self.model)
        if support is not None:
            require_unmoved(start_state, state, support)
        dimension = sum(len(parts.get(name, p.flatten())) for name, p in trained.items())
        return TrainResult(state, settings.steps, dimension, clip_norm.value, tuple(records))

    @contextmanager
    def _verifying(
        self,
        trained: Mapping[str, nn.Parameter],
        parts: Mapping[str, Coordinates],
        *,
        whole: bool,
        noised: bool,
    ) -> Iterator[None]:
        """Check what the step in the block has changed, if it is the first of its kind here."""
        kind = (frozenset(trained), whole)
        if kind in self._verified:
            yield
            return
        check = StepCheck(self.model, trained, parts)
        yield
        check.require_changes(noised=noised)
        self._verified.add(kind)

    def engine(self, settings: StepSettings, trainable: frozenset[Role] = ALL_ROLES) -> EngineChoice:
        """Return which clipping engine `train` would use, and why.

        Raises:
            ConfigError: the mode that the settings ask for does not fit the model.
        """
        return choose_engine(self.model, self._trained(trainable), settings.mode)

    def check_next_step(self) -> None:
        """Have the next step's changes checked as those of the first were: what is trained, and nothing else."""
        self._verified.clear()

    def evaluate(
        self,
        examples: Examples,
        state: State | None = None,
        *,
        max_tokens_per_microbatch: int = 1024,
    ) -> Evaluation:
        """Return accuracy, or for next-token prediction perplexity; for public examples only.

        Args:
            examples: a figure on private examples would be a release outside any guarantee.
            state: written to the model first, if given.
            max_tokens_per_microbatch: padded tokens computed at once.

        Raises:
            DataError: there is nothing to predict, or a label, token or length that the model has no place for.
        """
        refuse_unfit(self.model, examples)
        if state is not None:
            write_state(self.model, state)
        return evaluate(self.model.eval(), self._microbatches(examples, max_tokens_per_microbatch))

    def _trained(self, roles: frozenset[Role]) -> dict[str, nn.Parameter]:
        """Return the parameters of the roles to train, and refuse a model that moved or lost its float32."""
        if not roles or not roles <= ALL_ROLES | {"R"}:
            raise ConfigError(f"trainable must name some of A, B, R and head, not {sorted(roles)}")
        parameters = trainable_parameters(self.model)
        if any(p.device.type != self.device.type or p.dtype != torch.float32 for p in parameters.values()):
            raise ConfigError("the model was moved or cast after its trainer was built", "build a new one")
        require_unfrozen(parameters.values())
        trained = {name: p for name, p in parameters.items() if self.layout.role(name) in roles}
        if not trained:
            raise ConfigError(f"the model has nothing of the roles {sorted(roles)} to train")
        if "R" in roles and not any(self.layout.role(name) == "R" for name in trained):
            raise ConfigError("the model has no R to train", "add it with fedlora_priv.modeling.add_squares")
        return trained

    def _noised(
        self,
        engine: ClippingEngine,
        optimizer: SecretNoiseOptimizer,
        drawn: Examples,
        settings: StepSettings,
        clip_norm: ClipNorm,
    ) -> StepRecord:
        """Set the noised gradients of a step on the drawn examples; with none of them, noise alone."""
        optimizer.zero_grad(set_to_none=True)
        optimizer.max_grad_norm = clip_norm.value
        counts = []
        for batch in self._microbatches(drawn, settings.max_tokens_per_microbatch):
            counts.append(engine.add(partial(model_losses, batch=batch), clip_norm.value))
        sums = optimizer.clipped_sums()
        optimizer.pre_step()
        record = step_record(len(drawn), counts, sums, optimizer)
        return replace(record, count=clip_norm.follow(counts))

    def _microbatches(self, examples: Examples, max_tokens: int) -> Iterator[Batch]:
        """Yield the tensors of each microbatch; nothing for no examples."""
        for indices in microbatches(examples.lengths(), max_tokens):
            yield examples.subset(indices).collate(self.device)


def _noising(
    settings: StepSettings,
    trained: Mapping[str, nn.Parameter],
    parts: Mapping[str, Coordinates],
    stream: SecretStream,
) -> SecretNoiseOptimizer:
    """Return the optimizer that the settings ask for, which adds noise to what is trained before it steps."""
    return SecretNoiseOptimizer(
        make_optimizer(settings.optimizer, list(trained.values()), settings.learning_rate),
        stream=stream,
        noise_multiplier=settings.noise_multiplier,
        clip_norm=settings.clip_norm,
        planned_batch_size=settings.planned_batch_size,
        parts=[parts.get(name) for name in trained],
    )


def step_record(
    batch_size: int, counts: Sequence[ClipCounts], sums: Sequence[Tensor], optimizer: SecretNoiseOptimizer
) -> StepRecord:
    """Return what a step did, its noise measured on the gradients that it applied."""
    noise = [
        parameter.grad.double() * optimizer.expected_batch_size - total
        for parameter, total in zip(optimizer.params, sums, strict=True)
    ]
    return StepRecord(
        batch_size=batch_size,
        clipped=sum(count.clipped for count in counts),
        non_finite=sum(count.non_finite for count in counts),
        largest_norm=max((count.largest_norm for count in counts), default=0.0),
        sum_norm=math.sqrt(sum(float(total.square().sum()) for total in sums)),
        noise_squares=sum(float(part.square().sum()) for part in noise),
        largest_noise=max(float(part.abs().max()) for part in noise),
        noise_digest=optimizer.noise_digest,
    )
