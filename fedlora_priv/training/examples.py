"""A client's examples, unpadded, and the padded batches that a model takes; padding happens a microbatch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_priv.errors import DataError
from fedlora_priv.training.batching import padded_widths

Indices = NDArray[np.int64] | Sequence[int]


@dataclass(frozen=True)
class Batch:
    """Padded tensors of some examples, on one device; either `labels` or `targets` is there.

    Attributes:
        inputs: keyword arguments of the model's forward, each with the examples as its first dimension.
        labels: int64 (n,) class numbers, for classification.
        targets: bool (n, tokens), for next-token prediction: which tokens count as something to predict. The
            first token, prompts and padding do not.
    """

    inputs: dict[str, Tensor] = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    targets: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


class Examples(Protocol):
    """What training needs of a data set: its size, parts of it, the cost of each example, and tensors."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def subset(self, indices: Indices) -> Self:
        """Return the examples at `indices`, in that order."""
        ...

    def lengths(self) -> NDArray[np.int64]:
        """Return how many tokens the model computes for each example, unpadded, int64 (n,)."""
        ...

    def collate(self, device: torch.device) -> Batch:
        """Return all of these examples, at least one, in one padded batch on `device`."""
        ...


@dataclass(frozen=True)
class TokenisedExamples:
    """Token ids of each example, unpadded, with a label each or for next-token prediction.

    Args:
        input_ids: one int64 array of shape (tokens,) per example, at least one token each.
        labels: int64 (n,) class numbers; None for next-token prediction.
        pad_id: the token that fills up a microbatch; masked everywhere.
        prompt_lengths: int64 (n,) number of leading tokens of each example that are given, not to be
            predicted; None for none. For next-token prediction only.
    """

    input_ids: tuple[NDArray[np.int64], ...] = field(repr=False)
    labels: NDArray[np.int64] | None = field(repr=False)
    pad_id: int
    prompt_lengths: NDArray[np.int64] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.input_ids):
            raise DataError(f"{len(self.input_ids)} texts but {len(self.labels)} labels")
        if self.prompt_lengths is not None and len(self.prompt_lengths) != len(self.input_ids):
            raise DataError(f"{len(self.input_ids)} texts but {len(self.prompt_lengths)} prompts")
        if self.labels is not None and self.prompt_lengths is not None:
            raise DataError("labels and prompts together", "classification has no prompts to leave out")
        if self.pad_id is None:
            raise DataError("the tokenizer has no padding token", "use fedlora_priv.modeling.load_tokenizer")
        if any(len(ids) == 0 for ids in self.input_ids):
            raise DataError("an example has no tokens", "use `tokenise`, which keeps empty texts valid")

    def __len__(self) -> int:
        return len(self.input_ids)

    def subset(self, indices: Indices) -> TokenisedExamples:
        """Return the examples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            input_ids=tuple(self.input_ids[i] for i in chosen),
            labels=None if self.labels is None else self.labels[chosen],
            prompt_lengths=None if self.prompt_lengths is None else self.prompt_lengths[chosen],
        )

    def __add__(self, other: TokenisedExamples) -> TokenisedExamples:
        """Return these examples and then the other's, which must be of the same kind."""
        return replace(
            self,
            input_ids=self.input_ids + other.input_ids,
            labels=_concatenated(self.labels, other.labels),
            prompt_lengths=_concatenated(self.prompt_lengths, other.prompt_lengths),
        )

    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens of each example, (n,)."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def collate(self, device: torch.device) -> Batch:
        """Return ``input_ids`` and ``attention_mask``, int64 (n, width), padded on the right.

        The width is that of the longest, as `batching.padded_widths` gives it.
        """
        lengths = self.lengths()
        ids = np.full((len(self), int(padded_widths(lengths).max())), self.pad_id, dtype=np.int64)
        for row, tokens in enumerate(self.input_ids):
            ids[row, : len(tokens)] = tokens
        position = np.arange(ids.shape[1])
        mask = position < lengths[:, None]
        inputs = {"input_ids": _to(ids, device), "attention_mask": _to(mask.astype(np.int64), device)}
        if self.labels is not None:
            return Batch(inputs, labels=_to(self.labels, device))
        prompts = np.zeros(len(self), dtype=np.int64) if self.prompt_lengths is None else self.prompt_lengths
        # Nothing comes before the first token, so nothing predicts it.
        return Batch(inputs, targets=_to(mask & (position >= np.maximum(prompts, 1)[:, None]), device))


@dataclass(frozen=True)
class ImageExamples:
    """Images of one size, with a label each.

    Args:
        pixels: float32 (n, channels, height, width), preprocessed as the model expects.
        labels: int64 (n,) class numbers.
        patch_size: side in pixels of what the model makes one token of; used for the cost of an image only.
    """

    pixels: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    patch_size: int = 16

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or self.pixels.dtype != np.float32:
            raise DataError(
                f"images of shape {self.pixels.shape} and type {self.pixels.dtype}",
                "give float32 (n, channels, height, width)",
            )
        if len(self.labels) != len(self.pixels):
            raise DataError(f"{len(self.pixels)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.pixels)

    def subset(self, indices: Indices) -> ImageExamples:
        """Return the examples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(self, pixels=self.pixels[chosen], labels=self.labels[chosen])

    def lengths(self) -> NDArray[np.int64]:
        """Return the number of patches of each image, (n,)."""
        _, _, height, width = self.pixels.shape
        patches = max(1, height // self.patch_size) * max(1, width // self.patch_size)
        return np.full(len(self), patches, dtype=np.int64)

    def collate(self, device: torch.device) -> Batch:
        """Return ``pixel_values`` of shape (n, channels, height, width) and the labels."""
        return Batch({"pixel_values": _to(self.pixels, device)}, labels=_to(self.labels, device))


def tokenise(
    tokenizer: Any,
    texts: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64] | None,
    *,
    max_length: int,
    prompts: Sequence[str] | None = None,
) -> TokenisedExamples:
    """Return the examples of `texts`, each cut to `max_length` tokens; an empty text is one padding token.

    Each text is encoded by itself: an example depends on no other.

    Args:
        tokenizer: with a padding token.
        texts: what to classify, to continue, or, with prompts, the answers.
        labels: class numbers; None for next-token prediction.
        max_length: in tokens, prompt included; what is beyond is cut off at the end.
        prompts: one for each text, for next-token prediction. The loss then counts the tokens of the text, and
            of the end-of-sequence token that follows it.
    """
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        raise DataError("the tokenizer has no padding token", "use fedlora_priv.modeling.load_tokenizer")
    if prompts is None:
        encode = partial(tokenizer, truncation=True, max_length=max_length)
        rows, prompt_lengths = _encoded(encode, texts), None
    else:
        if len(prompts) != len(texts):
            raise DataError(f"{len(texts)} texts but {len(prompts)} prompts")
        given = _encoded(tokenizer, prompts)
        answers = _encoded(partial(tokenizer, add_special_tokens=False), texts)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        rows = [(prompt + answer + end)[:max_length] for prompt, answer in zip(given, answers, strict=True)]
        prompt_lengths = np.array([len(prompt) for prompt in given], dtype=np.int64)
    # Tokenizers without special tokens (GPT-2) give nothing for an empty text, and no model takes nothing.
    ids = tuple(np.array(row or [pad_id], dtype=np.int64) for row in rows)
    classes = None if labels is None else np.asarray(labels, dtype=np.int64)
    return TokenisedExamples(ids, classes, int(pad_id), prompt_lengths)


def _encoded(encode: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text; tokenizers do not take an empty list."""
    return list(encode(list(texts))["input_ids"]) if len(texts) else []


def _concatenated(
    first: NDArray[np.int64] | None, second: NDArray[np.int64] | None
) -> NDArray[np.int64] | None:
    """Return both arrays in one, or None if neither is there."""
    if first is None or second is None:
        if first is not second:
            raise DataError(
                "only one of the two sets of examples has labels or prompts", "join like with like"
            )
        return None
    return np.concatenate([first, second])


def _to(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return a tensor on `device` of an array."""
    return torch.from_numpy(array).to(device)
