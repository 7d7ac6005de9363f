"""Length-sorted microbatches: examples of similar length together, each microbatch padded to its own longest.

Per-example clipping makes the cut exact: the sum of clipped gradients does not depend on who shares a
microbatch with whom.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_priv.training.examples import TokenisedExamples


def microbatches(lengths: NDArray[np.int64], max_tokens: int) -> list[NDArray[np.int64]]:
    """Return index arrays that partition the examples, longest first, each of at most `max_tokens` tokens.

    An example longer than `max_tokens` has a microbatch of its own.

    >>> [group.tolist() for group in microbatches(np.array([2, 9, 3, 2]), max_tokens=9)]
    [[1], [2, 0, 3]]
    """
    groups: list[NDArray[np.int64]] = []
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, int(max_tokens // lengths[order[start]]))
        groups.append(order[start : start + size])
        start += size
    return groups


def collate(examples: TokenisedExamples, device: torch.device) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``attention_mask`` of shape (n, longest), int64, padded on the right."""
    ids = np.full((len(examples), int(examples.lengths().max())), examples.pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(examples.input_ids):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return {
        "input_ids": torch.from_numpy(ids).to(device),
        "attention_mask": torch.from_numpy(mask).to(device),
    }
