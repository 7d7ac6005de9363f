"""The slow and obvious way: each example alone, unpadded, by plain autograd in float64; then clip and add."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedlora_priv.adapters import trainable_parameters
from fedlora_priv.training.examples import Examples
from fedlora_priv.training.losses import BatchLosses, model_losses

Gradients = dict[str, Tensor]


def gradients_alone(
    model: Any, examples: Examples, *, names: Sequence[str] | None = None, losses: BatchLosses = model_losses
) -> list[Gradients]:
    """Return each example's gradient, float64, of the named trainables (all by default)."""
    double = copy.deepcopy(model).double().eval()
    for layer in double.modules():
        if isinstance(layer, nn.Linear):  # what enters a head comes in float32, whatever the base is in
            layer.register_forward_pre_hook(lambda _, inputs: tuple(value.double() for value in inputs))
    parameters = trainable_parameters(double)
    parameters = {name: parameters[name] for name in names or parameters}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    found = []
    for i in range(len(examples)):
        batch = examples.subset([i]).collate(torch.device("cpu"))
        for name, value in batch.inputs.items():
            batch.inputs[name] = value.double() if value.is_floating_point() else value
        loss = losses(double, batch).sum()
        rows = torch.autograd.grad(loss, list(parameters.values()))
        found.append(dict(zip(parameters, rows, strict=True)))
    return found


def groups_of(names: Sequence[str], clipping: str) -> list[list[str]]:
    """Return which arrays are clipped together."""
    if clipping == "flat":
        return [list(names)]
    owners: dict[str, list[str]] = {}
    for name in names:
        module = name.removesuffix(".lora_A").removesuffix(".lora_B")
        owners.setdefault("the head" if module == name else module, []).append(name)
    return list(owners.values())


def norms(rows: Sequence[Gradients], clipping: str = "flat") -> Tensor:
    """Return the norm of each group of each example's gradient, float64 (groups, n)."""
    groups = groups_of(list(rows[0]), clipping)
    return torch.stack([torch.stack([_flat(row, group).norm() for row in rows]) for group in groups])


def clipped_sum(rows: Sequence[Gradients], clip_norm: float, clipping: str = "flat") -> Gradients:
    """Return the sum of the examples' gradients, each group scaled down to its share of the clip norm."""
    groups = groups_of(list(rows[0]), clipping)
    bound = clip_norm / len(groups) ** 0.5
    total = {name: torch.zeros_like(value) for name, value in rows[0].items()}
    for row in rows:
        for group in groups:
            norm = float(_flat(row, group).norm())
            for name in group:
                total[name] += row[name] * (min(1.0, bound / norm) if norm > 0 else 1.0)
    return total


def difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Return the L2 distance over the size of what was wanted, of all arrays together."""
    names = list(wanted)
    apart = _flat({name: found[name].double() for name in names}, names) - _flat(wanted, names)
    return float(apart.norm() / _flat(wanted, names).norm())


def _flat(row: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([row[name].flatten() for name in names])
