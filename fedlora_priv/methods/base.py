"""What a federated LoRA method is: two pure functions around a sum.

The server of this project can only ever see a sum over clients, so a method is a *contract* (what is
uploaded, what is trained, what leaks), an ``upload`` that runs at each client and a ``combine`` that runs at
the server::

    contract(layout)                            -> Contract
    upload(layout, start, trained, shared)      -> named arrays, to be SUMMED over clients
    combine(layout, state, sums, n, shared)     -> the next global state

No method can reach a single client's upload: `combine` is handed nothing but sums. Methods are plain numpy;
they know nothing of masking, engines or the ledger.

Notation (all methods): W = W0 + scaling·B·A with A of shape (r, n), B of shape (m, r), scaling = α/r.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

State = Mapping[str, NDArray[np.float32]]
"""Named trainable arrays: ``<module>.lora_A`` (r, n), ``<module>.lora_B`` (m, r) and the head's arrays."""

Sums = Mapping[str, NDArray[np.float64]]
"""Named sums over clients of what the contract uploads."""

Role = Literal["A", "B", "head"]
"""What a trainable array is: a LoRA down-projection, a LoRA up-projection, or part of the task head."""


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

    def role(self, name: str) -> Role:
        """Return whether the array of that name is an A, a B or part of the head.

        Raises:
            KeyError: the layout has no array of that name.
        """
        if name in self.heads:
            return "head"
        if name not in self.shapes():
            raise KeyError(name)
        return "A" if name.endswith(".lora_A") else "B"

    @property
    def dense_fp32_bytes(self) -> int:
        """Bytes of all trainable arrays in float32: what plain federated LoRA uploads each round."""
        return 4 * sum(int(np.prod(shape)) for shape in self.shapes().values())


@dataclass(frozen=True)
class Shared:
    """What every party knows in a round besides the global state: the public seed and the round's number."""

    seed: int
    round: int


@dataclass(frozen=True)
class Contract:
    """What a method promises about its uploads, printed by ``fedlora methods``.

    The federation goes by `uploads` and `trains`; the other fields tell a reader what to expect.
    """

    uploads: Mapping[str, tuple[int, ...]]
    trains: frozenset[Role]
    exact: bool
    noise: str
    leaks: str = "the sum over survivors"
    weights: Literal["uniform"] = "uniform"
    exchanges: int = 1
    notes: tuple[str, ...] = field(default=())

    @property
    def dimension(self) -> int:
        """Number of coordinates that one client uploads, before any are left out."""
        return sum(int(np.prod(shape)) for shape in self.uploads.values())


class Method(Protocol):
    """A federated LoRA method: see the module's docstring for the three functions."""

    name: str
    title: str
    source: str

    def contract(self, layout: Layout) -> Contract:
        """Return what is uploaded and trained, and what leaks."""
        ...

    def upload(self, layout: Layout, start: State, trained: State, shared: Shared) -> State:
        """Return the arrays of `contract.uploads` for one client; they will be summed over clients."""
        ...

    def combine(self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared) -> State:
        """Return the next global state from the sums over `n` clients."""
        ...
