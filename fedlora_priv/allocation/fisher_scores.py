"""Fisher information of layers on public examples: what FIM-HLA draws layers by."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora_priv.adapters import layout, trainable_parameters
from fedlora_priv.allocation.errors import AllocationError
from fedlora_priv.allocation.layers import layers_of
from fedlora_priv.allocation.scores import LayerScores
from fedlora_priv.methods.layout import LoraModule
from fedlora_priv.training.examples import Examples
from fedlora_priv.training.hooks import per_example_gradients, take_gradients


def fisher_scores(
    model: torch.nn.Module, examples: Examples, data: str, *, batch_size: int = 16
) -> LayerScores:
    """Return the mean squared gradient of the label's logit by a layer's adapters, summed over the layer.

    Args:
        model: a PEFT classifier with the global state written to it.
        examples: the server's own, public and labelled; a hundred are enough.
        data: what they are, for the record.

    Raises:
        PrivateScores: no data are named.
        AllocationError: there are no examples, or they have no labels.
    """
    if len(examples) == 0:
        raise AllocationError("layers cannot be scored on no examples", "give some public ones")
    device = next(model.parameters()).device
    adapted = layout(model)
    trained = {n: p for n, p in trainable_parameters(model).items() if adapted.role(n) != "head"}
    squares = dict.fromkeys(trained, 0.0)
    with per_example_gradients(model, trained) as hooked:
        for start in range(0, len(examples), batch_size):
            batch = examples.subset(range(start, min(start + batch_size, len(examples)))).collate(device)
            if batch.labels is None:
                raise AllocationError(
                    "layers are scored by the label's logit, and there are no labels", "label them"
                )
            _label_logits(hooked(**batch.inputs).logits, batch.labels).sum().backward()  # type: ignore[no-untyped-call]  # backward is untyped in torch
            for name, gradients in zip(trained, take_gradients(trained), strict=True):
                squares[name] += float(gradients.squares().sum())
    values = [
        sum(squares.get(name, 0.0) for module in layer.modules for name in _arrays(module))
        for layer in layers_of(adapted)
    ]
    return LayerScores.of_public_data(tuple(value / len(examples) for value in values), data)


def _arrays(module: LoraModule) -> tuple[str, str, str]:
    """Return the names of a module's arrays; R is Fed-SB's alone."""
    return module.a_name, module.b_name, module.r_name


def _label_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each example's logit of its own label, (n,)."""
    return logits.gather(1, labels[:, None])[:, 0]
