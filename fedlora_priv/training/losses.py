"""One loss per example, a function of that example alone.

A loss averaged over all tokens or examples of a batch couples them: one example's gradient then shrinks with
the length of its companions, and clipping no longer bounds its influence as the analysis says.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from fedlora_priv.errors import ConfigError


def example_losses(logits: Tensor, labels: Tensor | None, batch: dict[str, Tensor]) -> Tensor:
    """Return the cross-entropy of each example, shape (n,).

    Args:
        logits: (n, classes), or (n, tokens, vocabulary) for next-token prediction.
        labels: (n,) class numbers; None for next-token prediction.
        batch: ``input_ids`` and ``attention_mask``, both (n, tokens).
    """
    if labels is not None and logits.dim() == 2:
        return cross_entropy(logits, labels, reduction="none")
    if labels is None and logits.dim() == 3:
        return next_token_losses(logits, batch["input_ids"], batch["attention_mask"])
    raise ConfigError(
        f"the model gives logits of {logits.dim()} dimensions, which do not go with these labels",
        "use a classifier with labels, or a language model without",
    )


def next_token_losses(logits: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean over each sequence's own tokens of the next token's cross-entropy, shape (n,).

    A sequence of one token has nothing to predict and loss 0.
    """
    targets = attention_mask[:, 1:].to(logits.dtype)
    losses = cross_entropy(logits[:, :-1].transpose(1, 2), input_ids[:, 1:], reduction="none")
    return (losses * targets).sum(dim=1) / targets.sum(dim=1).clamp(min=1)
