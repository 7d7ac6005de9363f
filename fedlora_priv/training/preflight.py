"""Does this model, on this machine, give the per-example gradients that DP-SGD needs? Asked at no budget.

On made-up examples and random adapters the clipping engine that will be used is compared with brute force: its
gradients, its clipped sums and norms, and whether an example's gradient stays the same when its companions change.
`rehearsal` asks this and then takes whole steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedlora_priv.adapters import read_state, trainable_parameters, write_state
from fedlora_priv.errors import ConfigError
from fedlora_priv.methods.layout import State
from fedlora_priv.training.checks import base_dtype, require_in_place
from fedlora_priv.training.clipping import Clipping, Mode, per_example_clipping
from fedlora_priv.training.exactness import (
    UNCLIPPED,
    Exactness,
    distance,
    engine_sum,
    gradient_alone,
    measure,
)
from fedlora_priv.training.examples import Batch, Examples
from fedlora_priv.training.losses import BatchLosses, model_losses
from fedlora_priv.training.made_up import made_up_examples, made_up_state
from fedlora_priv.training.refusals import refuse_context, require_peft
from fedlora_priv.training.support import TrainSupport, coordinates

_APART = (5, 29, 11)  # padding to very different widths brings rounding out
LENGTHS = (3, 14, 5)  # of two padded widths, so that padding that counts shows


@dataclass(frozen=True)
class Tolerances:
    """How large the errors of `Exactness` may be.

    Attributes:
        exact: of gradients, sums and norms at one padded width.
        padding: where the padding is wider than in training.
        companions: what clipping does not bound, so the strictest.
    """

    exact: float
    padding: float
    companions: float


TOLERANCES = {"float32": Tolerances(1e-3, 1e-3, 1e-5), "bfloat16": Tolerances(3e-2, 1e-1, 2e-3)}
"""By the precision of the frozen weights: about ten times what rounding was seen to do (docs/decisions/0038)."""

_COUPLING = {"float32": 1e-4, "bfloat16": 3e-2}  # 1e-6 and 1e-2 were seen at honest states, 1 at hostile ones


@dataclass(frozen=True)
class PreflightReport(Exactness):
    """How exact an engine is on a model, and what was looked at; all errors as in `Exactness`.

    Attributes:
        engine, reason: the clipping engine, and why this one.
        clipping: "flat" or "per-layer".
        device, base_dtype: where the model lies, and in what precision its frozen part is.
        gradient_checkpointing: whether activations were computed twice instead of kept.
    """

    engine: str
    reason: str
    clipping: str
    device: str
    base_dtype: str
    gradient_checkpointing: bool

    def setting(self) -> str:
        """Return what was looked at, as one line."""
        reason = f" ({self.reason})" if self.reason else ""
        twice = ", activations computed twice" if self.gradient_checkpointing else ""
        return (
            f"{self.clipping} clipping by the {self.engine} engine{reason}, on {self.device}, frozen weights "
            f"in {self.base_dtype}{twice}"
        )

    def lines(self) -> list[str]:
        """Return what was seen, a line for each thing."""
        return [
            f"gradients of single examples equal brute force within {self.brute_force_error:.0e}, {self.arrays} arrays",
            f"clipped sums equal brute force within {self.clipped_error:.0e}, norms within {self.norm_error:.0e}",
            f"companions change an example's gradient by {self.companion_error:.0e} of its norm",
        ]


def preflight(
    model: Any,
    *,
    trained: Mapping[str, nn.Parameter] | None = None,
    device: str | torch.device = "cpu",
    examples: Examples | None = None,
    losses: BatchLosses = model_losses,
    mode: Mode = "auto",
    clipping: Clipping = "flat",
    gradient_checkpointing: bool = False,
    support: TrainSupport | None = None,
) -> PreflightReport:
    """Return how exact the model's clipped gradients are; its state is as before afterwards.

    Args:
        model: a PEFT model, as `modeling.load_model` gives it, already on `device`.
        trained: the parameters to train, by state name; by default all adapters and the head.
        device: where to compute.
        examples: three public examples as `exactness.measure` takes them, no array's gradient zero; by default
            made up.
        losses: what is differentiated.
        mode, clipping, gradient_checkpointing: as in `StepSettings`.
        support: the coordinates of `trained` that are to be trained, if not all; as in `PrivateTrainer.train`.

    Raises:
        ConfigError: the model was moved or cast, has no finite loss, or a difference is above its `TOLERANCES`: DP-SGD
            on this model would not do what is claimed.
    """
    device = torch.device(device)
    require_peft(model)
    refuse_context()
    require_in_place(model, device)
    trained, parts = coordinates(trainable_parameters(model) if trained is None else trained, support)
    examples = made_up_examples(model, LENGTHS) if examples is None else examples
    start = read_state(model)
    require_numbers(model, examples.collate(device), losses)
    try:
        write_state(model, made_up_state(model))
        alone = [
            gradient_alone(model, trained, examples.subset([i]).collate(device), losses)
            for i in range(len(examples))
        ]
        with per_example_clipping(
            model,
            trained,
            mode=mode,
            clipping=clipping,
            gradient_checkpointing=gradient_checkpointing,
            parts=parts,
        ) as engine:
            seen = measure(engine, trained, examples, alone, clipping, device, losses, parts)
    finally:
        write_state(model, start)
    precision = base_dtype(model)
    _require_exact(seen, TOLERANCES[precision])
    return PreflightReport(
        **vars(seen), engine=engine.name, reason=engine.reason, clipping=clipping, device=str(device),
        base_dtype=precision, gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip


def coupling(
    model: Any, state: State, *, device: str | torch.device = "cpu", support: TrainSupport | None = None
) -> float:
    """Return how much an example's gradient at `state` depends on its companions, relative L2; nan if not finite.

    DP-SGD's sensitivity rests on clipped gradients that do not depend on other examples. That holds up to
    rounding, and a state with enormous entries, such as a hostile server could send, amplifies rounding (of
    padding, of batch shapes) up to the size of the gradient itself. Asked on made-up tokens: no private data.
    Companions of another padded width are among those asked about, though training has none. With a `support` of some
    of the arrays, only what it has is asked about: nothing else would be trained, and all that is clipped is that.
    """
    device, start, examples = torch.device(device), read_state(model), made_up_examples(model, _APART)
    parameters = trainable_parameters(model)
    asked = {name: p for name, p in parameters.items() if support is None or name in support}
    trained, parts = coordinates(asked, support)
    cases = (([0, 1], [1.0, 0.0]), ([2, 0], [0.0, 1.0]))
    try:
        write_state(model, state)
        with per_example_clipping(model, trained, parts=parts) as engine:
            first, second = (
                engine_sum(engine, trained, examples.subset(pair).collate(device), UNCLIPPED, weights)[0]
                for pair, weights in cases
            )
    finally:
        write_state(model, start)
    return distance(first, second)


def coupling_tolerance(model: Any) -> float:
    """Return the largest `coupling` that rounding explains, by the precision of the frozen weights."""
    return _COUPLING[base_dtype(model)]


def require_numbers(model: nn.Module, batch: Batch, losses: BatchLosses = model_losses) -> None:
    """Raise ConfigError if the model, as it is before training, gives no example a finite loss, or cannot compute.

    With such a model every gradient would become zero, and what is trained would be noise alone.
    """
    base: Any = model.get_base_model()  # type: ignore[operator]  # PEFT's method, on any nn.Module
    if hasattr(base, "score") and base.config.pad_token_id is None:
        raise ConfigError(
            f"{type(base).__name__} has no padding token, by which it finds a text's end",
            "set pad_token_id of its configuration to the tokenizer's",
        )
    try:
        with torch.no_grad():
            each = losses(model, batch)
    except RuntimeError as error:
        raise ConfigError(
            f"the model cannot compute made-up examples: {str(error).splitlines()[0]}",
            "load all frozen weights in one precision, float32 or bfloat16",
        ) from error
    if not torch.isfinite(each).any():
        raise ConfigError(
            f"the model's loss is not a number for any of {len(batch)} made-up examples, so nothing could be learnt",
            "look for NaN in its weights, or load the frozen weights in float32",
        )


def _require_exact(seen: Exactness, allowed: Tolerances) -> None:
    """Raise for the first thing that is further from brute force than rounding explains."""
    for error, limit, what, remedy in (
        (
            seen.repeat_error,
            allowed.exact,
            "change from one computation to the next",
            "switch dropout off everywhere",
        ),
        (seen.brute_force_error, allowed.exact, "differ from brute force", "use other target modules"),
        (seen.padding_error, allowed.padding, "depend on how far others are padded", "use another model"),
        (
            seen.companion_error,
            allowed.companions,
            "depend on the other examples of the batch",
            "use another model",
        ),
        (
            seen.clipped_error,
            allowed.exact,
            "are not clipped one by one, as brute force does",
            "use another mode",
        ),
        (seen.norm_error, allowed.exact, "are not as long after clipping as is said", "use another mode"),
    ):
        if not error <= limit:
            raise ConfigError(
                f"this model's per-example gradients {what} ({error:.1e}): clipping would not bound them",
                remedy,
            )
