"""Where and in what precision a model computes: the device, and a frozen base in bfloat16.

Everything that is trained, and every loss, norm and noise, is float32 or better whatever the base is in.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fedlora_priv.adapters import ADAPTER, state_name
from fedlora_priv.errors import ConfigError

BaseDtype = Literal["float32", "bfloat16"]
_ATTENTION = "sdpa_float32_on_cpu"


def resolve_device(wanted: str) -> torch.device:
    """Return the device for "auto" (a GPU if there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: another word, or a GPU that is not there.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return torch.device("cpu")
    name, _, number = wanted.partition(":")
    if name != "cuda" or not (number.isdecimal() or wanted == "cuda"):
        # Apple's GPUs have no float64, in which norms and sums are taken.
        raise ConfigError(f"there is no device {wanted!r}", 'use "auto", "cpu", "cuda" or "cuda:N"')
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise ConfigError(
            f"device {wanted!r} is not there: torch sees {count} CUDA GPUs here", 'use "auto" or "cpu"'
        )
    return torch.device(wanted)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether `device` multiplies matrices in bfloat16 by instructions of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def refuse_emulated_bfloat16(model: nn.Module, device: torch.device) -> None:
    """Raise ConfigError for a bfloat16 base on a device that would compute it slower than float32."""
    if not has_bfloat16(device) and any(p.dtype == torch.bfloat16 for p in model.parameters()):
        raise ConfigError(
            f'model.base_dtype = "bfloat16" is slower than float32 on this {device.type}, which has no '
            "instructions for it",
            'use "float32"',
        )


def cast_base(base: nn.Module, dtype: BaseDtype) -> None:
    """Cast a model's parameters, before LoRA is attached; see `keep_trained_in_float32` for after."""
    if dtype == "float32":
        base.float()
        return
    base.to(torch.bfloat16)
    for module in base.modules():
        if isinstance(module, PreTrainedModel) and module.config._attn_implementation == "sdpa":
            module.set_attn_implementation(_ATTENTION)


def keep_trained_in_float32(model: Any) -> None:
    """Bring LoRA and heads of a PEFT model to float32, and whatever enters a head."""
    for name, parameter in model.named_parameters():
        if state_name(name) is not None:
            parameter.data = parameter.data.float()
    for name, module in model.named_modules():
        if name.endswith(f".modules_to_save.{ADAPTER}"):
            module.register_forward_pre_hook(_to_float32)


def _to_float32(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a forward's arguments with floating-point tensors in float32."""
    return tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Return torch's attention, on a CPU in float32: its backward pass in bfloat16 is many times slower."""
    dtype = query.dtype
    if query.device.type == "cpu" and dtype == torch.bfloat16:
        query, key, value = query.float(), key.float(), value.float()
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
    output, weights = sdpa_attention_forward(module, query, key, value, mask, **options)
    return output.to(dtype), weights


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
