"""Private training steps, against plain ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from transformers import BertConfig, BertModel

from benchmarks.common import Row, best
from fedlora_priv.adapters import read_state, trainable_parameters
from fedlora_priv.modeling import LoraSettings, attach_lora
from fedlora_priv.pooling import MeanPoolingClassifier
from fedlora_priv.training import PrivateTrainer, StepSettings, TokenisedExamples
from fedlora_priv.training.batching import microbatches
from fedlora_priv.training.losses import example_losses
from protocols.prg import SecretStream


def rows() -> Iterator[Row]:
    """A DP-SGD step against the plain step on the same microbatches, on a random encoder of MiniLM's shape."""
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    lora = LoraSettings(("query", "value"), rank=8)
    model = attach_lora(MeanPoolingClassifier(BertModel(config), 2), lora, 0)
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(5, 30_000, length).astype(np.int64) for length in rng.integers(8, 56, 64))
    examples = TokenisedExamples(ids, rng.integers(0, 2, 64).astype(np.int64), 0)
    trainer, start = PrivateTrainer(model), read_state(model)

    settings = StepSettings(
        steps=1, sample_rate=1.0, planned_batch_size=64, noise_multiplier=1.0, clip_norm=1.0, learning_rate=0.1,
        max_tokens_per_microbatch=1024,
    )  # fmt: skip

    def private() -> None:
        trainer.train(examples, start, settings, stream=SecretStream())

    parameters = list(trainable_parameters(model).values())

    def plain() -> None:
        for parameter in parameters:
            parameter.requires_grad_(True)
            parameter.grad = None
        for indices in microbatches(examples.lengths(), 1024):
            batch = examples.subset(indices).collate(torch.device("cpu"))
            loss = example_losses(model(**batch.inputs).logits, batch).sum() / 64
            loss.backward()  # type: ignore[no-untyped-call]
        torch.optim.SGD(parameters, lr=0.1).step()

    private()
    yield Row(
        "DP-SGD step, 64 texts, LoRA on q and v",
        best(private, 3),
        "plain step, same microbatches",
        best(plain, 3),
    )
