"""Gradient checkpointing for the length of a `with` block: a layer's activations are computed twice, not kept.

transformers' own switch works in training mode only, which brings dropout back. Here a layer's forward pass is
wrapped on the instance instead, and nothing else of the model changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedlora_priv.errors import ConfigError


@contextmanager
def recomputed_layers(model: nn.Module, *, reentrant: bool) -> Iterator[None]:
    """Keep of each transformer layer its inputs only; inside, its forward pass is run again in the backward pass.

    Args:
        model: a transformers model, or one around it.
        reentrant: the first pass is without gradients, so that hooks which look at that see one pass only.

    Raises:
        ConfigError: there is nothing that can be recomputed.
    """
    layers = [module for module in model.modules() if _is_layer(module)]
    if not layers:
        kind = type(model).__name__
        raise ConfigError(
            f"{kind} has no layers that can be recomputed",
            "switch gradient checkpointing off; a smaller max_tokens_per_microbatch bounds memory too",
        )
    own = [layer.__dict__.get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = partial(_recomputed, layer, layer.forward, reentrant)
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward


def _is_layer(module: nn.Module) -> bool:
    """Return whether transformers says that a module may be recomputed."""
    return any(kind.__name__ == "GradientCheckpointingLayer" for kind in type(module).__mro__)


def _recomputed(
    layer: nn.Module, forward: Callable[..., Any], reentrant: bool, *args: Any, **kwargs: Any
) -> Any:
    """Return what `forward` does, to be run again in the backward pass; no random state, as dropout is off."""
    args, kwargs = tuple(map(_no_cache, args)), {name: _no_cache(value) for name, value in kwargs.items()}
    tensors = [value for value in (*args, *kwargs.values(), *layer.parameters()) if isinstance(value, Tensor)]
    if not any(tensor.requires_grad for tensor in tensors):  # below the lowest trained layer nothing is kept
        return forward(*args, **kwargs)
    if not reentrant:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    if any(isinstance(value, Tensor) and value.requires_grad for value in kwargs.values()):
        raise ConfigError(
            "a layer takes a tensor with gradient by name, which cannot be recomputed in this mode",
            'use training mode "direct"',
        )
    # Something among the inputs must need a gradient, or none is computed: in the lowest trained layer nothing does.
    needed = torch.ones((), requires_grad=True)
    return checkpoint(
        lambda _, *rest: forward(*rest, **kwargs), needed, *args, use_reentrant=True, preserve_rng_state=False
    )


def _no_cache(value: Any) -> Any:
    """Return None instead of a cache of keys and values, which a second pass would fill twice."""
    return None if any(kind.__name__ == "Cache" for kind in type(value).__mro__) else value
