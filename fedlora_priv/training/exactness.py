"""How far a clipping engine is from brute force, on made-up examples: their gradients one by one, their sums, norms.

Brute force is plain autograd on one example, unpadded and alone in its batch, clipped by a second, slower writing
of the same definition. The engine sees the examples padded and in company. One example's gradient comes out of any
engine by giving its companion's loss the weight zero: the companion is still there, as padding and as a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedlora_priv.adapters import FACTORS
from fedlora_priv.errors import ConfigError
from fedlora_priv.training.engine import ClipCounts, Clipping, ClippingEngine
from fedlora_priv.training.examples import Batch, Examples
from fedlora_priv.training.losses import BatchLosses, model_losses
from fedlora_priv.training.support import Coordinates

Gradients = dict[str, Tensor]
"""A gradient, or a sum of them, by state name; float64."""

UNCLIPPED = 1e30
"""A clip norm that no gradient reaches."""


@dataclass(frozen=True)
class Exactness:
    """Largest relative differences seen: over the largest entry of an example's array, unless said otherwise.

    Attributes:
        repeat_error: between the same example in the same company, computed twice; L2 norm over all arrays.
        brute_force_error: between an engine's gradient of an example and that of the example alone.
        padding_error: the same, where a longer companion widens the padding; in training none does.
        companion_error: between an example's gradients beside one companion, another, and more of them at one
            padded width, as in training; L2 norm over all arrays, for that is what clipping does not bound.
        clipped_error: between an engine's clipped sums and brute force, the worst of several clip norms.
        norm_error: between the norms that an engine reports after clipping and brute force.
        arrays: number of trained arrays compared.
    """

    repeat_error: float
    brute_force_error: float
    padding_error: float
    companion_error: float
    clipped_error: float
    norm_error: float
    arrays: int


def measure(
    engine: ClippingEngine,
    trained: Mapping[str, nn.Parameter],
    examples: Examples,
    alone: Sequence[Gradients],
    clipping: Clipping,
    device: torch.device,
    losses: BatchLosses = model_losses,
    parts: Mapping[str, Coordinates] | None = None,
) -> Exactness:
    """Return how exact an engine is on three examples, at the model's present state.

    Args:
        engine: inside its `with` block.
        trained: its parameters.
        examples: three; the first and the third have one padded width, the second a larger one where padding is
            to be looked at.
        alone: their whole gradients by brute force; none of their arrays may be zero.
        clipping: what the engine was asked for.
        device: where the model lies.
        losses: what is differentiated.
        parts: of arrays that the engine trains in part.

    Raises:
        ConfigError: an array gets no gradient from the engine at all.
    """

    def one(row: int, company: Sequence[int]) -> Gradients:
        weights = [float(place == row) for place in range(len(company))]
        batch = examples.subset(company).collate(device)
        return engine_sum(engine, trained, batch, UNCLIPPED, weights, losses)[0]

    cut = [cut_to(gradient, parts or {}) for gradient in alone]
    first, again = one(0, [0, 2]), one(0, [0, 2])
    clipped_error = norm_error = 0.0
    pair, whole_pair = examples.subset([0, 2]).collate(device), [alone[0], alone[2]]
    for clip_norm in clip_norms_around([cut[0], cut[2]], clipping):
        total, counts = engine_sum(engine, trained, pair, clip_norm, losses=losses)
        worst, norm = _clipping_error(total, whole_pair, clip_norm, clipping, parts or {})
        clipped_error = _worse(clipped_error, worst)
        norm_error = _worse(norm_error, abs(counts.largest_norm - norm) / norm)
    return Exactness(
        repeat_error=distance(again, first),
        brute_force_error=_worse(
            difference(first, cut[:1], alone[:1]), difference(one(1, [0, 2]), cut[2:], alone[2:])
        ),
        padding_error=difference(one(0, [0, 1]), cut[:1], alone[:1]),
        companion_error=_worse(distance(one(0, [0, 0]), first), distance(one(0, [0] + 8 * [2]), first)),
        clipped_error=clipped_error,
        norm_error=norm_error,
        arrays=len(trained),
    )


def _clipping_error(
    total: Gradients,
    alone: Sequence[Gradients],
    clip_norm: float,
    clipping: Clipping,
    parts: Mapping[str, Coordinates],
) -> tuple[float, float]:
    """Return how far a clipped sum is from brute force on whole gradients, and the largest norm after clipping."""
    scaled = [clip(cut_to(whole, parts), clip_norm, clipping, of=whole) for whole in alone]
    clipped = [cut_to(gradient, parts) for gradient in scaled]
    return difference(total, clipped, scaled), max(norm_of(gradient) for gradient in clipped)


def gradient_alone(
    model: nn.Module, trained: Mapping[str, nn.Parameter], example: Batch, losses: BatchLosses = model_losses
) -> Gradients:
    """Return one example's gradients by plain autograd, unpadded and alone; outside any engine's `with` block."""
    required = {name: p.requires_grad for name, p in trained.items()}
    try:
        for parameter in trained.values():
            parameter.requires_grad_(True)
        loss = losses(model, example).sum()
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    finally:
        for name, parameter in trained.items():
            parameter.requires_grad_(required[name])
    for name, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            raise ConfigError(f"the loss does not depend on {name}", "train modules that the model uses")
    return {name: g.double() for name, g in zip(trained, gradients, strict=True)}


def engine_sum(
    engine: ClippingEngine,
    trained: Mapping[str, nn.Parameter],
    batch: Batch,
    clip_norm: float,
    weights: Sequence[float] | None = None,
    losses: BatchLosses = model_losses,
) -> tuple[Gradients, ClipCounts]:
    """Return the engine's clipped sum of a batch, each loss times its weight, and leave nothing of it behind."""

    def weighted(model: nn.Module) -> Tensor:
        each = losses(model, batch)
        return each if weights is None else each * each.new_tensor(weights)

    holders: dict[str, Any] = dict(trained)
    for holder in holders.values():
        holder.summed_grad = None  # a step that was cut off may have left something
    counts = engine.add(weighted, clip_norm)
    total: Gradients = {}
    for name, holder in holders.items():
        if holder.summed_grad is None:
            raise ConfigError(f"{name} got no per-example gradient", "use other target modules")
        total[name], holder.summed_grad = holder.summed_grad, None
    return total, counts


def clip_norms_around(gradients: Sequence[Gradients], clipping: Clipping) -> tuple[float, float, float]:
    """Return clip norms that scale down every group of every gradient, some of them, and none."""
    norms = [
        norm_of(part) * math.sqrt(len(groups))
        for gradient in gradients
        for groups in [_groups(gradient, clipping)]
        for part in groups
    ]
    return min(norms) / 2, math.sqrt(min(norms) * max(norms)), max(norms) * 2


def clip(
    gradient: Gradients, clip_norm: float, clipping: Clipping, *, of: Gradients | None = None
) -> Gradients:
    """Return a gradient, or another one `of` its arrays, scaled as brings each group to its share of `clip_norm`."""
    clipped: Gradients = {}
    groups = _groups(gradient, clipping)
    for part in groups:
        factor = min(1.0, clip_norm / math.sqrt(len(groups)) / norm_of(part))
        clipped |= {name: factor * (of or gradient)[name] for name in part}
    return {name: clipped[name] for name in gradient}


def cut_to(gradient: Gradients, parts: Mapping[str, Coordinates]) -> Gradients:
    """Return a gradient with zeros where arrays that are trained in part are not trained."""
    masks = {
        name: torch.zeros(part.shape.numel(), dtype=torch.bool, device=part.positions.device)
        .index_fill_(0, part.positions, True)
        .view(part.shape)
        for name, part in parts.items()
    }
    return {
        name: torch.where(masks[name], value, 0.0) if name in masks else value
        for name, value in gradient.items()
    }


def _groups(gradient: Gradients, clipping: Clipping) -> list[Gradients]:
    """Return the parts that are clipped by themselves: everything, or each adapted module and the head."""
    parts: dict[str, Gradients] = {}
    for name, value in gradient.items():
        per_module = clipping == "per-layer" and name.endswith(FACTORS)
        owner = name.rpartition(".")[0] if per_module else ""
        parts.setdefault(owner, {})[name] = value
    return list(parts.values())


def norm_of(gradient: Gradients) -> float:
    """Return the L2 norm over all arrays together."""
    return math.sqrt(sum(float(value.square().sum()) for value in gradient.values()))


def difference(
    total: Gradients, parts: Sequence[Gradients], whole: Sequence[Gradients] | None = None
) -> float:
    """Return how far `total` is from the sum of `parts`: the worst array's, over the largest entry of any part.

    Not over the sum's: gradients that are all but opposite would leave nothing to compare with. For the same reason,
    if `parts` were cut, over the largest entry of what they were cut from, `whole`. The answer is nan if an array has
    no entry that is not zero, or one that is not finite.
    """
    worst = 0.0
    for name, value in total.items():
        wanted = torch.stack([part[name] for part in parts])
        scale = max(float(gradient[name].abs().max()) for gradient in whole or parts) or math.nan
        worst = _worse(worst, float((value - wanted.sum(dim=0)).abs().max()) / scale)
    return worst


def distance(gradient: Gradients, reference: Gradients) -> float:
    """Return the L2 norm of what two gradients differ by, over that of the larger; nan if not finite."""
    apart = norm_of({name: gradient[name] - value for name, value in reference.items()})
    return apart / max(norm_of(gradient), norm_of(reference)) if apart != 0 else 0.0


def _worse(first: float, second: float) -> float:
    """Return the larger of two errors; nan if one of them is."""
    return math.nan if math.isnan(first + second) else max(first, second)
