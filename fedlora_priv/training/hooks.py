"""Per-example gradients by Opacus' hooks, for the length of one `with` block.

Outside the block the model is a plain PEFT model: nothing to unwrap before saving, and hooks can never belong
to parameters that have since been replaced or moved.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from opacus import GradSampleModule
from torch import Tensor, nn

from fedlora_priv.errors import ConfigError
from fedlora_priv.training.engine import (
    ClipCounts,
    Clipping,
    ClippingEngine,
    GradientRows,
    Losses,
    not_one_row_each,
    nothing_recorded,
    only_training,
)
from fedlora_priv.training.support import Coordinates

_LEFTOVERS = ("activations", "max_batch_len")


class HooksEngine(ClippingEngine):
    """Clips the per-example gradients that Opacus' hooks leave behind."""

    name = "hooks"

    def __init__(
        self,
        hooked: GradSampleModule,
        trained: Mapping[str, nn.Parameter],
        clipping: Clipping,
        parts: Mapping[str, Coordinates] | None = None,
    ) -> None:
        super().__init__(trained, clipping, parts)
        self._hooked = hooked
        self.rows_seen: set[int] = set()

    def add(self, losses: Losses, clip_norm: float) -> ClipCounts:
        """Clip and add one microbatch; see `ClippingEngine.add`."""
        self.rows_seen.clear()
        each = losses(self._hooked)
        each.sum().backward()  # type: ignore[no-untyped-call]  # backward is untyped in torch
        if self.rows_seen - {len(each)}:  # Opacus would add what examples share to the first ones' gradients
            raise not_one_row_each()
        gradients = take_gradients(self._trained)
        for i, name in enumerate(self._trained):
            if name in self._parts:
                gradients[i] = GradientRows(self._parts[name].take(gradients[i].rows))
        return self._clip_and_add(gradients, len(each), clip_norm)


@contextmanager
def hooks_clipping(
    model: nn.Module,
    trained: Mapping[str, nn.Parameter],
    clipping: Clipping,
    parts: Mapping[str, Coordinates] | None = None,
) -> Iterator[HooksEngine]:
    """Give an engine that clips through Opacus' hooks."""
    with _hooks(model) as hooked, ExitStack() as counted:
        engine = HooksEngine(hooked, trained, clipping, parts)

        def count(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            engine.rows_seen.update(len(value) for value in inputs[:1] if isinstance(value, Tensor))

        for module in hooked.iterate_submodules(model):
            counted.callback(module.register_forward_pre_hook(count).remove)
        yield engine


def take_gradients(trained: Mapping[str, nn.Parameter]) -> list[GradientRows]:
    """Return each parameter's per-example gradients and clear them, so that none is used twice."""
    gradients = []
    for name, parameter in trained.items():
        rows = getattr(parameter, "grad_sample", None)
        if not isinstance(rows, Tensor):
            raise nothing_recorded(name)
        gradients.append(GradientRows(rows))
        parameter.grad_sample = None  # type: ignore[attr-defined]  # Opacus puts it there
        parameter.grad = None
    return gradients


@contextmanager
def per_example_gradients(
    model: nn.Module, trained: Mapping[str, nn.Parameter]
) -> Iterator[GradSampleModule]:
    """Give a model whose backward pass leaves (n, *shape) in each trained parameter's ``grad_sample``.

    The loss must be a *sum* of one loss per example. Only `trained` requires a gradient inside; before and
    after, what did. The whole model is in evaluation mode, so dropout is off and every run is deterministic;
    only the modules that own trained parameters are marked as training, because Opacus' hooks look at that.

    Raises:
        ConfigError: the model recomputes activations (gradient checkpointing) or a trained layer has buffers.
    """
    refuse_checkpointing(model)
    with only_training(model, trained), _hooks(model) as hooked:
        yield hooked


@contextmanager
def _hooks(model: nn.Module) -> Iterator[GradSampleModule]:
    """Give the model with hooks on what requires a gradient."""
    with quiet_hooks():
        hooked = _attach(model)
        try:
            yield hooked
        finally:
            hooked.to_standard_module()
            forget_batches(model)


def refuse_checkpointing(model: nn.Module) -> None:
    """Raise if the model itself recomputes activations, in a way that may lose per-example gradients."""
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ConfigError(
            "gradient checkpointing is on, under which per-example gradients can be lost",
            "switch it off in the model and ask for it in the training settings",
        )


@contextmanager
def quiet_hooks() -> Iterator[None]:
    """Silence a warning: the first LoRA layer's input needs no gradient, and its weights' are right all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _attach(model: nn.Module) -> GradSampleModule:
    """Return the model with hooks, in the mixed mode described above."""
    try:
        hooked = GradSampleModule(model, loss_reduction="sum", strict=True)
    except NotImplementedError as error:
        raise ConfigError(f"per-example gradients are not possible: {error}", "use another model") from error
    hooked.eval()
    for module in hooked.iterate_submodules(model):
        module.training = True
    return hooked


def forget_batches(model: nn.Module) -> None:
    """Forget what an interrupted backward pass left behind: private activations, of another batch."""
    for module in model.modules():
        for name in _LEFTOVERS:
            module.__dict__.pop(name, None)
