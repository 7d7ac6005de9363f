"""A Trainer on a tiny model, a ledger, and callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast, Trainer, TrainingArguments

from fedlora_priv.training.huggingface import PrivacyCallback

from .lab import BATCH, DECLARED, DELTA, EPSILON, LEARNING_RATE, open_ledger, rows_of


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Of the words "0" to "96", whose ids are their numbers; 0 pads."""
    words = Tokenizer(models.WordLevel({str(i): i for i in range(97)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0")


@pytest.fixture
def ledger(tmp_path):
    with open_ledger(tmp_path) as opened:
        yield opened


@pytest.fixture
def make_trainer(tmp_path, tokenizer, tiny_model, make_examples) -> Callable[..., Any]:
    """Builds a Trainer of plain SGD on a tiny model; keyword arguments go into its `TrainingArguments`."""

    def make(
        model: Any = None, *, rows: Any = None, collator: Any = None, kind: type = Trainer, **options: Any
    ):
        given = {name: options.pop(name) for name in ("optimizers", "compute_loss_func", "model_init", "callbacks",
                                                      "eval_dataset") if name in options}  # fmt: skip
        settings = {
            "output_dir": str(tmp_path / "out"), "per_device_train_batch_size": BATCH, "max_steps": 4,
            "learning_rate": LEARNING_RATE, "optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0,
            "report_to": [], "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1,
        }  # fmt: skip
        if "model_init" not in given:
            given["model"] = tiny_model("bert") if model is None else model
        return kind(
            args=TrainingArguments(**(settings | options)),
            train_dataset=rows_of(make_examples(DECLARED)) if rows is None else rows,
            data_collator=DataCollatorWithPadding(tokenizer) if collator is None else collator,
            **given,
        )

    return make


@pytest.fixture
def private(ledger) -> Callable[..., PrivacyCallback]:
    """Builds a callback; its noise and batches are secret unless a stream is given."""

    def make(**options: Any) -> PrivacyCallback:
        settings = {"ledger": ledger, "epsilon": EPSILON, "delta": DELTA, "declared_examples": DECLARED}
        return PrivacyCallback(**(settings | options))

    return make
