"""Do these examples fit this model? Asked before anything is drawn from them.

An example that fails in the middle of training would end the run in a step that may or may not have drawn it,
with an error from deep inside torch, and that much would be learned of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from fedlora_priv.errors import ConfigError, DataError
from fedlora_priv.training.batching import WIDTH_STEP
from fedlora_priv.training.examples import Examples, ImageExamples, TokenisedExamples


def longest_input(model: Any) -> int | None:
    """Return how many tokens a model has positions for, a multiple of what widths are rounded to; None if any.

    Args:
        model: a PEFT model.
    """
    base = model.get_base_model()
    positions = getattr(base.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    for name, module in base.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts from its padding index, and does not use the positions up to there.
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            positions = min(positions, module.num_embeddings - offset)
    return positions - positions % WIDTH_STEP


def refuse_unfit(model: Any, examples: Examples) -> None:
    """Raise if an example cannot be computed by the model, without saying which or what it is.

    Args:
        model: a PEFT model.
        examples: of any kind; a kind that is not of this package is taken on trust.

    Raises:
        DataError: a label, a token, a length or a shape out of range, images for a model of texts, or no examples
            but a list.
        ConfigError: the model takes another token for padding.
    """
    if not callable(getattr(examples, "collate", None)):
        kind = type(examples).__name__
        raise DataError(f"the examples are a {kind}, not tokenised", "use fedlora_priv.training.tokenise")
    base = model.get_base_model()
    config = base.config
    if not isinstance(examples, TokenisedExamples | ImageExamples):
        return
    takes, given = (
        "images" if are else "texts" for are in (takes_images(base), isinstance(examples, ImageExamples))
    )
    if takes != given:
        raise DataError(f"{type(base).__name__} takes {takes}, not {given}", f"use a model of {given}")
    if examples.labels is not None:
        _refuse_labels(examples.labels, int(config.num_labels))
    if len(examples) == 0:
        return
    if isinstance(examples, ImageExamples):
        _refuse_pixels(model, examples)
        return
    longest = longest_input(model)
    if longest is not None and int(examples.lengths().max()) > longest:
        raise DataError(
            f"a text has more tokens than the model has positions for ({longest})",
            f"tokenise with max_length = {longest} or less",
        )
    tokens = np.concatenate(examples.input_ids)
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        raise DataError(
            f"a token is outside the model's vocabulary of {config.vocab_size}",
            "use the model's own tokenizer",
        )
    if not 0 <= examples.pad_id < config.vocab_size:
        raise DataError(
            f"the padding token {examples.pad_id} is outside the model's vocabulary of {config.vocab_size}",
            "pad with a token that the model has, such as its end of a sequence: padding is masked",
        )
    if hasattr(base, "score") and config.pad_token_id != examples.pad_id:
        # These classifiers look for a text's last token by this number: another padding would be taken for text.
        raise ConfigError(
            f"texts are padded with token {examples.pad_id}, the model expects {config.pad_token_id}",
            "set pad_token_id of the model's configuration to the tokenizer's",
        )


def takes_images(base: Any) -> bool:
    """Return whether a model's input is pixels, not tokens."""
    return getattr(base, "main_input_name", "input_ids") == "pixel_values"


def _refuse_pixels(model: Any, images: ImageExamples) -> None:
    """Raise unless images are of a shape that the model takes, which a black one shows, and hold numbers."""
    shape = images.pixels.shape[1:]
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model(pixel_values=torch.zeros((1, *shape), dtype=torch.float32, device=parameter.device))
    except (ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"the model takes no images of shape {shape}: {reason}", "resize them") from error
    if not np.isfinite(images.pixels).all():
        raise DataError("an image has pixels that are not finite", "look for NaN where it is preprocessed")


def _refuse_labels(labels: Any, count: int) -> None:
    """Raise unless all labels are class numbers."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels are {labels.dtype}, not class numbers", "give int64")
    if len(labels) and not (labels.min() >= 0 and labels.max() < count):
        raise DataError(
            f"a label is out of range: the model has classes 0 to {count - 1}",
            "number the classes from 0, or load the model with as many as there are",
        )
