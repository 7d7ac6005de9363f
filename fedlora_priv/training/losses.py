"""One loss per example, a function of that example alone.

A loss averaged over all tokens or examples of a batch couples them: one example's gradient then shrinks with
the length of its companions, and clipping no longer bounds its influence as the analysis says.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlora_priv.errors import ConfigError
from fedlora_priv.pooling import float32_or_better
from fedlora_priv.training.examples import Batch

BatchLosses = Callable[[nn.Module, Batch], Tensor]
"""Given the model to call and a batch, returns one loss per example, (n,), each of that example alone."""


def model_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy of each example of a batch under a model, shape (n,)."""
    return example_losses(model(**batch.inputs).logits, batch)


def example_losses(logits: Tensor, batch: Batch) -> Tensor:
    """Return the cross-entropy of each example, float32 or better, shape (n,).

    Args:
        logits: of the model on ``batch.inputs``: (n, classes), or (n, tokens, vocabulary) for next-token
            prediction.
        batch: with labels, or with targets for next-token prediction.

    Raises:
        ConfigError: the model is of the other kind than the batch.
    """
    if batch.labels is not None and logits.dim() == 2:
        return cross_entropy(float32_or_better(logits), batch.labels, reduction="none")
    if batch.targets is not None and logits.dim() == 3:
        return next_token_losses(logits, batch.inputs["input_ids"], batch.targets)
    raise ConfigError(
        f"the model gives logits of {logits.dim()} dimensions, which do not go with these labels",
        "use a classifier with labels, or a language model without",
    )


def next_token_losses(logits: Tensor, input_ids: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over each sequence's own target tokens of their cross-entropy, float32 or better, (n,).

    A sequence without targets has nothing to predict and loss 0. Only the logits that predict a target are
    brought to float32: with a large vocabulary they are most of the memory.

    Args:
        logits: (n, tokens, vocabulary); those at t predict the token at t + 1.
        input_ids: (n, tokens).
        targets: bool (n, tokens), which tokens count.
    """
    counted = targets[:, 1:]
    rows, columns = counted.nonzero(as_tuple=True)
    predictions = float32_or_better(logits.flatten(0, 1)[rows * logits.shape[1] + columns])
    losses = cross_entropy(predictions, input_ids[:, 1:][counted], reduction="none")
    placed = losses.new_zeros(counted.shape).masked_scatter(counted, losses)
    return placed.sum(dim=1) / counted.sum(dim=1).clamp(min=1)
