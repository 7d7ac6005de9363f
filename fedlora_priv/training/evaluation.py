"""How well a model does on public examples: accuracy of a classifier, perplexity of a language model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedlora_priv.errors import DataError
from fedlora_priv.training.examples import Batch
from fedlora_priv.training.losses import example_losses

LARGEST_MEAN_LOSS = 690.0
"""Beyond it exp has no float64. A model that has diverged so far, or gives nan, counts as this bad."""


@dataclass(frozen=True)
class Evaluation:
    """A figure over all of some examples.

    Attributes:
        metric: "accuracy", the share of examples whose largest logit is the label's; or "perplexity", exp of the
            mean cross-entropy over all tokens that count as something to predict (prompts do not).
        value: in [0, 1], or at least 1.
        counted: how many examples, or tokens.
    """

    metric: Literal["accuracy", "perplexity"]
    value: float
    counted: int


def evaluate(model: nn.Module, batches: Iterable[Batch]) -> Evaluation:
    """Return how well the model does on all batches together; however they are cut, the figure is the same.

    Raises:
        DataError: there is nothing to predict.
    """
    total, counted, metric = 0.0, 0, "accuracy"
    with torch.no_grad():
        for batch in batches:
            logits = model(**batch.inputs).logits
            if batch.targets is None:
                total += float((logits.argmax(dim=-1) == batch.labels).sum())
                counted += len(batch)
            else:
                tokens = batch.targets[:, 1:].sum(dim=1)
                total += float(_sum_of_losses(logits, batch, tokens))
                counted += int(tokens.sum())
                metric = "perplexity"
    if counted == 0:
        raise DataError("there is nothing to evaluate on: no example, or none with a token to predict")
    if metric == "accuracy":
        return Evaluation("accuracy", total / counted, counted)
    mean = min(LARGEST_MEAN_LOSS, total / counted)  # in this order, of nan too
    return Evaluation("perplexity", math.exp(mean), counted)


def _sum_of_losses(logits: Tensor, batch: Batch, tokens: Tensor) -> Tensor:
    """Return the cross-entropy summed over all counted tokens, from each example's mean over its own."""
    return (example_losses(logits, batch).double() * tokens).sum()
