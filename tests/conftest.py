"""A tiny real federation: a two-layer random BERT with its tokenizer, and text that it can learn, on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# Workers run side by side and models are tiny: threads would only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs a hub; a forgotten look-up must fail at once

GOOD = ("good", "fine", "great", "lovely", "bright")
BAD = ("bad", "poor", "awful", "dull", "grim")
NEUTRAL = ("the", "film", "was", "a", "of", "and", "story", "actor", "plot", "scene")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `AutoModel` and `AutoTokenizer` load: BERT, 2 layers of width 32, random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    words = ["[PAD]", "[UNK]", *GOOD, *BAD, *NEUTRAL]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            pad_token_id=0,
        )
        BertModel(config).save_pretrained(folder)
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
