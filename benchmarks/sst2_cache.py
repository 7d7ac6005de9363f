"""Frozen layers that nothing trained is below are computed once for a whole study, not once a step.

Each token's hidden state after those layers is a function of its own example alone, so the guarantee does not change:
training sees the same numbers as without the cache, up to the cache's bfloat16.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_priv.pooling import MeanPoolingClassifier
from fedlora_priv.precision import BaseDtype, cast_base
from fedlora_priv.training import TokenisedExamples
from fedlora_priv.training.batching import microbatches

PAD = 0
"""The row of padding in a table of states; no token's."""


@dataclass(frozen=True)
class Lowered:
    """What is left to train once the lower layers are done.

    Attributes:
        encoder: folder of the whole encoder.
        layers: how many upper layers there are left.
        states: bfloat16 (1 + tokens, width), the lower layers' output for every token.
        examples: the given examples, their token ids replaced by rows of `states`.
        cpu_minutes: what computing the states took.
        attended: whether the lowest of the upper layers' attention is done, too: its feed-forward net is left.
    """

    encoder: Path
    layers: int
    states: Tensor
    examples: tuple[TokenisedExamples, ...]
    cpu_minutes: float
    attended: bool = False

    def base(self, dtype: BaseDtype = "float32", num_labels: int = 2) -> MeanPoolingClassifier:
        """Return a fresh classifier of the upper layers, in `dtype`, that takes rows of `states` for token ids."""
        base = MeanPoolingClassifier.from_pretrained(str(self.encoder), num_labels)
        encoder: Any = base.encoder
        encoder.encoder.layer = encoder.encoder.layer[-self.layers :]
        if self.attended:
            encoder.encoder.layer[0].attention = _Attended()
        encoder.config.num_hidden_layers = self.layers
        encoder.config.vocab_size = len(self.states)
        encoder.embeddings = _Rows(self.states, torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        cast_base(base, dtype)
        return base


class _Rows(nn.Module):
    """In the place of a BERT's embeddings: looks hidden states up."""

    def __init__(self, states: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self._states, self._dtype = states, dtype

    def forward(self, input_ids: Tensor, **_ignored: Any) -> Tensor:
        return nn.functional.embedding(input_ids, self._states).to(self._dtype)


class _Attended(nn.Module):
    """In the place of a layer's attention that is done already: passes its input on."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_ignored: Any) -> tuple[Tensor, None]:
        return hidden_states, None


def lowered(
    encoder: Path, examples: tuple[TokenisedExamples, ...], layers: int, *, attended: bool = False
) -> Lowered:
    """Return the examples after all layers of a BERT but the uppermost `layers`.

    Args:
        encoder: a folder with a BERT.
        examples: any number of data sets.
        layers: how many are left to train, fewer than the BERT has.
        attended: compute the attention of the lowest one left, too; nothing of it can be trained then.
    """
    began = time.process_time()
    model: Any = MeanPoolingClassifier.from_pretrained(str(encoder), 2).encoder
    model.eval()
    upper, model.encoder.layer = model.encoder.layer[-layers:], model.encoder.layer[:-layers]
    if attended:
        upper[0].feed_forward_chunk = nn.Identity()
        model.encoder.layer.append(upper[0])
    replaced = rows_of_states(examples)
    tokens = sum(int(part.lengths().sum()) for part in examples)
    states = torch.zeros(1 + tokens, int(model.config.hidden_size), dtype=torch.bfloat16)
    for part, rows in zip(examples, replaced, strict=True):
        _fill(states, model, part, [own[0] for own in rows.input_ids])
    return Lowered(encoder, layers, states, replaced, (time.process_time() - began) / 60, attended)


def rows_of_states(examples: tuple[TokenisedExamples, ...]) -> tuple[TokenisedExamples, ...]:
    """Return the examples with their token ids replaced by where `lowered` puts each token's state."""
    replaced, end = [], PAD + 1
    for part in examples:
        ends = end + np.cumsum([0, *part.lengths()])
        rows = tuple(np.arange(a, b) for a, b in pairwise(ends))
        replaced.append(TokenisedExamples(rows, part.labels, PAD))
        end = int(ends[-1])
    return tuple(replaced)


def _fill(states: Tensor, model: Any, examples: TokenisedExamples, starts: Any) -> None:
    """Write every example's hidden states to its rows."""
    lengths = examples.lengths()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for indices in microbatches(lengths, 4096):
            batch = examples.subset(indices).collate(torch.device("cpu")).inputs
            hidden = model(**batch).last_hidden_state.to(torch.bfloat16)
            for row, i in enumerate(indices):
                states[starts[i] : starts[i] + lengths[i]] = hidden[row, : lengths[i]]
