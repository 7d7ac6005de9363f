"""A PEFT model's arrays by name, in both directions: what is trained, and what was added to the base.

Names in a state are the model's own, without PEFT's wrapping: ``<module>.lora_A`` (r, n), ``<module>.lora_B``
(m, r), and the head's as the base model has them, such as ``classifier.weight``. Some methods add ``<module>.lora_R``
(r, r) and a base residual, ``<module>.base`` or ``<module>.base_B`` and ``.base_A`` (`fedlora_priv.methods.residual`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.lora_parts import RESIDUAL_PARTS, SQUARE, read_residual, write_residual
from fedlora_priv.methods.layout import Layout, LoraModule, State

ADAPTER = "default"
_PREFIX = "base_model.model."
_LORA = {
    f".lora_A.{ADAPTER}.weight": ".lora_A",
    f".lora_B.{ADAPTER}.weight": ".lora_B",
    f".lora_B.{ADAPTER}.{SQUARE}.weight": ".lora_R",
}
_HEAD = f".modules_to_save.{ADAPTER}"
FACTORS = (".lora_A", ".lora_B", ".lora_R")
"""Endings of the names of what is trained in an adapted module; all other trained arrays are the head's."""


def state_name(parameter_name: str) -> str | None:
    """Return the name in a state of a PEFT model's parameter; None for one of the frozen base.

    >>> state_name("base_model.model.encoder.query.lora_A.default.weight")
    'encoder.query.lora_A'
    >>> state_name("base_model.model.classifier.modules_to_save.default.bias")
    'classifier.bias'
    >>> state_name("base_model.model.encoder.query.base_layer.weight") is None
    True
    """
    name = parameter_name.removeprefix(_PREFIX)
    for suffix, short in _LORA.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix) + short
    return name.replace(_HEAD, "", 1) if f"{_HEAD}." in name else None


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a federation trains, by state name, in sorted order.

    These are all LoRA factors (and Fed-SB's squares between them), whether or not one is frozen at the moment, and
    the head unless the model was loaded with ``train_head=False``.

    Raises:
        ConfigError: something else requires a gradient (DoRA, LoRA on embeddings, an unfrozen base), for
            which neither per-example gradients nor uploads exist; or there is no LoRA at all.
    """
    with_head = getattr(model, "fedlora_train_head", True)
    found: dict[str, nn.Parameter] = {}
    for parameter_name, parameter in model.named_parameters():
        name = state_name(parameter_name)
        if name is not None and (with_head or name.endswith(FACTORS)):
            found[name] = parameter
        elif parameter.requires_grad:
            raise ConfigError(
                f"{parameter_name} would be trained but is neither LoRA on a linear layer nor the head",
                "freeze it; DoRA and LoRA on embeddings are not supported",
            )
    if not any(name.endswith(".lora_B") for name in found):
        raise ConfigError("the model has no LoRA", "load it with fedlora_priv.modeling.load_model")
    return dict(sorted(found.items()))


def layout(model: nn.Module) -> Layout:
    """Return what the methods know of a model: its adapted modules and the shapes of its trained head."""
    shapes = {name: tuple(p.shape) for name, p in trainable_parameters(model).items()}
    modules = []
    for name, layer in adapted_layers(model).items():
        rank, in_features = shapes[f"{name}.lora_A"]
        out_features = shapes[f"{name}.lora_B"][0]
        modules.append(LoraModule(name, out_features, in_features, rank, float(layer.scaling[ADAPTER])))
    heads = {name: shape for name, shape in shapes.items() if not name.endswith(FACTORS)}
    return Layout(modules=tuple(modules), heads=heads)


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Return PEFT's LoRA layers by the names of the modules that they adapt, sorted."""
    layers = {name.removeprefix(_PREFIX): m for name, m in model.named_modules() if hasattr(m, "lora_A")}
    return dict(sorted(layers.items()))


def read_trained(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return copies of all trainable arrays, float32, in sorted order."""
    return {
        name: parameter.detach().to("cpu", torch.float32).numpy().copy()
        for name, parameter in trainable_parameters(model).items()
    }


def read_state(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return copies of all trainable arrays and of base residuals, where there are any, float32, in sorted order."""
    state = read_trained(model)
    for name, layer in adapted_layers(model).items():
        parts = read_residual(layer.base_layer)
        state |= {f"{name}.{part}": values for part, values in parts.items()}
    return dict(sorted(state.items()))


def write_state(model: nn.Module, state: State) -> None:
    """Make the model the one that `state` describes: its trainable arrays, and its base residuals or none.

    The base weights themselves are never touched, so nothing is left of the residual of an earlier state.

    Raises:
        FedloraError: `state` has other names or shapes than the model, or a value that is not finite; or a
            residual on a base that is not float32.
    """
    parameters, layers = trainable_parameters(model), adapted_layers(model)
    residuals: dict[str, dict[str, NDArray[np.float32]]] = {name: {} for name in layers}
    trained = set(state)
    for name in state:
        module, _, part = name.rpartition(".")
        if module in layers and part in RESIDUAL_PARTS:
            residuals[module][part] = state[name]
            trained.remove(name)
    if set(parameters) != trained:
        odd = sorted(set(parameters) ^ trained)
        raise FedloraError(f"state and model differ in {', '.join(odd[:3])}", "use the same model and LoRA")
    for name, parameter in parameters.items():
        _require(name, state[name], tuple(parameter.shape))
    for name, parts in residuals.items():
        _require_residual(name, parts, layers[name])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(state[name], dtype=np.float32)))
    for name, parts in residuals.items():
        write_residual(layers[name].base_layer, parts)


def _require(name: str, values: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raise FedloraError unless an array of a state is finite and of that shape."""
    if values.shape != shape or not np.isfinite(values).all():
        raise FedloraError(f"{name} must be a finite array of shape {shape}", "use the same model and LoRA")


def _require_residual(module: str, parts: dict[str, NDArray[np.float32]], layer: Any) -> None:
    """Raise FedloraError unless a module's residual is dense, or two thin factors that fit, or nothing."""
    if not parts:
        return
    m, n = layer.lora_B[ADAPTER].weight.shape[0], layer.lora_A[ADAPTER].weight.shape[1]
    if set(parts) == {"base"}:
        shapes = {"base": (m, n)}
    elif set(parts) == {"base_A", "base_B"}:
        k = min(len(parts["base_A"]), m, n)
        shapes = {"base_B": (m, k), "base_A": (k, n)}
    else:
        raise FedloraError(
            f"the residual of {module} has the parts {', '.join(sorted(parts))}",
            "give base alone, or base_A and base_B",
        )
    for part, shape in shapes.items():
        _require(f"{module}.{part}", parts[part], shape)
    precision = layer.base_layer.weight.dtype
    if torch.finfo(precision).bits < 32:
        raise FedloraError(
            f"{module} is in {str(precision).removeprefix('torch.')}, too coarse for a residual",
            'load the base in "float32"',
        )
