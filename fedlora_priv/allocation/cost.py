"""What a client can hold: a model of memory and time that turns declared or measured numbers into layers and ranks.

Frozen layers cost a forward pass and nothing else: the backward pass ends at the lowest layer that is trained, and
only trained arrays have gradients by example, sums and optimizer states. So a step of a client with lowest layer ℓ
out of L and d trained coordinates costs

    fixed + crossed·(L − ℓ) + trained·d

bytes and seconds, each with three numbers of its own: the base model and whatever everybody needs; the activations
and products of a layer that gradients pass through; the gradients of a coordinate. They are declared, or fitted to
a few measured runs (`CostModel.measured`). What is sent costs by coordinate.

The model is for planning. It decides who trains what, never how much noise is added; and it is public, as the
allocation that is made of it is. A client whose memory must not be known declares `max_layers` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedlora_priv.allocation.errors import AllocationError, NothingFits
from fedlora_priv.allocation.layers import Layer, layers_of
from fedlora_priv.methods.layout import Layout


@dataclass(frozen=True)
class Profile:
    """What one client has; public. Whatever is left out does not limit it.

    Args:
        memory_bytes: for training, the base model included.
        speed: how many times as fast as the machine whose seconds the cost model has.
        bytes_per_s: of its connection, either way.
        max_layers, max_rank: limits that the client declares, for whatever reason.

    Raises:
        AllocationError: a number that is not positive.
    """

    memory_bytes: float = math.inf
    speed: float = 1.0
    bytes_per_s: float = math.inf
    max_layers: int | None = None
    max_rank: int | None = None

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "speed", "bytes_per_s", "max_layers", "max_rank"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise AllocationError(f"a profile's {name} must be positive, not {value}", "leave it out")


@dataclass(frozen=True)
class Cost:
    """Bytes or seconds of a step: in any case, by layer crossed backward, by trained coordinate."""

    fixed: float = 0.0
    crossed: float = 0.0
    trained: float = 0.0

    def of(self, crossed: int, coordinates: float) -> float:
        """Return the cost of a step."""
        return self.fixed + self.crossed * crossed + self.trained * coordinates

    def room(self, limit: float, crossed: int) -> float:
        """Return how many coordinates may be trained within a limit; negative if not even none."""
        left = limit - self.of(crossed, 0.0)
        if self.trained == 0.0:
            return math.inf if left >= 0 else -1.0
        return left / self.trained


@dataclass(frozen=True)
class Measurement:
    """What one step took that trained these layers (0 is the lowest) at this rank."""

    layers: tuple[int, ...]
    rank: int
    memory_bytes: float
    seconds: float


@dataclass(frozen=True)
class CostModel:
    """What a part of a model costs a client.

    Args:
        layers: of the model, from the input up.
        rank: the federation's.
        head: coordinates of the head, which everybody trains.
        memory: bytes of a step.
        step: seconds of a step at speed 1.
        steps: of a round.
        round_s: seconds that a round may take a client.
        bytes_per_coordinate: on the wire, either way.
    """

    layers: tuple[Layer, ...]
    rank: int
    head: int = 0
    memory: Cost = Cost()
    step: Cost = Cost()
    steps: int = 1
    round_s: float = math.inf
    bytes_per_coordinate: float = 4.0

    @classmethod
    def declared(cls, layout: Layout, *, memory: Cost = Cost(), step: Cost = Cost()) -> CostModel:
        """Return the model of a layout with declared numbers; see `dataclasses.replace` for the rest.

        Raises:
            AllocationError: the layout has no layers.
        """
        layers = layers_of(layout)
        if not layers:
            raise AllocationError("the model has no adapted layer", "adapt some")
        rank = max(module.rank for module in layout.modules)
        head = sum(int(np.prod(shape)) for shape in layout.heads.values())
        return cls(layers, rank, head, memory, step)

    @classmethod
    def measured(cls, layout: Layout, measurements: Sequence[Measurement]) -> CostModel:
        """Return the model whose numbers, none negative, fit the measurements best in least squares.

        Raises:
            AllocationError: the measurements do not tell the three numbers apart.
        """
        plain = cls.declared(layout)
        columns = [(1.0, plain.crossed(m.layers), plain.coordinates(m.layers, m.rank)) for m in measurements]
        design = np.array(columns, dtype=np.float64).reshape(-1, 3)
        scale = np.maximum(design.max(axis=0, initial=0.0), 1.0)
        if np.linalg.matrix_rank(design / scale) < 3:
            raise AllocationError(
                "the measurements do not tell what a layer costs from what a coordinate costs",
                "measure all layers, the top one alone, the lowest one alone",
            )
        from scipy.optimize import nnls  # takes a while to import, for every message of a node

        memory, step = (
            Cost(*(nnls(design / scale, np.array(seen, dtype=np.float64))[0] / scale))
            for seen in ([m.memory_bytes for m in measurements], [m.seconds for m in measurements])
        )
        return replace(plain, memory=memory, step=step)

    def crossed(self, layers: Sequence[int]) -> int:
        """Return how many layers the backward pass goes through."""
        return len(self.layers) - min(layers, default=len(self.layers))

    def coordinates(self, layers: Sequence[int], rank: int) -> int:
        """Return how many coordinates are trained, the head's included."""
        return self.head + sum(self.layers[i].coordinates(rank) for i in layers)

    def memory_bytes(self, layers: Sequence[int], rank: int) -> float:
        """Return the memory of a step."""
        return self.memory.of(self.crossed(layers), self.coordinates(layers, rank))

    def seconds(self, profile: Profile, layers: Sequence[int], rank: int) -> float:
        """Return how long a round takes a client: its steps, the whole state down, as much up.

        Whatever a client trains, it sends a vector as long as everybody's, zeros where it trains nothing.
        """
        return self._wire_s(profile) + (
            self.steps * self.step.of(self.crossed(layers), self.coordinates(layers, rank)) / profile.speed
        )

    def fits(self, profile: Profile, layers: Sequence[int], rank: int) -> bool:
        """Whether a client can train these layers at this rank."""
        return (
            len(layers) <= self.most_layers(profile)
            and rank <= (profile.max_rank or rank)
            and self.coordinates(layers, rank) <= self.room(profile, self.crossed(layers))
        )

    def room(self, profile: Profile, crossed: int) -> float:
        """Return how many coordinates a client may train if its backward pass goes through so many layers."""
        in_memory = self.memory.room(profile.memory_bytes, crossed)
        times = self.steps / profile.speed
        fixed = self.step.fixed * times + self._wire_s(profile)
        in_time = Cost(fixed, self.step.crossed * times, self.step.trained * times)
        return min(in_memory, in_time.room(self.round_s, crossed))

    def most_layers(self, profile: Profile) -> int:
        """Return how many layers a client may train at most, by what it declares."""
        return min(profile.max_layers or len(self.layers), len(self.layers))

    def rank_of(self, profile: Profile) -> int:
        """Return the rank of a client whose layers are to be chosen: the federation's, unless it declares less."""
        return min(self.rank, profile.max_rank or self.rank)

    def budget(self, profile: Profile, client_id: str = "a client") -> int:
        """Return how many layers a client can train wherever they are: the lowest, and the largest others.

        Raises:
            NothingFits: not one.
        """
        rank = self.rank_of(profile)
        others = sorted(range(1, len(self.layers)), key=lambda i: -self.layers[i].coordinates(rank))
        count = self.most_layers(profile)
        while count and not self.fits(profile, [0, *others[: count - 1]], rank):
            count -= 1
        if count == 0:
            raise NothingFits(f"{client_id} cannot train one layer{self._why(profile, rank)}", "leave it out")
        return count

    def largest_rank(self, profile: Profile, ranks: Sequence[int], client_id: str = "a client") -> int:
        """Return the largest of the ranks at which a client can train all layers.

        Raises:
            NothingFits: none of them.
        """
        every = range(len(self.layers))
        fitting = [rank for rank in ranks if self.fits(profile, every, rank)]
        if not fitting:
            raise NothingFits(
                f"{client_id} cannot train all layers at rank {min(ranks)}{self._why(profile, min(ranks))}",
                "offer a smaller rank, or allocate layers",
            )
        return max(fitting)

    def _why(self, profile: Profile, rank: int) -> str:
        """Return what the least part would need beside what the profile has, for people."""
        top = [len(self.layers) - 1]
        needs, takes = self.memory_bytes([0], rank), self.seconds(profile, [0], rank)
        if needs > profile.memory_bytes:
            only = " (the top one would fit)" if self.fits(profile, top, rank) else ""
            return f": it needs {needs:,.0f} bytes and has {profile.memory_bytes:,.0f}{only}"
        return f": it takes {takes:,.1f} s of {self.round_s:,.1f}" if takes > self.round_s else ""

    def _wire_s(self, profile: Profile) -> float:
        """Return the seconds of a round in which the whole state is on the wire, down and up."""
        whole = self.coordinates(range(len(self.layers)), self.rank)
        return 2 * whole * self.bytes_per_coordinate / profile.bytes_per_s
