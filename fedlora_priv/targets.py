"""Which linear maps of a model get LoRA: their names, checked against what can be trained privately."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

from fedlora_priv.errors import ConfigError
from fedlora_priv.pooling import MeanPoolingClassifier

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoraSettings:
    """Which modules get LoRA, and of what size: W = W0 + scaling·B·A.

    Args:
        target_modules: ends of the names of linear modules, such as ``query`` or ``attention.self.value``; or
            "all-linear" for all but heads, embeddings and a language model's output layer.
        rank: r, at least 1.
        alpha: numerator of the scaling, alpha/rank.
        use_rslora: scale by alpha/√rank instead, which keeps large ranks from learning slowly.
        train_head: whether the classification head is trained and shared too; it is saved in either case.

    Raises:
        ConfigError: a value out of range.

    Source: use_rslora is Kalajdzievski 2023, "A rank stabilization scaling factor for fine-tuning with LoRA".
    """

    target_modules: tuple[str, ...] | Literal["all-linear"]
    rank: int = 8
    alpha: float = 16.0
    use_rslora: bool = False
    train_head: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise ConfigError(f"lora.rank {self.rank} and lora.alpha {self.alpha} must be positive")
        if not self.target_modules:
            raise ConfigError("lora.target_modules is empty", 'name some, such as ["query", "value"]')
        if isinstance(self.target_modules, str) and self.target_modules != ALL_LINEAR:
            raise ConfigError(
                f"lora.target_modules is {self.target_modules!r}", f'give a list, or "{ALL_LINEAR}"'
            )


def head_names(base: nn.Module, *, generative: bool = False) -> list[str]:
    """Return the top-level modules that are not the pretrained encoder: the task head; none if `generative`.

    Raises:
        ConfigError: the model has no head, or is one in whole.
    """
    if generative:
        return []
    encoder = "encoder" if isinstance(base, MeanPoolingClassifier) else getattr(base, "base_model_prefix", "")
    children = [name for name, child in base.named_children() if any(True for _ in child.parameters())]
    heads = [name for name in children if name != encoder]
    if not heads or heads == children:
        kind = type(base).__name__
        raise ConfigError(f"cannot tell the head of {kind} from its base", 'use model.pooling = "mean"')
    return heads


def resolve_targets(
    base: nn.Module, wanted: Sequence[str] | Literal["all-linear"], heads: Sequence[str]
) -> list[str]:
    """Return the full names of the linear modules that `wanted` stands for, none of them inside a head.

    Raises:
        ConfigError: nothing has such a name, or it is no linear map, or its weights are shared with another
            part of the model, or it sees the tokens of several examples as one batch.
    """
    linear = {name for name, m in base.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    linear = {name for name in linear if name.split(".")[0] not in heads}
    if wanted == ALL_LINEAR:
        found = sorted(linear - set(_output_layer(base)))
        if not found:
            raise ConfigError(
                f"{type(base).__name__} has no linear map outside its head", "use another model"
            )
    else:
        found = [name for target in wanted for name in _named(base, target, linear, heads)]
    _refuse_shared_weights(base, [*found, *heads])
    _refuse_experts(base, found)
    return sorted(set(found))


def _named(base: nn.Module, target: str, linear: set[str], heads: Sequence[str]) -> Iterable[str]:
    """Return the linear modules whose names end like `target`, at a dot."""
    names = (name for name, _ in base.named_modules() if name.split(".")[0] not in heads)
    matches = [name for name in names if f".{name}".endswith(f".{target}")]
    if not matches:
        endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
        nearest = difflib.get_close_matches(target, endings, n=1, cutoff=0.0)
        raise ConfigError(
            f"no module of the model is called {target!r}",
            f"the nearest is {nearest[0]!r}, of {', '.join(endings)}" if nearest else "check the model",
        )
    for name in matches:
        if name not in linear:
            kind = type(base.get_submodule(name)).__name__
            raise ConfigError(f"LoRA on {name} ({kind}) is not supported", "name linear modules only")
    return matches


def _output_layer(base: nn.Module) -> Iterable[str]:
    """Return the name of a language model's map to its vocabulary, if it has one."""
    getter = getattr(base, "get_output_embeddings", None)
    layer = getter() if getter is not None else None
    return [name for name, module in base.named_modules() if layer is not None and module is layer]


def _refuse_shared_weights(base: nn.Module, names: Iterable[str]) -> None:
    """Raise if a module to train shares a parameter with another: its gradient would be of both uses."""
    owners: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for module in names:
        for parameter in base.get_submodule(module).parameters():
            others = [name for name in owners[id(parameter)] if not name.startswith(f"{module}.")]
            if others:
                raise ConfigError(
                    f"{module} shares its weights with {others[0]}, so it cannot be trained apart",
                    "leave it out of lora.target_modules",
                )


def _refuse_experts(base: nn.Module, names: Iterable[str]) -> None:
    """Raise if a module to train sits in a mixture of experts, which gathers the tokens of all examples."""
    mixtures = [name.removesuffix("experts") for name, _ in base.named_modules() if name.endswith(".experts")]
    for module in names:
        if module.startswith(tuple(mixtures)):
            raise ConfigError(
                f"{module} is in a mixture of experts, where examples share a batch and gradients with it",
                "name attention modules only",
            )
