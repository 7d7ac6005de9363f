"""The slow and obvious way: each example alone, unpadded, by plain autograd in float64; then clip and add."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedlora_priv.adapters import trainable_parameters
from fedlora_priv.training.examples import Batch, Examples
from fedlora_priv.training.losses import BatchLosses, model_losses

Gradients = dict[str, Tensor]

MARGIN = 1e-6
"""Engines clip to a bound lower by this factor, so that rounding in float32 cannot carry an example above it."""


def gradients_alone(
    model: Any, examples: Examples, *, names: Sequence[str] | None = None, losses: BatchLosses = model_losses
) -> list[Gradients]:
    """Return each example's gradient, float64, of the named trainables (all by default)."""
    double = in_float64(model)
    parameters = trainable_parameters(double)
    parameters = {name: parameters[name] for name in names or parameters}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    found = []
    for i in range(len(examples)):
        loss = losses(double, batch_in_float64(examples.subset([i]))).sum()
        rows = torch.autograd.grad(loss, list(parameters.values()))
        found.append(dict(zip(parameters, rows, strict=True)))
    return found


def in_float64(model: Any) -> Any:
    """Return a copy of a model that computes in float64 throughout; its parameters keep their values."""
    double = copy.deepcopy(model).double().eval()
    for layer in double.modules():
        if isinstance(layer, nn.Linear):  # what enters a head comes in float32, whatever the base is in
            layer.register_forward_pre_hook(lambda _, inputs: tuple(value.double() for value in inputs))
        if type(layer).__name__.endswith("RMSNorm"):  # brings what it is given to float32
            layer.forward = partial(_rms_norm, layer)
    return double


def batch_in_float64(examples: Examples) -> Batch:
    """Return the examples in one batch on the CPU, pixels in float64."""
    batch = examples.collate(torch.device("cpu"))
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.inputs.items()}
    return replace(batch, inputs=inputs)


def _rms_norm(layer: Any, hidden: Tensor) -> Tensor:
    return nn.functional.rms_norm(hidden, hidden.shape[-1:], layer.weight, layer.variance_epsilon)


def groups_of(names: Sequence[str], clipping: str) -> list[list[str]]:
    """Return which arrays are clipped together."""
    if clipping == "flat":
        return [list(names)]
    owners: dict[str, list[str]] = {}
    for name in names:
        module = name.removesuffix(".lora_A").removesuffix(".lora_B").removesuffix(".lora_R")
        owners.setdefault("the head" if module == name else module, []).append(name)
    return list(owners.values())


def norms(rows: Sequence[Gradients], clipping: str = "flat") -> Tensor:
    """Return the norm of each group of each example's gradient, float64 (groups, n)."""
    groups = groups_of(list(rows[0]), clipping)
    return torch.stack([torch.stack([_flat(row, group).norm() for row in rows]) for group in groups])


def clipped_sum(rows: Sequence[Gradients], clip_norm: float, clipping: str = "flat") -> Gradients:
    """Return the sum of the examples' gradients, each group scaled down to its share, less the margin."""
    groups = groups_of(list(rows[0]), clipping)
    bound = clip_norm / len(groups) ** 0.5 / (1 + MARGIN)
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
