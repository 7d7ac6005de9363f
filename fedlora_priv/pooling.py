"""A classifier by mean pooling: any `transformers` encoder, the mean of its token vectors, a linear layer.

This file needs torch and transformers only, so an adapter trained here loads elsewhere with nothing else of
this package::

    base = MeanPoolingClassifier.from_pretrained("sentence-transformers/all-MiniLM-L6-v2", num_labels=2)
    model = PeftModel.from_pretrained(base, "run/adapter")
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


def masked_mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean of each sequence's unpadded token vectors: (batch, tokens, width) -> (batch, width).

    Padding must not count: else an example's output, and its gradient, would depend on how long its
    companions in the batch are.
    """
    hidden = float32_or_better(hidden)
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def float32_or_better(values: Tensor) -> Tensor:
    """Return floating-point values in float32, or as they are in float64: sums and losses need that much.

    >>> float32_or_better(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


class MeanPoolingClassifier(nn.Module):
    """Logits from the mean of an encoder's last hidden states, through one linear layer named ``classifier``.

    Args:
        encoder: a `transformers` model whose output has ``last_hidden_state`` (batch, tokens, width).
        num_labels: number of classes.
    """

    accepts_loss_kwargs = False  # a Trainer that accumulates gradients then averages the loss itself

    def __init__(self, encoder: PreTrainedModel, num_labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        if hasattr(encoder, "pooler"):
            self.encoder.pooler = nn.Identity()  # it has no part in the mean
        self.config = encoder.config
        self.config.num_labels = num_labels
        self.classifier = nn.Linear(int(self.config.hidden_size), num_labels)

    @classmethod
    def from_pretrained(cls, source: str, num_labels: int, **options: Any) -> MeanPoolingClassifier:
        """Return a classifier around the encoder of a local folder or hub name; its head is untrained.

        Args:
            source: what `transformers.AutoModel.from_pretrained` accepts.
            num_labels: number of classes.
            options: passed on to `AutoModel.from_pretrained`.
        """
        return cls(AutoModel.from_pretrained(source, **options).float(), num_labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_ignored: Any,
    ) -> SequenceClassifierOutput:
        """Return an output whose ``logits`` have shape (batch, labels); no mask means no padding.

        With `labels`, class numbers (batch,), its ``loss`` is the mean cross-entropy, which a Trainer's evaluation
        asks for. Private training takes one loss per example instead.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.classifier(masked_mean(hidden, attention_mask))
        loss = None if labels is None else cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
