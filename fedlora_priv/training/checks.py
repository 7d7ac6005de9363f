"""Where a model lies before a step, and what changed after it: every trained array, and nothing else.

Adapters that silently stay as they were are a known failure (hooks or optimizer on parameters that the model
no longer uses); noise hides it from everything but a direct look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fedlora_priv.adapters import trainable_parameters
from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.training.support import Coordinates

_ENOUGH = 8  # values of a part of which one must change; a single one may round to what it was
_PRECISIONS = (torch.float32, torch.bfloat16)  # float16 overflows in attention, and nobody would see why


class StepCheck:
    """A photograph of a model before a step, to be compared with the model after it.

    Args:
        model: the PEFT model, before the step.
        trained: state names of what the step may change.
        parts: the coordinates of arrays of which it may change only those.
    """

    def __init__(
        self, model: nn.Module, trained: Iterable[str], parts: Mapping[str, Coordinates] | None = None
    ) -> None:
        self._model = model
        self._parts = dict(parts or {})
        self._trained = frozenset(trained)
        self._few = {name for name, part in self._parts.items() if len(part) < _ENOUGH}
        self._before = self._fingerprints()

    def require_changes(self, *, noised: bool) -> None:
        """Raise unless exactly the trained arrays changed, or their trained parts.

        Args:
            noised: whether noise was added; without noise a gradient of exactly zero is legitimate (A at
                B = 0), so only changes elsewhere are errors.
        """
        after = self._fingerprints()
        changed = {name for name in after if after[name] != self._before.get(name)}
        if wrong := sorted(changed - self._trained):
            raise FedloraError(
                f"the step changed {wrong[0]}, which is frozen", "no hook may modify the model"
            )
        if noised and (missing := sorted(self._trained - self._few - changed)):
            raise FedloraError(
                f"the step left {missing[0]} unchanged, so it is not being trained",
                "build the trainer and its optimizer anew after changing or moving the model",
            )

    def _fingerprints(self) -> dict[str, int]:
        """Return a checksum of each trainable by state name, and of everything else by parameter name."""
        trainables: Mapping[str, Tensor] = trainable_parameters(self._model)
        own = {id(tensor) for tensor in trainables.values()}
        rest = {n: t for n, t in self._model.state_dict(keep_vars=True).items() if id(t) not in own}
        whole = {name: _checksum(tensor) for name, tensor in (*trainables.items(), *rest.items())}
        for name, part in self._parts.items():
            chosen = trainables[name].detach().flatten()[part.positions]
            whole[f"{name} outside of the support"] = whole[name] - _checksum(chosen)
            whole[name] = _checksum(chosen)
        return whole


def require_in_place(model: nn.Module, device: torch.device) -> None:
    """Raise unless the whole model is on `device`, what is trained in float32 and the rest in a precision that works.

    Raises:
        ConfigError: it was moved, cast, or loaded in a precision that training cannot use.
    """
    trained = {id(parameter) for parameter in trainable_parameters(model).values()}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != device.type or device.index not in (None, tensor.device.index):
            raise ConfigError(
                f"{name} is on {tensor.device} but its trainer works on {device}",
                "build the trainer anew after moving the model",
            )
        if id(tensor) in trained and tensor.dtype != torch.float32:
            raise ConfigError(f"{name} is {tensor.dtype}, too coarse for noise", "keep adapters float32")
        if tensor.is_floating_point() and tensor.dtype not in _PRECISIONS:
            raise ConfigError(f"{name} is {tensor.dtype}", "load the frozen weights in float32 or bfloat16")


def require_unfrozen(trainables: Iterable[Tensor]) -> None:
    """Raise ConfigError if nothing at all requires a gradient: whoever froze everything wants nothing trained."""
    if not any(parameter.requires_grad for parameter in trainables):
        raise ConfigError("nothing in the model requires a gradient", "unfreeze the adapter")


def require_exact_counts(model: nn.Module) -> None:
    """Refuse adaptive clipping over a base that rounds so coarsely that one example could move another's count.

    Raises:
        ConfigError: the base is in bfloat16.
    """
    if base_dtype(model) != "float32":
        raise ConfigError(
            "adaptive clipping counts gradients within the clip norm, and over a bfloat16 base an example's "
            "companions can carry it across that norm, which the noise on counts is not charged for",
            "load the frozen weights in float32, or keep the clip norm constant",
        )


def base_dtype(model: nn.Module) -> str:
    """Return the precision that most of the frozen weights are in, such as "float32"."""
    trained = {id(parameter) for parameter in trainable_parameters(model).values()}
    sizes: Counter[str] = Counter()
    for parameter in model.parameters():
        if id(parameter) not in trained:
            sizes[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return sizes.most_common(1)[0][0]


def _checksum(tensor: Tensor) -> int:
    """Return the sum of a tensor's bit patterns, which a change of a few values leaves with chance 2^-32."""
    data = tensor.detach().contiguous()
    whole_words = data.element_size() % 4 == 0 and data.numel() > 0
    return int(data.reshape(-1).view(torch.int32 if whole_words else torch.uint8).sum(dtype=torch.int64))
