"""What the training benchmarks train: MiniLM on movie snippets, and a Llama-shaped model on random tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.training_ways import Setup
from fedlora_priv.data import assets
from fedlora_priv.data.sources import read_movie_snippets
from fedlora_priv.modeling import LoraSettings, attach_lora, load_model, load_tokenizer
from fedlora_priv.precision import BaseDtype, cast_base
from fedlora_priv.training import TokenisedExamples, tokenise

BATCH = 256
LLAMAS: dict[str, dict[str, Any]] = {
    "1b": {  # TinyLlama's shape, 1.1 billion parameters
        "hidden_size": 2048,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "intermediate_size": 5632,
        "vocab_size": 32_000,
    },
    "tiny": {  # to try the code
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 512,
    },
}
"""Shapes by the name that the command line takes."""


@cache
def snippets() -> TokenisedExamples:
    """Return all movie snippets in a fixed random order, tokenised for MiniLM."""
    path = assets.fetch(assets.MOVIE_SNIPPETS, print) / next(iter(assets.MOVIE_SNIPPETS.files))
    texts, labels = read_movie_snippets(path)
    tokenizer = load_tokenizer(assets.fetch(assets.MINILM, print))
    examples = tokenise(tokenizer, texts, labels, max_length=128)
    return examples.subset(np.random.default_rng(0).permutation(len(examples)))


def minilm_model(dtype: BaseDtype) -> Any:
    """Return MiniLM with mean pooling, LoRA r = 8 on query and value, and a head of two classes."""
    lora = LoraSettings(("query", "value"), rank=8)
    folder = assets.fetch(assets.MINILM, print)
    return load_model(folder, pooling="mean", num_labels=2, lora=lora, seed=0, base_dtype=dtype)


def minilm(batch: int = BATCH) -> Setup:
    """Return MiniLM on the first snippets."""
    return Setup(minilm_model, snippets().subset(np.arange(batch)))


def llama(shape: str, device: torch.device, *, batch: int = 32, longest: int = 512) -> Setup:
    """Return a Llama of random weights on random tokens, sequences of an eighth of `longest` tokens to `longest`."""
    rng = np.random.default_rng(0)
    vocabulary = LLAMAS[shape]["vocab_size"]
    lengths = rng.integers(longest // 8, longest + 1, batch)
    ids: tuple[NDArray[np.int64], ...] = tuple(rng.integers(1, vocabulary, int(length)) for length in lengths)
    build: Callable[[BaseDtype], Any] = partial(_llama_model, shape, longest)
    return Setup(build, TokenisedExamples(ids, None, 0), max_tokens=8 * longest, device=device)


def _llama_model(shape: str, longest: int, dtype: BaseDtype) -> Any:
    """Return a causal language model with LoRA r = 8 on the query and value projections."""
    torch.manual_seed(0)
    config = LlamaConfig(**LLAMAS[shape], max_position_embeddings=longest, pad_token_id=0)
    lora = LoraSettings(("q_proj", "v_proj"), rank=8)
    base = LlamaForCausalLM(config)
    cast_base(base, dtype)
    return attach_lora(base, lora, 0)
