"""What the tests of the callback share: constants, rows as `datasets` gives them, and a ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from accounting.ledger import Ledger

KEY = bytes(range(32))
EPSILON, DELTA, DECLARED, BATCH = 3.0, 1e-3, 24, 6
LEARNING_RATE = 0.1
PUBLIC = {"learning_rate", "grad_norm", "epoch", "step", "privacy_epsilon", "privacy_delta"}


def open_ledger(folder: Path, name: str = "ledger.sqlite") -> Ledger:
    return Ledger.open(folder / name, client_id="me", dataset_id="rows", partition_id="all", public=False)


def without_labels(batch: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def rows_of(examples: Any) -> list[dict[str, Any]]:
    """Rows as `datasets` gives them, unpadded."""
    rows = [{"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)} for ids in examples.input_ids]
    if examples.labels is not None:
        rows = [{**row, "label": int(label)} for row, label in zip(rows, examples.labels, strict=True)]
    return rows
