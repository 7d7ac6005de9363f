"""What a method knows of a model: its adapted modules, the names and shapes of their arrays, and what each array is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

State = Mapping[str, NDArray[np.float32]]
"""Named trainable arrays: ``<module>.lora_A`` (r, n), ``<module>.lora_B`` (m, r) and the head's arrays."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every named array."""

Role = Literal["A", "B", "R", "head", "base"]
"""What an array of a state is: a LoRA down- or up-projection, the square R of Fed-SB, part of the task head, or
part of what a method has added to the base weights. The last is never trained."""

_SUFFIXES: Mapping[str, Role] = {
    ".lora_A": "A", ".lora_B": "B", ".lora_R": "R", ".base": "base", ".base_A": "base", ".base_B": "base"
}  # fmt: skip


@dataclass(frozen=True)
class LoraModule:
    """One adapted linear map: its name in the model, its shape (m, n), its rank r and its scaling α/r."""

    name: str
    out_features: int
    in_features: int
    rank: int
    scaling: float

    @property
    def a_name(self) -> str:
        """The name of its A in a state."""
        return f"{self.name}.lora_A"

    @property
    def b_name(self) -> str:
        """The name of its B in a state."""
        return f"{self.name}.lora_B"

    @property
    def r_name(self) -> str:
        """The name of its R (r, r) in a state, where a method has one."""
        return f"{self.name}.lora_R"


@dataclass(frozen=True)
class Layout:
    """Everything a method knows of a model: the adapted modules and the shapes of the head's arrays."""

    modules: tuple[LoraModule, ...]
    heads: Mapping[str, tuple[int, ...]]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every trainable array, in the canonical (sorted) order of a state."""
        shapes: dict[str, tuple[int, ...]] = dict(self.heads)
        for module in self.modules:
            shapes[module.a_name] = (module.rank, module.in_features)
            shapes[module.b_name] = (module.out_features, module.rank)
        return dict(sorted(shapes.items()))

    def cut(self, rank: int) -> Layout:
        """Return the layout of the first `rank` components of every module, its scaling as it is."""
        modules = (replace(module, rank=min(rank, module.rank)) for module in self.modules)
        return replace(self, modules=tuple(modules))

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max(module.rank for module in self.modules)

    def role(self, name: str) -> Role:
        """Return what the array of that name is.

        Raises:
            KeyError: the layout has no array of that name.
        """
        if name in self.heads:
            return "head"
        stem, dot, suffix = name.rpartition(".")
        if dot + suffix not in _SUFFIXES or stem not in self._adapted:
            raise KeyError(name)
        return _SUFFIXES[dot + suffix]

    def belongs(self, name: str, modules: Collection[str]) -> bool:
        """Whether an array is the head's, or of one of these modules."""
        return name in self.heads or name.rpartition(".")[0] in modules

    @cached_property
    def _adapted(self) -> frozenset[str]:
        """The names of the adapted modules; kept, for roles are asked of every array of every upload."""
        return frozenset(module.name for module in self.modules)

    @property
    def dense_fp32_bytes(self) -> int:
        """Bytes of all trainable arrays in float32: what plain federated LoRA uploads each round."""
        return 4 * sum(int(np.prod(shape)) for shape in self.shapes().values())
