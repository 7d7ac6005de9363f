"""Per-example clipping: which engine fits a model, and the `with` block in which it works.

| engine | how | passes |
|---|---|---|
| direct | trained linear layers keep each example's gradient instead of the batch's | forward, backward |
| hooks | Opacus' `GradSampleModule`: the batch's gradient and each example's, any layer | forward, backward |
| ghost | Opacus' fast gradient clipping: norms first, then the gradient of weighted losses | forward, 2 backward |

All give the same clipped sum up to rounding. With gradient checkpointing the layers' activations are computed a
second time, in the backward pass, instead of being kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fedlora_priv.errors import ConfigError
from fedlora_priv.training.direct import direct_clipping, trained_layers
from fedlora_priv.training.engine import ClipCounts, Clipping, ClippingEngine, Losses, Mode, only_training
from fedlora_priv.training.ghost import ghost_clipping
from fedlora_priv.training.hooks import hooks_clipping, refuse_checkpointing
from fedlora_priv.training.recompute import recomputed_layers
from fedlora_priv.training.refusals import refuse_context, refuse_gradient_hooks
from fedlora_priv.training.support import Coordinates

__all__ = [
    "ClipCounts", "Clipping", "ClippingEngine", "EngineChoice", "Losses", "Mode", "choose_engine",
    "per_example_clipping",
]  # fmt: skip

_OF_ROWS = {"direct": direct_clipping, "hooks": hooks_clipping}


@dataclass(frozen=True)
class EngineChoice:
    """Which engine clips, and why, for people."""

    name: Literal["direct", "hooks", "ghost"]
    reason: str


def choose_engine(model: nn.Module, trained: Mapping[str, nn.Parameter], mode: Mode = "auto") -> EngineChoice:
    """Return the engine that a mode stands for: for "auto", the fastest that is exact for this model.

    Raises:
        ConfigError: the mode does not fit the model.
    """
    if mode == "hooks":
        return EngineChoice("hooks", "as asked")
    try:
        layers = trained_layers(model, trained)
    except ConfigError as error:
        if mode == "auto":
            return EngineChoice("hooks", f"direct does not fit: {error}")
        raise ConfigError(f"training mode {mode!r} does not fit: {error}", 'use "auto"') from error
    if mode == "ghost":
        if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in model.parameters()):
            # The second backward pass, of weighted losses, rounds otherwise than the one whose norms were taken.
            raise ConfigError(
                "ghost clipping of a base in half precision exceeds the clip norm by its rounding, up to 2e-2",
                'use mode (training.per_example) "direct"',
            )
        return EngineChoice("ghost", "as asked")
    if mode == "direct":
        return EngineChoice("direct", "as asked")
    return EngineChoice("direct", f"the fastest: all {len(layers)} trained layers are linear")


@contextmanager
def per_example_clipping(
    model: nn.Module,
    trained: Mapping[str, nn.Parameter],
    *,
    mode: Mode = "auto",
    clipping: Clipping = "flat",
    gradient_checkpointing: bool = False,
    parts: Mapping[str, Coordinates] | None = None,
) -> Iterator[ClippingEngine]:
    """Give an engine whose `add` clips each example's gradient and adds the sums up.

    Inside, only `trained` requires a gradient and the model is in evaluation mode; afterwards it is a plain
    model as before, and all that is left of a batch is the sums in ``summed_grad``, which wait for their noise.

    Args:
        model: evaluated on whole microbatches; the first dimension of what trained layers see is the example.
        trained: the parameters to train, by state name.
        mode: see `choose_engine`.
        clipping: "flat", or "per-layer": each adapted module, and the head, is a group of its own, bounded by
            ``clip_norm / √groups``. Either way an example's whole gradient is bounded by `clip_norm`.
        gradient_checkpointing: recompute each layer's activations in the backward pass, to save memory.
        parts: coordinates of arrays that are trained in part, as `support.coordinates` gives them. Gradients are cut
            to them before their norms are taken. Not in mode "ghost", which never has a gradient to cut.

    Raises:
        ConfigError: the mode does not fit the model, nothing in it can be recomputed, or something around it would
            round or see gradients; see `refusals`.
    """
    refuse_context()
    refuse_gradient_hooks(model, trained)
    refuse_checkpointing(model)
    choice = choose_engine(model, trained, mode)
    if gradient_checkpointing and choice.name == "ghost":
        raise ConfigError(
            "ghost clipping runs backward twice, which recomputed activations do not allow",
            'use mode (training.per_example) "direct"',
        )
    if parts and choice.name == "ghost":
        raise ConfigError(
            "ghost clipping takes the norms of whole arrays, of which only a part is to be trained",
            'use mode (training.per_example) "direct"',
        )
    with ExitStack() as stack:
        stack.enter_context(only_training(model, trained))
        if gradient_checkpointing:
            # Opacus' hooks would see every layer's forward pass twice, unless the first is without gradients.
            stack.enter_context(recomputed_layers(model, reentrant=choice.name == "hooks"))
        made = (
            ghost_clipping(model, trained, clipping)
            if choice.name == "ghost"
            else _OF_ROWS[choice.name](model, trained, clipping, parts)
        )
        engine: ClippingEngine = stack.enter_context(made)
        engine.reason = choice.reason
        yield engine
