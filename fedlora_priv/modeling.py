"""A pretrained transformer with LoRA and a head, the same for every party that has the same public seed.

Everything that could make per-example gradients wrong, or make two parties start from different weights, is
refused here rather than discovered in training.
"""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from fedlora_priv.adapters import state_name, trainable_parameters
from fedlora_priv.errors import AssetError, ConfigError, FedloraError
from fedlora_priv.pooling import MeanPoolingClassifier

Pooling = Literal["mean", "native"]
HUB_TIMEOUT_S = 5.0
_OFFLINE_CHOICES = 'use a local folder, or model.source = "demo:minilm" (from the package index)'


@dataclass(frozen=True)
class LoraSettings:
    """Which modules get LoRA, and of what size: W = W0 + (alpha/rank)·B·A.

    Args:
        target_modules: ends of the names of linear modules, such as ``query`` or ``attention.self.value``.
        rank: r, at least 1.
        alpha: numerator of the scaling alpha/rank.
        dropout: must be 0; here so that a configuration that asks for it is refused, not ignored.
        train_head: whether the classification head is trained and shared too; it is saved in either case.
        use_dora: must be False, for the same reason.

    Raises:
        ConfigError: a value that cannot be trained privately.
    """

    target_modules: tuple[str, ...]
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    train_head: bool = True
    use_dora: bool = False

    def __post_init__(self) -> None:
        if self.use_dora:
            raise ConfigError(
                "lora.use_dora has no per-example gradients (its magnitude couples the whole batch's update)",
                "set it to false",
            )
        if self.dropout != 0:
            raise ConfigError("lora.dropout must be 0 under DP-SGD (the noise regularises)", "remove it")
        if self.rank < 1 or not self.alpha > 0:
            raise ConfigError(f"lora.rank {self.rank} and lora.alpha {self.alpha} must be positive")
        if not self.target_modules:
            raise ConfigError("lora.target_modules is empty", 'name some, such as ["query", "value"]')


def load_model(
    source: str | Path, *, pooling: Pooling, num_labels: int, lora: LoraSettings, seed: int
) -> Any:
    """Return a float32 PEFT model in evaluation mode: frozen base, LoRA with B = 0, a head of `num_labels`.

    A and the head depend on `seed` and their names only, so all parties start alike (FFA-LoRA needs that).

    Args:
        source: a local folder or a hub name.
        pooling: "mean" (`MeanPoolingClassifier`) or "native" (`AutoModelForSequenceClassification`).
        num_labels: number of classes, at least 2.
        lora: which modules, which size.
        seed: public.

    Raises:
        AssetError: the model is not there, or cannot be reached within seconds.
        ConfigError: it cannot be trained privately: batch norm, unknown target modules, LoRA on embeddings.
    """
    if num_labels < 2:
        raise ConfigError(f"a classifier needs at least 2 labels, not {num_labels}")
    base = _load_base(str(source), pooling, num_labels)
    return attach_lora(base, lora, seed)


def attach_lora(base: nn.Module, lora: LoraSettings, seed: int) -> Any:
    """Return `base` wrapped by PEFT with seeded LoRA and head; see `load_model` for what is refused."""
    refuse_batch_norm(base)
    heads = _head_names(base)
    targets = _resolve_targets(base, lora.target_modules, heads)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules=targets,
        modules_to_save=heads,
        task_type=None if isinstance(base, MeanPoolingClassifier) else TaskType.SEQ_CLS,
        fan_in_fan_out=any(isinstance(base.get_submodule(name), Conv1D) for name in _matching(base, targets)),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT calls a deprecated property
        model: Any = get_peft_model(base, config)
    model.fedlora_train_head = lora.train_head
    for name, parameter in model.named_parameters():
        if ".modules_to_save." in name:
            parameter.requires_grad_(lora.train_head)
    _initialise(model, seed)
    return model.eval()


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a local folder or hub name, with a padding token set.

    Raises:
        AssetError: it is not there, or cannot be reached within seconds.
    """
    with _clear_errors(str(source)):
        tokenizer = AutoTokenizer.from_pretrained(_resolve(str(source)))
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so any existing token will do.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def refuse_batch_norm(model: nn.Module) -> None:
    """Raise ConfigError if a layer mixes the examples of a batch, which makes per-example clipping void."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(f"{name} is batch norm, which mixes examples", "use a model with layer norm")


def _load_base(source: str, pooling: Pooling, num_labels: int) -> nn.Module:
    """Return the base in float32; every weight but the head's came from the checkpoint."""
    with _clear_errors(source):
        folder = _resolve(source)
        if pooling == "mean":
            return MeanPoolingClassifier.from_pretrained(folder, num_labels)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=num_labels, output_loading_info=True
        )
    heads = _head_names(model)
    for key in sorted(info["missing_keys"]):
        if key.split(".")[0] not in heads:
            # transformers would fill it at random, differently at every party.
            raise ConfigError(f"the checkpoint has no weights for {key}", 'use model.pooling = "mean"')
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(source).pad_token_id
    model.float()
    return model  # type: ignore[no-any-return]


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
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
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


def _head_names(base: nn.Module) -> list[str]:
    """Return the top-level modules that are not the pretrained encoder: the task head."""
    encoder = "encoder" if isinstance(base, MeanPoolingClassifier) else getattr(base, "base_model_prefix", "")
    children = [name for name, child in base.named_children() if any(True for _ in child.parameters())]
    heads = [name for name in children if name != encoder]
    if not heads or heads == children:
        kind = type(base).__name__
        raise ConfigError(f"cannot tell the head of {kind} from its base", 'use model.pooling = "mean"')
    return heads


def _matching(base: nn.Module, targets: Iterable[str]) -> list[str]:
    """Return the names of modules that PEFT's suffix rule selects."""
    endings = tuple(f".{target}" for target in targets)
    return [name for name, _ in base.named_modules() if f".{name}".endswith(endings)]


def _resolve_targets(base: nn.Module, targets: tuple[str, ...], heads: list[str]) -> list[str]:
    """Return `targets`, or the full names they stand for where a suffix would also match inside the head."""
    linear = {name for name, m in base.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    linear = {name for name in linear if name.split(".")[0] not in heads}
    for target in targets:
        matches = [name for name in _matching(base, [target]) if name.split(".")[0] not in heads]
        if not matches:
            endings = sorted({name.rsplit(".", 1)[-1] for name in linear})
            nearest = difflib.get_close_matches(target, endings, n=1, cutoff=0.0)
            raise ConfigError(
                f"no module of the model is called {target!r}",
                f"the nearest is {nearest[0]!r}, of {', '.join(endings)}" if nearest else "check the model",
            )
        for name in matches:
            if name not in linear:
                kind = type(base.get_submodule(name)).__name__
                raise ConfigError(f"LoRA on {name} ({kind}) is not supported", "name linear modules only")
    full = _matching(base, targets)
    outside = [name for name in full if name.split(".")[0] not in heads]
    return list(targets) if outside == full else outside


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
