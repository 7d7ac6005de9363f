"""Per-example clipping: which engine fits a model, and the `with` block in which it works.

| engine | how | passes |
|---|---|---|
| hooks | Opacus' `GradSampleModule`: every example's gradient, one by one | 1 forward, 1 backward |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from fedlora_priv.errors import ConfigError
from fedlora_priv.training.engine import ClipCounts, Clipping, ClippingEngine, Losses, Mode
from fedlora_priv.training.hooks import HooksEngine, per_example_gradients

__all__ = ["ClipCounts", "Clipping", "ClippingEngine", "Losses", "Mode", "per_example_clipping"]


@contextmanager
def per_example_clipping(
    model: nn.Module, trained: Mapping[str, nn.Parameter], *, mode: Mode = "auto", clipping: Clipping = "flat"
) -> Iterator[ClippingEngine]:
    """Give an engine whose `add` clips each example's gradient and adds the sums up.

    Inside, only `trained` requires a gradient and the model is in evaluation mode; afterwards it is a plain
    model as before, with nothing of a batch left in it.

    Raises:
        ConfigError: the mode does not fit the model.
    """
    if mode not in ("auto", "hooks"):
        raise ConfigError(f"there is no mode {mode!r}", 'use "auto"')
    with per_example_gradients(model, trained) as hooked:
        yield HooksEngine(hooked, trained, clipping)
