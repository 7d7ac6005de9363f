"""The benchmark of partial layers in small: every part has its line, and a part does less than the whole."""

from __future__ import annotations

import pytest
import torch

from benchmarks import partial_layers, training_memory
from benchmarks.common import markdown


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_layers, "WIDTH", 48)
    monkeypatch.setattr(partial_layers, "ROUNDS", 1)
    monkeypatch.setattr(partial_layers, "TEXTS", 6)
    monkeypatch.setattr(training_memory, "can_measure", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)


def test_a_part_costs_less_than_the_whole() -> None:
    found = {row.name: row for row in partial_layers.rows()}
    assert list(found) == list(partial_layers.PARTS)
    assert found["forward, head alone"].cpu_s < found["all 12 layers"].cpu_s
    for row in found.values():
        assert len(row.cells()) == len(row.HEADER)
        assert row.cells()[5] == "not measured"
        assert markdown(row.cells()).count("|") == len(row.HEADER) + 1
