"""A tiny encoder with many unlike tokens, so that canaries have unlike gradients, and an experiment on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

VOCABULARY = 400


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def diverse_model(save_bert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer BERT of width 32 whose 400 tokens are far apart."""
    words = [f"w{i}" for i in range(VOCABULARY - 2)]
    return save_bert(tmp_path_factory.mktemp("diverse-bert"), words, initializer_range=0.3)


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Random words with random labels: nothing to learn but the rows themselves."""
    rng = np.random.default_rng(seed)
    lines = ["sentence\tlabel"]
    for _ in range(rows):
        words = " ".join(f"w{i}" for i in rng.integers(0, VOCABULARY - 2, rng.integers(2, 6)))
        lines.append(f"{words}\t{rng.integers(2)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def random_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.tsv (300 rows) and dev.tsv (100 rows)."""
    folder = tmp_path_factory.mktemp("random-data")
    for seed, (name, rows) in enumerate((("train", 300), ("dev", 100))):
        write_rows(folder / f"{name}.tsv", rows, seed)
    return folder


@pytest.fixture
def audit_file(tmp_path: Path, diverse_model: Path, random_data: Path) -> Callable[..., Path]:
    """Return a function that writes an experiment of three clients; reproducible, so no test fails by chance."""

    def write(**sections: dict[str, Any]) -> Path:
        import tomli_w

        values: dict[str, dict[str, Any]] = {
            "experiment": {"name": "audited", "seed": 3, "output": str(tmp_path / "run")},
            "model": {"source": str(diverse_model), "max_length": 16},
            "lora": {"rank": 16, "alpha": 32.0},
            "data": {"source": str(random_data), "public": True},
            "federation": {"clients": 3, "rounds": 3},
            "training": {
                "batch_size": 60, "learning_rate": 0.5, "clip_norm": 0.05, "deterministic_noise": True,
            },
            "privacy": {"epsilon": 1.0, "delta": 1e-4, "retry_rounds": 1},
            "communication": {"value_bits": 12},
        }  # fmt: skip
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        path = tmp_path / "audited.toml"
        path.write_text(tomli_w.dumps(values), encoding="utf-8")
        return path

    return write


@pytest.fixture
def unrehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs begin without the rehearsal, which would refuse such trainers: here the attack alone has to see it."""
    nothing_seen = SimpleNamespace(lines=lambda: [])
    monkeypatch.setattr("fedlora_priv.federation.setup.Parts.rehearse", lambda parts: nothing_seen)


@pytest.fixture
def without_noise(unrehearsed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The production trainer, but its noise is zero."""
    monkeypatch.setattr(
        "fedlora_priv.training.dpsgd.gaussian_noise", lambda stream, n, noise_stddev: np.zeros(n)
    )


@pytest.fixture
def without_clipping(unrehearsed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The production trainer with its noise, but it adds gradients up as they are."""
    from fedlora_priv.training import engine

    clipping = engine.clip_factors
    monkeypatch.setattr(engine, "clip_factors", lambda squares, clip_norm: clipping(squares, 1e30))
