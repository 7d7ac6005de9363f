"""What every clipping engine shares: how much each example is scaled down, and how the scaled sum is kept.

An engine runs one microbatch forward and backward and adds the clipped sum of the examples' gradients to each
trained parameter's ``summed_grad``. Engines differ only in how they come by norms and sums: see `clipping`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from fedlora_priv.adapters import FACTORS
from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.training.support import Coordinates

Mode = Literal["auto", "direct", "hooks", "ghost"]
Clipping = Literal["flat", "per-layer"]
Losses = Callable[[nn.Module], Tensor]
"""Given the model to call, returns one loss per example, (n,), each a function of that example alone."""

_ROUNDING = 1e-6  # float32 products may err by this much; clip that much lower
_SMALLEST_FACTOR = 2.0**-64  # below about 2^-126 float32 keeps too few digits of a factor for that


def require_known(*, clipping: str, mode: str) -> None:
    """Raise ConfigError unless both are words that are known here."""
    for name, value, known in (("clipping", clipping, get_args(Clipping)), ("mode", mode, get_args(Mode))):
        if value not in known:
            raise ConfigError(f"there is no {name} {value!r}", f"use {', '.join(known)}")


@dataclass(frozen=True)
class ClipCounts:
    """What clipping did to a microbatch; private.

    Attributes:
        examples: how many there were.
        clipped, non_finite: how many were scaled down, or zeroed for a gradient that is not finite.
        largest_norm: the largest norm of an example's gradient after that.
    """

    examples: int
    clipped: int
    non_finite: int
    largest_norm: float

    @property
    def unclipped(self) -> int:
        """How many went in as they were."""
        return self.examples - self.clipped - self.non_finite


def clip_factors(squares: Tensor, clip_norm: float) -> tuple[Tensor, ClipCounts]:
    """Return by how much to scale each group of each example's gradient, and what that does.

    Args:
        squares: squared norms, float64 (groups, n).
        clip_norm: L2 bound of an example's whole gradient. Each group gets ``clip_norm / √groups`` of it.

    Returns:
        Factors in [0, 1], float64 (groups, n); 0 for an example any of whose norms is not finite, or so large that
        its factor would be below 2^-64.

    Guarantee:
        Scaled so, an example's gradient is at most `clip_norm` long over all groups together.
    """
    norms = squares.sqrt()
    bound = clip_norm / math.sqrt(len(squares))
    factors = (bound / (norms * (1 + _ROUNDING))).clamp(max=1.0)
    finite = (torch.isfinite(norms.float()) & (factors >= _SMALLEST_FACTOR)).all(dim=0)
    factors = torch.where(finite, factors, 0.0)
    kept = torch.where(finite, (norms * factors).square().sum(dim=0).sqrt(), 0.0)
    clipped = (factors < 1).any(dim=0) & finite
    return factors, ClipCounts(len(kept), int(clipped.sum()), int((~finite).sum()), float(kept.max()))


class ExampleGradients(Protocol):
    """The gradients of n examples with respect to one parameter, in whatever form they are kept."""

    def squares(self) -> Tensor:
        """Return each example's squared L2 norm, float64 (n,)."""

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return the examples' sum, each times its weight (n,), float64 of the parameter's shape."""

    def without(self, left_out: Tensor) -> ExampleGradients:
        """Return them with zeros for the examples that `left_out`, bool (n,), marks."""

    def one_by_one(self) -> GradientRows:
        """Return the same gradients as an array."""


@dataclass(frozen=True)
class GradientRows:
    """Per-example gradients one by one.

    Attributes:
        rows: (n, *shape of the parameter).
        transposed: whether each row is the transpose of the parameter's gradient.
    """

    rows: Tensor = field(repr=False)
    transposed: bool = False

    def squares(self) -> Tensor:
        # Summed in float64: float32 can lose 1e-3 of a long vector's norm, and would then clip too little.
        norms: Tensor = torch.linalg.vector_norm(self.rows.flatten(1), dim=1, dtype=torch.float64)
        return norms.square()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        total: Tensor = weights.to(self.rows.dtype) @ self.rows.flatten(1)
        total = total.double().view(self.rows.shape[1:])
        return total.T if self.transposed else total

    def without(self, left_out: Tensor) -> GradientRows:
        # A factor of zero would not do: 0 * inf is nan.
        rows = self.rows.clone()
        rows[left_out] = 0.0
        return GradientRows(rows, self.transposed)

    def one_by_one(self) -> GradientRows:
        return self


class ClippingEngine(ABC):
    """Clips each example's gradient and adds up.

    Args:
        trained: the parameters to train, by state name.
        clipping: "flat" or "per-layer".
        parts: by state name, the coordinates of arrays that are trained in part: of those, all that is added up.

    Attributes:
        name: which engine it is.
        reason: why this one, for people.
    """

    name: ClassVar[str]
    reason: str = ""

    def __init__(
        self,
        trained: Mapping[str, nn.Parameter],
        clipping: Clipping,
        parts: Mapping[str, Coordinates] | None = None,
    ) -> None:
        self._trained = dict(trained)
        self._parts = dict(parts or {})
        self._groups = group_numbers(self._trained, clipping)

    @abstractmethod
    def add(self, losses: Losses, clip_norm: float) -> ClipCounts:
        """Add one microbatch's clipped gradients to each trained parameter's ``summed_grad`` (float64).

        Args:
            losses: one loss per example; their *sum* is differentiated.
            clip_norm: L2 bound of one example's gradient over all trained parameters together.

        Raises:
            FedloraError: a parameter has no per-example gradients, so it would silently not be trained.
        """

    def _factors(self, squares: Sequence[Tensor], n: int, clip_norm: float) -> tuple[Tensor, ClipCounts]:
        """Return each parameter's factors, (parameters, n), from its squared norms, one (n,) each."""
        if any(len(part) != n for part in squares):
            raise not_one_row_each()
        stacked = torch.stack(list(squares))
        groups = torch.tensor(self._groups, device=stacked.device)
        grouped = stacked.new_zeros(max(self._groups) + 1, n).index_add(0, groups, stacked)
        factors, counts = clip_factors(grouped, clip_norm)
        return factors[groups], counts

    def _clip_and_add(self, gradients: Sequence[ExampleGradients], n: int, clip_norm: float) -> ClipCounts:
        """Scale the gradients of `n` examples, in the order of the trained parameters, and add them up.

        Of arrays that are trained in part they are the gradients of those coordinates alone.
        """
        factors, counts = self._factors([g.squares() for g in gradients], n, clip_norm)
        if counts.non_finite:
            zeroed = (factors == 0).all(dim=0)
            gradients = [g.without(zeroed) for g in gradients]
        for name, gradient, weights in zip(self._trained, gradients, factors, strict=True):
            total, part = gradient.weighted_sum(weights), self._parts.get(name)
            add_to_sum(self._trained[name], total if part is None else part.scatter(total))
        return counts

    def _add_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Add clipped sums that were computed in another way."""
        for name, total in sums.items():
            add_to_sum(self._trained[name], total.double())


def group_numbers(names: Mapping[str, Any], clipping: Clipping) -> list[int]:
    """Return which group each array is clipped with: all together, or one an adapted module and the head.

    >>> group_numbers(dict.fromkeys(["a.lora_A", "a.lora_B", "b.lora_B", "head.bias"]), "per-layer")
    [0, 0, 1, 2]
    """
    if clipping == "flat":
        return [0] * len(names)
    owners = [name.rpartition(".")[0] if name.endswith(FACTORS) else "" for name in names]
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    return [numbers[owner] for owner in owners]


def add_to_sum(parameter: Any, total: Tensor) -> None:
    """Add a microbatch's clipped sum, float64, to what the parameter's batch has so far."""
    so_far = getattr(parameter, "summed_grad", None)
    parameter.summed_grad = total if so_far is None else so_far + total


def not_one_row_each() -> ConfigError:
    """Return the error for a layer whose first dimension is not the examples; how many there are is private."""
    return ConfigError(
        "a trained layer does not see one row for each example of a microbatch",
        "train other modules: this one is not computed example by example",
    )


def nothing_recorded(name: str) -> FedloraError:
    """Return the error for a trained parameter without per-example gradients."""
    return FedloraError(
        f"{name} got no per-example gradient",
        "build the trainer anew after changing the model",
    )


@contextmanager
def only_training(model: nn.Module, trained: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let `trained` alone require gradients, in evaluation mode: dropout is off, every run deterministic.

    Afterwards the model is as before, but for the sums that wait for their noise; after an exception without them.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(parameter) for parameter in trained.values()}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        model.eval()
        yield
    except BaseException:
        for holder in trained.values():  # half a batch, and private: nobody will add noise to it
            holder.__dict__.pop("summed_grad", None)
        raise
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
            parameter.grad = None
            parameter.__dict__.pop("grad_sample", None)
        model.eval()
