"""A tiny real federation: a two-layer random BERT with its tokenizer, and text that it can learn, on disk."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Workers run side by side and models are tiny: threads would only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a hub; a forgotten look-up must fail at once

# A red run can be run again, and a green one stays green.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put first what mostly waits: others have the cores meanwhile, and no worker ends with it alone."""
    items.sort(key=lambda item: item.get_closest_marker("waits") is None)


def pytest_collection_finish() -> None:
    """Take what is there by now out of the garbage collector's sight: to look through it takes a third of a second."""
    gc.collect()
    gc.freeze()


GOOD = ("good", "fine", "great", "lovely", "bright")
BAD = ("bad", "poor", "awful", "dull", "grim")
NEUTRAL = ("the", "film", "was", "a", "of", "and", "story", "actor", "plot", "scene")


class Silent:
    """A progress that shows nothing."""

    def say(self, line: str) -> None: ...
    def round_started(self, number: int, rounds: int) -> None: ...
    def round_finished(self, row: dict[str, object]) -> None: ...
    def answered(self, client_id: str, step: object) -> None: ...


@pytest.fixture(scope="session")
def silent() -> Silent:
    return Silent()


def _save_tokenizer(folder: Path, words: Sequence[str], **special: str) -> int:
    """Save a tokenizer of these words, with padding as token 0; return how many tokens it knows."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    every = ["[PAD]", "[UNK]", *special.values(), *words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(every)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **special
    )
    fast.save_pretrained(folder)
    return len(every)


def _save_llama(folder: Path, words: Sequence[str]) -> Path:
    """Save a tokenizer of these words and a causal Llama of 2 layers of width 32; return the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = _save_tokenizer(folder, words, eos_token="[EOS]")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=2,
            initializer_range=0.2,  # with the default the model is too flat for adapters to change it
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _save_bert(folder: Path, words: Sequence[str], **settings: float) -> Path:
    """Save a tokenizer of these words and a BERT of 2 layers of width 32 with random weights; return the folder."""
    import torch
    from transformers import BertConfig, BertModel

    vocabulary = _save_tokenizer(folder, words)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            pad_token_id=0,
            **settings,
        )
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def save_bert() -> Callable[..., Path]:
    """Saves a tiny model that `AutoModel` and `AutoTokenizer` load: ``save_bert(folder, words)``."""
    return _save_bert


@pytest.fixture(scope="session")
def tiny_model(save_bert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT whose tokens are the words of `tiny_data`."""
    return save_bert(tmp_path_factory.mktemp("tiny-bert"), [*GOOD, *BAD, *NEUTRAL])


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny causal Llama whose tokens are the words of `tiny_text`."""
    return _save_llama(tmp_path_factory.mktemp("tiny-llama"), [*GOOD, *BAD, *NEUTRAL])


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.txt (400 paragraphs) and dev.txt (60): each word has one word that follows it."""
    folder = tmp_path_factory.mktemp("tiny-text")
    rng = np.random.default_rng(0)
    words = [*GOOD, *BAD, *NEUTRAL]
    for name, rows in (("train", 400), ("dev", 60)):
        starts, lengths = rng.integers(len(words), size=rows), rng.integers(3, 14, rows)
        rows_of_words = [
            [words[(s + i) % len(words)] for i in range(n)] for s, n in zip(starts, lengths, strict=True)
        ]
        text = "\n\n".join(" ".join(row) for row in rows_of_words)
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.tsv (400 rows) and dev.tsv (100 rows): sentence, label."""
    folder = tmp_path_factory.mktemp("tiny-data")
    rng = np.random.default_rng(0)
    for name, rows in (("train", 400), ("dev", 100)):
        lines = ["sentence\tlabel"]
        for i in range(rows):
            words = [*rng.choice(GOOD if i % 2 else BAD, 3), *rng.choice(NEUTRAL, rng.integers(2, 8))]
            lines.append(f"{' '.join(rng.permutation(words))}\t{i % 2}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def experiment_file(tmp_path: Path, tiny_model: Path, tiny_data: Path) -> Callable[..., Path]:
    """Return a function that writes a tiny experiment file; keyword arguments replace whole sections."""

    def write(**sections: dict[str, object]) -> Path:
        import tomli_w

        values: dict[str, dict[str, object]] = {
            "experiment": {"name": "tiny", "seed": 3, "output": str(tmp_path / "run")},
            "model": {"source": str(tiny_model), "max_length": 16},
            "lora": {"rank": 2, "alpha": 4.0},
            "data": {"source": str(tiny_data), "public": True},
            "federation": {"clients": 5, "rounds": 3},
            "training": {"batch_size": 20, "learning_rate": 0.5},
            "privacy": {"epsilon": 8.0, "delta": 1e-4},
            "communication": {"support": "server-topk", "density": 0.5, "value_bits": 8},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        path = tmp_path / "experiment.toml"
        path.write_text(tomli_w.dumps(values), encoding="utf-8")
        return path

    return write
