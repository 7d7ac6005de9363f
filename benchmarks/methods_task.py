"""The data of the studies: SST-2, TREC and Banking77 after the frozen lower layers, cut into training and test.

The lower layers are computed once (`sst2_cache`) and kept in a file that every process maps, so that several
processes hold one copy. Validation rows are held out of the training rows, and rates are chosen on them alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.equal_parts import by_label, mixed
from benchmarks.sst2_cache import Lowered, lowered, rows_of_states
from fedlora_priv.data import assets
from fedlora_priv.data.partition import dirichlet, iid
from fedlora_priv.data.tables import Columns, read_table
from fedlora_priv.modeling import LoraSettings, attach_lora, load_tokenizer
from fedlora_priv.precision import BaseDtype
from fedlora_priv.training import TokenisedExamples, tokenise

Name = Literal["sst2", "trec", "banking77"]
Partition = Literal["iid", "skewed", "mixed", "few"]
"""Skewed and mixed have proportions of labels drawn; in "mixed" and "few" all clients hold as many rows."""

Budget = tuple[Name, float | None]
"""A data set and ε; None for no DP."""

Rows = tuple[list[str], list[int]]

HELD_OUT: Mapping[str, int] = {"sst2": 2000, "trec": 952, "banking77": 1003}
"""Training rows that no client holds: rates are chosen on them."""

SKEW = 0.5
"""The Dirichlet parameter of the skewed partition, label by label."""

MIX = 0.1
"""That of the mixed partition, client by client."""

FEWEST = 0.2
"""A skewed partition is drawn again until every client holds this fraction of an equal share, at least."""

_COARSE = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
_SPLIT, _PARTITION = 11, 12  # separate the draws of one seed


@dataclass(frozen=True)
class StudyTask:
    """One data set, ready to be cut into clients."""

    name: Name
    labels: int
    lower: Lowered
    train: TokenisedExamples
    validation: TokenisedExamples
    test: TokenisedExamples

    def model(self, rank: int, alpha: float, targets: tuple[str, ...], dtype: BaseDtype, seed: int) -> Any:
        """Return a fresh model of the upper layers with LoRA and a head."""
        base = self.lower.base(dtype, self.labels)
        return attach_lora(base, LoraSettings(targets, rank=rank, alpha=alpha), seed)

    def clients(self, count: int, kind: Partition, seed: int) -> list[TokenisedExamples]:
        """Return what each client holds: disjoint, together all training rows."""
        generator = np.random.default_rng([seed, _PARTITION])
        if kind == "iid":
            return [self.train.subset(part) for part in iid(len(self.train), count, generator)]
        assert self.train.labels is not None
        if kind != "skewed":
            labels = self.train.labels
            dealt = (
                mixed(labels, count, MIX, generator)
                if kind == "mixed"
                else by_label(labels, count, generator)
            )
            return [self.train.subset(part) for part in dealt]
        while True:
            parts = dirichlet(self.train.labels, count, SKEW, generator)
            if min(len(part) for part in parts) >= FEWEST * len(self.train) / count:
                return [self.train.subset(np.sort(part)) for part in parts]


def load(
    name: Name,
    data: Path,
    layers: int,
    *,
    attended: bool = False,
    encoder: Path | None = None,
    cache: Path,
) -> StudyTask:
    """Return a task with all but the uppermost `layers` computed.

    Args:
        name: "sst2" (GLUE's train.tsv and dev.tsv), "trec" (TREC.train and TREC.test, six coarse labels) or
            "banking77" (train.csv and test.csv, 77 labels).
        data: the folder with those files.
        layers: how many layers are left.
        attended: the lowest of them without its attention, which is computed, too.
        encoder: a local folder instead of MiniLM.
        cache: where the lower layers' outputs are kept.
    """
    folder = assets.fetch(assets.MINILM, print) if encoder is None else encoder
    train, test = {"sst2": _sst2, "trec": _trec, "banking77": _banking77}[name](data)
    order = np.random.default_rng(_SPLIT).permutation(len(train[0]))
    held_out = min(HELD_OUT[name], len(order) // 5)
    tokenizer = load_tokenizer(folder)
    whole = tokenise(tokenizer, *train, max_length=64)
    parts = (
        whole.subset(order[held_out:]),
        whole.subset(order[:held_out]),
        tokenise(tokenizer, *test, max_length=64),
    )
    lower = _kept(folder, parts, layers, attended, cache)
    return StudyTask(name, 1 + max(train[1]), lower, *lower.examples)


def _kept(
    folder: Path, parts: tuple[TokenisedExamples, ...], layers: int, attended: bool, cache: Path
) -> Lowered:
    """Return the lower layers' outputs from the cache, or compute them; their tensor is mapped, not read."""
    digest = hashlib.sha256(f"{folder} {layers}{' attended' if attended else ''}".encode())
    for part in parts:
        digest.update(np.concatenate([*part.input_ids, part.lengths()]).tobytes())
    path = cache / f"lower-{digest.hexdigest()[:16]}.pt"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        done = lowered(folder, parts, layers, attended=attended)
        fresh = path.with_suffix(f".{os.getpid()}")
        torch.save(done.states, fresh)
        fresh.replace(path)
    states = torch.load(path, mmap=True, weights_only=True)
    return Lowered(folder, layers, states, rows_of_states(parts), 0.0, attended)


def _sst2(folder: Path) -> tuple[Rows, Rows]:
    """Return GLUE's training and development rows."""
    train, dev = (
        read_table(folder / f"{name}.tsv", Columns("sentence", "label")) for name in ("train", "dev")
    )
    return (train.texts, [int(v) for v in train.labels or ()]), (
        dev.texts,
        [int(v) for v in dev.labels or ()],
    )


def _trec(folder: Path) -> tuple[Rows, Rows]:
    """Return TREC's training and test questions with their coarse labels."""

    def read(name: str) -> Rows:
        lines = [line.split(" ", 1) for line in (folder / name).read_text("latin-1").splitlines() if line]
        return [text for _, text in lines], [_COARSE.index(label.split(":")[0]) for label, _ in lines]

    return read("TREC.train"), read("TREC.test")


def _banking77(folder: Path) -> tuple[Rows, Rows]:
    """Return Banking77's training and test questions; labels are numbered in the order of their names."""
    tables = [read_table(folder / f"{name}.csv", Columns("text", "category")) for name in ("train", "test")]
    names = sorted({str(label) for table in tables for label in table.labels or ()})
    train, test = (
        (table.texts, [names.index(str(label)) for label in table.labels or ()]) for table in tables
    )
    return train, test
