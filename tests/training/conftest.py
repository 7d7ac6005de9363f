"""Tiny random models, built in the process: nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from fedlora_priv.modeling import LoraSettings, attach_lora
from fedlora_priv.pooling import MeanPoolingClassifier
from fedlora_priv.training import TokenisedExamples
from fedlora_priv.training.examples import ImageExamples

VOCABULARY = 97
TARGETS = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "gpt2": ("c_attn",),
    "llama": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "v_proj"),
    "vit": ("q_proj", "v_proj"),
}


def tiny_bert() -> BertConfig:
    return BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, pad_token_id=0, num_labels=2,
    )  # fmt: skip


def tiny_gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip


def tiny_llama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip


def tiny_roberta() -> RobertaConfig:
    return RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=66, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        num_labels=2,
    )  # fmt: skip


def tiny_qwen(config: type[Qwen2Config | Qwen3Config]) -> Any:
    return config(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, intermediate_size=32, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def tiny_vit() -> ViTConfig:
    return ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
        patch_size=4, num_channels=1, num_labels=2,
    )  # fmt: skip


_BASES = {
    "bert-mean": lambda: MeanPoolingClassifier(BertModel(tiny_bert()), 2),
    "bert": lambda: BertForSequenceClassification(tiny_bert()),
    "gpt2": lambda: GPT2ForSequenceClassification(tiny_gpt2()),
    "llama": lambda: LlamaForSequenceClassification(tiny_llama()),
    "gpt2-lm": lambda: GPT2LMHeadModel(tiny_gpt2()),
    "llama-lm": lambda: LlamaForCausalLM(tiny_llama()),
    "roberta": lambda: RobertaForSequenceClassification(tiny_roberta()),
    "qwen2": lambda: Qwen2ForSequenceClassification(tiny_qwen(Qwen2Config)),
    "qwen3": lambda: Qwen3ForSequenceClassification(tiny_qwen(Qwen3Config)),
    "qwen2-lm": lambda: Qwen2ForCausalLM(tiny_qwen(Qwen2Config)),
    "qwen3-lm": lambda: Qwen3ForCausalLM(tiny_qwen(Qwen3Config)),
    "vit": lambda: ViTForImageClassification(tiny_vit()),
}


def _tiny_base(kind: str) -> Any:
    torch.manual_seed(0)
    return _BASES[kind]().float()


def _tiny_model(kind: str = "bert-mean", *, rank: int = 2, seed: int = 7, train_head: bool = True) -> Any:
    """A tiny model with LoRA; language models have no head of their own to train."""
    lora = LoraSettings(TARGETS[kind.split("-")[0]], rank=rank, alpha=4.0, train_head=train_head)
    return attach_lora(_tiny_base(kind), lora, seed)


def _make_examples(
    n: int = 24, *, seed: int = 3, labels: bool = True, longest: int = 12
) -> TokenisedExamples:
    """Random sequences of different lengths; the label is whether the first token is even."""
    generator = np.random.default_rng(seed)
    ids = tuple(generator.integers(1, VOCABULARY, generator.integers(2, longest + 1)) for _ in range(n))
    classes = np.array([row[0] % 2 for row in ids], dtype=np.int64)
    return TokenisedExamples(ids, classes if labels else None, 0)


def _make_images(n: int = 12, *, seed: int = 3) -> ImageExamples:
    """Random images for "vit"; the label is whether the mean is positive."""
    pixels = np.random.default_rng(seed).normal(size=(n, 1, 8, 8)).astype(np.float32)
    return ImageExamples(pixels, (pixels.mean(axis=(1, 2, 3)) > 0).astype(np.int64), patch_size=4)


@pytest.fixture
def tiny_base() -> Callable[..., Any]:
    """Builds an unwrapped tiny model: ``tiny_base("bert-mean")``; see `_BASES` for the kinds."""
    return _tiny_base


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """Builds a tiny model with LoRA: ``tiny_model("gpt2", rank=2)``."""
    return _tiny_model


@pytest.fixture
def make_examples() -> Callable[..., TokenisedExamples]:
    """Builds random examples: ``make_examples(8, labels=False)``."""
    return _make_examples


@pytest.fixture
def make_images() -> Callable[..., ImageExamples]:
    """Builds random images for the "vit" model: ``make_images(8)``."""
    return _make_images


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread, and bit-identical from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stories() -> Path:
    """The folder of a 260k-parameter Llama, where there is one."""
    default = Path(__file__).parents[3] / "shared" / "weights"
    folder = Path(os.environ.get("FEDLORA_TEST_WEIGHTS", default)) / "stories260K-hf"
    if not (folder / "config.json").exists():
        pytest.skip("no stories260K-hf under $FEDLORA_TEST_WEIGHTS or ../shared/weights")
    return folder
