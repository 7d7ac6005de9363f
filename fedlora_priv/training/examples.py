"""Tokenised, unpadded examples; padding happens a microbatch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.errors import DataError


@dataclass(frozen=True)
class TokenisedExamples:
    """Token ids of each example, unpadded, and its label.

    Args:
        input_ids: one int64 array of shape (tokens,) per example, at least one token each.
        labels: int64 (n,) class numbers; None for next-token prediction.
        pad_id: the token that fills up a microbatch; masked everywhere.
    """

    input_ids: tuple[NDArray[np.int64], ...] = field(repr=False)
    labels: NDArray[np.int64] | None = field(repr=False)
    pad_id: int

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.input_ids):
            raise DataError(f"{len(self.input_ids)} texts but {len(self.labels)} labels")
        if any(len(ids) == 0 for ids in self.input_ids):
            raise DataError("an example has no tokens", "use `tokenise`, which keeps empty texts valid")

    def __len__(self) -> int:
        return len(self.input_ids)

    def subset(self, indices: NDArray[np.int64] | Sequence[int]) -> TokenisedExamples:
        """Return the examples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return TokenisedExamples(tuple(self.input_ids[i] for i in chosen), labels, self.pad_id)

    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens of each example, (n,)."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)


def tokenise(
    tokenizer: Any, texts: Sequence[str], labels: Sequence[int] | NDArray[np.int64] | None, *, max_length: int
) -> TokenisedExamples:
    """Return the examples of `texts`, each cut to `max_length` tokens; an empty text is one padding token.

    Each text is encoded by itself: an example depends on no other.
    """
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        raise DataError("the tokenizer has no padding token", "use fedlora_priv.modeling.load_tokenizer")
    encode = partial(tokenizer, truncation=True, max_length=max_length)
    encoded = encode(list(texts))["input_ids"] if len(texts) else []
    # Tokenizers without special tokens (GPT-2) give nothing for an empty text, and no model takes nothing.
    ids = tuple(np.array(row or [pad_id], dtype=np.int64) for row in encoded)
    return TokenisedExamples(ids, None if labels is None else np.asarray(labels, dtype=np.int64), int(pad_id))
