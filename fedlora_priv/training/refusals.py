"""What around a model would make its steps less private than they are charged for, one clear line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from fedlora_priv.errors import ConfigError

_OF_TENSORS = ("_backward_hooks", "_post_accumulate_grad_hooks")  # in torch's own names
_OF_MODULES = ("_backward_hooks", "_backward_pre_hooks")


def require_peft(model: Any) -> None:
    """Raise ConfigError unless `model` is a PEFT model itself, not something around one."""
    if isinstance(model, PeftModel):
        return
    for name in ("module", "_orig_mod"):  # of DataParallel and its kin, and of torch.compile
        if isinstance(getattr(model, name, None), PeftModel):
            raise ConfigError(
                f"{type(model).__name__} is wrapped around the model, whose layers are computed here one by one",
                f"give the PEFT model itself: model.{name}",
            )
    raise ConfigError(
        f"{type(model).__name__} is no PEFT model, so it has no LoRA",
        "wrap it by peft.get_peft_model, or load it with fedlora_priv.modeling.load_model",
    )


def refuse_context() -> None:
    """Raise ConfigError inside a block of torch's that rounds gradients, or computes none."""
    if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
        raise ConfigError(
            "torch.autocast is on, which would round per-example gradients and their sums",
            "train outside of it; only the frozen base may be loaded in a narrower type",
        )
    if not torch.is_grad_enabled():
        raise ConfigError(
            "gradients are switched off (torch.no_grad or inference_mode), so nothing could be trained",
            "train outside of it",
        )


def refuse_gradient_hooks(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> None:
    """Raise ConfigError if somebody's hook would see gradients before they are clipped and noised, or change them."""
    for name, parameter in trained.items():
        if any(getattr(parameter, hooks, None) for hooks in _OF_TENSORS):
            raise ConfigError(
                f"a hook on {name} would see its gradient before it is clipped and noised", "remove the hook"
            )
    for name, module in model.named_modules():
        if any(getattr(module, hooks, None) for hooks in _OF_MODULES):
            raise ConfigError(
                f"a backward hook on {name or 'the model'} would see gradients before they are clipped and noised",
                "remove the hook",
            )


def refuse_training_mode(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> None:
    """Raise ConfigError if a layer is in training mode: with dropout, one more example changes what others lose."""
    wanted = {id(parameter) for parameter in trained.values()}
    for name, module in model.named_modules():
        # Opacus' hooks look at the mode of the layers that they are on, which have no dropout.
        if module.training and wanted.isdisjoint(map(id, module._parameters.values())):
            raise ConfigError(
                f"{name or 'the model'} was put into training mode, where dropout couples examples",
                "leave the model in evaluation mode until training is over",
            )
