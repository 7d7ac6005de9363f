"""The layers of a layout: which adapted modules belong to one transformer block, from the input up."""

from __future__ import annotations

from dataclasses import dataclass

from fedlora_priv.allocation.errors import AllocationError
from fedlora_priv.methods.layout import Layout, LoraModule


@dataclass(frozen=True)
class Layer:
    """One block of the model: its name, such as ``encoder.layer.3``, and the modules adapted in it."""

    name: str
    modules: tuple[LoraModule, ...]

    def coordinates(self, rank: int) -> int:
        """Return how many coordinates of A and B a client of that rank trains in it."""
        return sum(min(rank, m.rank) * (m.out_features + m.in_features) for m in self.modules)


def layers_of(layout: Layout) -> tuple[Layer, ...]:
    """Return the layers in the order of the forward pass: by the first number in the modules' names.

    Raises:
        AllocationError: a module's name has no number, or there are two stacks of layers.

    Example:
        >>> module = LoraModule("encoder.layer.10.query", 4, 4, 1, 1.0)
        >>> [layer.name for layer in layers_of(Layout((module,), {}))]
        ['encoder.layer.10']
    """
    found: dict[int, list[LoraModule]] = {}
    stacks: dict[str, str] = {}
    for module in layout.modules:
        stack, number = _place(module.name)
        stacks[stack] = module.name
        found.setdefault(number, []).append(module)
    if len(stacks) > 1:
        first, second = sorted(stacks.values())[:2]
        raise AllocationError(
            f"{first} and {second} are in two stacks of layers, whose order is not known",
            "adapt the layers of one stack only",
        )
    (stack,) = stacks or ("",)
    return tuple(Layer(f"{stack}.{number}", tuple(found[number])) for number in sorted(found))


def _place(name: str) -> tuple[str, int]:
    """Return the stack and the number of the layer that a module is in."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[:i]), int(part)
    raise AllocationError(
        f"the name of {name} does not tell its layer", "adapt modules of numbered layers only"
    )
