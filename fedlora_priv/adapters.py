"""A PEFT model's trainable arrays by name, in both directions, and the PEFT folder that others load.

Names in a state are the model's own, without PEFT's wrapping: ``<module>.lora_A`` (r, n), ``<module>.lora_B``
(m, r), and the head's as the base model has them, such as ``classifier.weight``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.methods.base import Layout, LoraModule, State

ADAPTER = "default"
_PREFIX = "base_model.model."
_LORA = {f".lora_A.{ADAPTER}.weight": ".lora_A", f".lora_B.{ADAPTER}.weight": ".lora_B"}
_HEAD = f".modules_to_save.{ADAPTER}"


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

    These are all LoRA factors, whether or not one is frozen at the moment, and the head unless the model was
    loaded with ``train_head=False``.

    Raises:
        ConfigError: something else requires a gradient (DoRA, LoRA on embeddings, an unfrozen base), for
            which neither per-example gradients nor uploads exist; or there is no LoRA at all.
    """
    with_head = getattr(model, "fedlora_train_head", True)
    found: dict[str, nn.Parameter] = {}
    for parameter_name, parameter in model.named_parameters():
        name = state_name(parameter_name)
        is_lora = name is not None and name.endswith((".lora_A", ".lora_B"))
        if name is not None and (is_lora or with_head):
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
    for module_name, module in model.named_modules():
        name = module_name.removeprefix(_PREFIX)
        if f"{name}.lora_A" in shapes:
            rank, in_features = shapes[f"{name}.lora_A"]
            out_features = shapes[f"{name}.lora_B"][0]
            scaling = float(module.scaling[ADAPTER])
            modules.append(LoraModule(name, out_features, in_features, rank, scaling))
    heads = {name: shape for name, shape in shapes.items() if not name.endswith((".lora_A", ".lora_B"))}
    return Layout(modules=tuple(sorted(modules, key=lambda module: module.name)), heads=heads)


def read_state(model: nn.Module) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Return copies of all trainable arrays, float32, in sorted order."""
    return {
        name: parameter.detach().to("cpu", torch.float32).numpy().copy()
        for name, parameter in trainable_parameters(model).items()
    }


def write_state(model: nn.Module, state: State) -> None:
    """Overwrite the model's trainable arrays, in place, with those of `state`.

    Raises:
        FedloraError: `state` has other names or shapes than the model, or a value that is not finite.
    """
    parameters = trainable_parameters(model)
    if set(parameters) != set(state):
        odd = sorted(set(parameters) ^ set(state))
        raise FedloraError(f"state and model differ in {', '.join(odd[:3])}", "use the same model and LoRA")
    for name, parameter in parameters.items():
        if state[name].shape != tuple(parameter.shape) or not np.isfinite(state[name]).all():
            raise FedloraError(
                f"{name} must be a finite array of shape {tuple(parameter.shape)}",
                "use the same model and LoRA",
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(state[name], dtype=np.float32)))


def save_adapter(model: Any, folder: str | Path, *, base_model: str, notes: str = "") -> Path:
    """Write a folder that `PeftModel.from_pretrained` loads, head included, and return its path.

    Args:
        model: the PEFT model, as `modeling.load_model` gives it; left unchanged.
        folder: created if needed.
        base_model: what a reader should load first: a hub name or a description, never a private path.
        notes: Markdown for the adapter's card, such as the privacy guarantee.
    """
    folder = Path(folder)
    config = model.peft_config[ADAPTER]
    own_name, config.base_model_name_or_path = config.base_model_name_or_path, base_model
    try:
        # Never "auto": that asks the hub for the base model's vocabulary, and hangs without a network.
        model.save_pretrained(str(folder), save_embedding_layers=False)
    finally:
        config.base_model_name_or_path = own_name
    (folder / "README.md").write_text(_card(model, base_model, notes), encoding="utf-8")
    return folder


def _card(model: Any, base_model: str, notes: str) -> str:
    """Return the adapter's card: what it is, and code that loads it."""
    config = model.peft_config[ADAPTER]
    base = model.get_base_model()
    wrapper, load = _loader(type(base).__name__)
    heads = sorted({name.split(".")[0] for name in config.modules_to_save or ()})
    labels = int(base.config.num_labels) if heads else None
    card = _CARD if heads else _CARD + _GENERATE
    return card.format(
        base=base_model, rank=config.r, alpha=f"{config.lora_alpha}{' (rsLoRA)' if config.use_rslora else ''}",
        labels="" if labels is None else f", {labels} labels. The head ({', '.join(heads)}) is inside\n"
        "`adapter_model.safetensors`",
        wrapper=wrapper, load=load, options="" if labels is None else f", num_labels={labels}", notes=notes,
    )  # fmt: skip


def _loader(base_class: str) -> tuple[str, str]:
    """Return what to import, and the class with `from_pretrained`, for a base of that class."""
    if base_class == "MeanPoolingClassifier":
        return "fedlora_priv.pooling import MeanPoolingClassifier", base_class
    if base_class.endswith("ForImageClassification"):
        load = "AutoModelForImageClassification"
    elif base_class.endswith("ForSequenceClassification"):
        load = "AutoModelForSequenceClassification"
    else:
        load = "AutoModelForCausalLM"
    return f"transformers import {load}", load


_CARD = """\
---
library_name: peft
base_model: "{base}"
---

# LoRA adapter

Trained with fedlora-priv on top of `{base}`: rank {rank}, alpha {alpha}{labels}.

```python
from peft import PeftModel
from {wrapper}

base = {load}.from_pretrained("{base}"{options})
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
```

{notes}
"""

_GENERATE = """
## Generating

```python
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```
"""
