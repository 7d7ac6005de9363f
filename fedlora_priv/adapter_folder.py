"""The PEFT folder of a trained model, which `PeftModel.from_pretrained` loads with nothing of this package.

Whatever a method has beside A and B is written as plain LoRA that is exactly the same map: R is multiplied into B, and
a base residual becomes further columns of B and rows of A, with ``rank_pattern`` and ``alpha_pattern``. Where that
would be larger than the model itself, which takes a dense residual in most modules, the folder holds the changed base
instead, in its subfolder ``base``, and the adapter is for that one.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedlora_priv.adapters import ADAPTER, adapted_layers, layout, read_state, state_name, write_state
from fedlora_priv.lora_parts import read_residual, remove_square, set_rank, write_residual
from fedlora_priv.methods.fedsb import FedSB
from fedlora_priv.methods.layout import Layout
from fedlora_priv.methods.residual import as_adapter
from fedlora_priv.pooling import MeanPoolingClassifier

MERGED_BASE = "base"
"""The subfolder of a base that a method has changed."""
_CHANGED = f", changed: see the folder {MERGED_BASE!r}"
"""What such an adapter's configuration adds to the base's name, so that nobody loads the original by it."""


def save_adapter(model: Any, folder: str | Path, *, base_model: str, notes: str = "") -> Path:
    """Write a folder that `PeftModel.from_pretrained` loads, head included, and return its path.

    Args:
        model: the PEFT model in the state to save; left unchanged.
        folder: created if needed.
        base_model: what a reader should load first: a hub name or a description, never a private path.
        notes: Markdown for the adapter's card, such as the privacy guarantee.
    """
    folder, added = Path(folder), _has_residual(model)
    merged = _is_smaller_merged(model)
    plain = _with_merged_base(model) if merged else as_plain_lora(model)
    if merged:
        _save_base(plain, folder / MERGED_BASE)
    config = plain.peft_config[ADAPTER]
    name = base_model + _CHANGED if merged else base_model
    own_name, config.base_model_name_or_path = config.base_model_name_or_path, name
    try:
        # Never "auto": that asks the hub for the base model's vocabulary, and hangs without a network.
        plain.save_pretrained(str(folder), save_embedding_layers=False)
    finally:
        config.base_model_name_or_path = own_name
    card = _card(plain, base_model, notes, merged=merged, added=added)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def load_adapter(model: Any, folder: str | Path) -> Any:
    """Return a PEFT model, in evaluation mode, with the adapter of a folder that `save_adapter` wrote.

    Args:
        model: a PEFT model on the base that the folder was saved for; used up.
        folder: the folder.
    """
    base = model.unload()
    if str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path).endswith(_CHANGED):
        labels = {"num_labels": base.config.num_labels} if isinstance(base, MeanPoolingClassifier) else {}
        base = type(base).from_pretrained(str(Path(folder) / MERGED_BASE), **labels)
    return PeftModel.from_pretrained(base, str(folder)).eval()


def as_plain_lora(model: Any) -> Any:
    """Return a model that is the same map with A, B and head alone; `model` itself if it has nothing else."""
    own, state = layout(model), read_state(model)
    roles = {own.role(name) for name in state}
    if not roles & {"R", "base"}:
        return model
    plain = _copy(model)
    for layer in adapted_layers(plain).values():
        remove_square(layer, ADAPTER)
        write_residual(layer.base_layer, {})
    higher, arrays = as_adapter(own, FedSB().as_lora(own, state) if "R" in roles else state)
    _set_ranks(plain, higher)
    write_state(plain, arrays)
    return plain


def _set_ranks(model: Any, higher: Layout) -> None:
    """Give the modules of a model these ranks and scalings, and have its PEFT configuration say so."""
    layers, config = adapted_layers(model), model.peft_config[ADAPTER]
    odd = [module for module in higher.modules if module.rank != config.r]
    for module in odd:
        set_rank(layers[module.name], ADAPTER, module.rank, module.scaling)
    if odd:  # PEFT does not know patterns and rsLoRA together
        config.rank_pattern = {f"^{module.name}": module.rank for module in higher.modules}
        config.alpha_pattern = {f"^{module.name}": module.scaling * module.rank for module in higher.modules}
        config.use_rslora = False


def _copy(model: Any, *changing: nn.Parameter) -> Any:
    """Return a copy of a PEFT model that shares the frozen weights, but for those that are about to change."""
    own = {id(parameter) for parameter in changing}
    frozen = [p for n, p in model.named_parameters() if state_name(n) is None]
    return copy.deepcopy(model, memo={id(p): p for p in frozen if id(p) not in own})


def _has_residual(model: Any) -> bool:
    """Return whether the model's state changes base weights."""
    return any(read_residual(layer.base_layer) for layer in adapted_layers(model).values())


def _is_smaller_merged(model: Any) -> bool:
    """Return whether a dense residual would make a plain adapter larger than the base itself."""
    layers, size, dense = adapted_layers(model), 0, False
    for module in layout(model).modules:
        parts, m, n = read_residual(layers[module.name].base_layer), module.out_features, module.in_features
        dense = dense or "base" in parts
        extra = len(parts["base_A"]) if "base_A" in parts else min(m, n) if parts else 0
        size += (module.rank + extra) * (m + n)
    return dense and size > sum(p.numel() for n, p in model.named_parameters() if state_name(n) is None)


def _with_merged_base(model: Any) -> Any:
    """Return a copy of a model whose residuals are in its base weights."""
    layers = adapted_layers(model).values()
    other = _copy(model, *(layer.base_layer.weight for layer in layers if read_residual(layer.base_layer)))
    for base in (layer.base_layer for layer in adapted_layers(other).values()):
        parts = {name: torch.from_numpy(part).double() for name, part in read_residual(base).items()}
        if parts:
            residual = parts["base"] if "base" in parts else parts["base_B"] @ parts["base_A"]
            if isinstance(base, Conv1D):  # keeps its weights transposed
                residual = residual.T
            base.weight.data = (base.weight.double().cpu() + residual).to(base.weight)
            write_residual(base, {})
    return other


def _save_base(model: Any, folder: Path) -> None:
    """Write the base of a PEFT model into a folder that `_loader`'s class loads."""
    base = _copy(model).unload()
    pretrained = base.encoder if isinstance(base, MeanPoolingClassifier) else base
    pretrained.save_pretrained(str(folder))


def _card(model: Any, base_model: str, notes: str, *, merged: bool, added: bool) -> str:
    """Return the adapter's card: what it is, and code that loads it.

    Args:
        model: the plain model that was saved.
        merged: whether the folder holds the base, too.
        added: whether the method has changed the base weights.
    """
    config, base = model.peft_config[ADAPTER], model.get_base_model()
    wrapper, load = _loader(type(base).__name__)
    heads = sorted({name.split(".")[0] for name in config.modules_to_save or ()})
    labels = int(base.config.num_labels) if heads else None
    parts = [
        _CARD.format(
            base=base_model, size=_size(model),
            labels="" if labels is None else f", {labels} labels. The head ({', '.join(heads)}) is inside\n"
            "`adapter_model.safetensors`",
            wrapper=wrapper, load=load, options="" if labels is None else f", num_labels={labels}",
            source=f"path/to/this/folder/{MERGED_BASE}" if merged else base_model,
        ),
        _MERGED.format(base=base_model, folder=MERGED_BASE) if merged else _ADDED if added else "",
        notes,
        "" if heads else _GENERATE.format(base=base_model),
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _size(model: Any) -> str:
    """Return rank and alpha in words."""
    config, ranks = model.peft_config[ADAPTER], {module.rank for module in layout(model).modules}
    if ranks != {config.r}:
        return (
            f"ranks {min(ranks)} to {max(ranks)} (`rank_pattern`)" if len(ranks) > 1 else f"rank {min(ranks)}"
        )
    return f"rank {config.r}, alpha {config.lora_alpha}{' (rsLoRA)' if config.use_rslora else ''}"


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

Trained with fedlora-priv on top of `{base}`: {size}{labels}.

```python
from peft import PeftModel
from {wrapper}

base = {load}.from_pretrained("{source}"{options})
model = PeftModel.from_pretrained(base, "path/to/this/folder").eval()
```
"""

_ADDED = """
## Everything is inside

The method changed the base weights while it trained. What it added to them is part of this adapter, which is why its
rank is higher than that of training; the base stays as it was published.
"""

_MERGED = """
## A changed base

The method changed the base weights while it trained, and the changed base is in the subfolder `{folder}`. On the
original `{base}` this adapter is another model, and a wrong one.
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
