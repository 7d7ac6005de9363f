"""What a machine can hold: steps of parts are measured as they are, and what fits follows from the numbers."""

from __future__ import annotations

import tomllib
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from fedlora_priv import capacity, memory
from fedlora_priv.adapters import read_state
from fedlora_priv.allocation import AllocationError, Cost, CostModel, Measurement, measuring
from fedlora_priv.allocation.measuring import Measured, measure
from fedlora_priv.modeling import LoraSettings, attach_lora
from fedlora_priv.pooling import MeanPoolingClassifier
from fedlora_priv.training import PrivateTrainer, StepSettings
from tests.allocation.lab import layout

SETTINGS = StepSettings(
    steps=3, sample_rate=0.5, planned_batch_size=4.0, noise_multiplier=1.0, clip_norm=1.0, learning_rate=0.1
)


@pytest.fixture(autouse=True)
def _one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick: what is seen does not depend on how often."""
    monkeypatch.setattr(measuring, "REPEATS", 1)


def trainer(layers: int, width: int = 16) -> PrivateTrainer:
    """One of a BERT of random weights."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=4 * width
    )  # fmt: skip
    base = MeanPoolingClassifier(BertModel(config), 2)
    return PrivateTrainer(attach_lora(base, LoraSettings(("query", "value"), rank=2), seed=0))


def test_parts_are_the_ends_the_upper_half_and_all_and_the_state_is_as_before() -> None:
    model = trainer(4)
    before = read_state(model.model)
    seen = measure(model, SETTINGS, rows=3, length=8)
    assert [part.layers for part in seen.parts] == [(3,), (0,), (2, 3), (0, 1, 2, 3)]
    assert all(part.rank == 2 and part.seconds > 0 and part.memory_bytes > 2**20 for part in seen.parts)
    assert all(np.array_equal(before[name], array) for name, array in read_state(model.model).items())
    assert (seen.rows, seen.length) == (3, 8)


def test_only_the_part_moves_in_a_step_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, moved = trainer(3), []
    train = PrivateTrainer.train

    def watched(self: PrivateTrainer, examples: Any, start: Any, settings: StepSettings, **rest: Any) -> Any:
        result = train(self, examples, start, settings, **rest)
        moved.append({name for name, array in result.state.items() if not np.array_equal(array, start[name])})
        return result

    monkeypatch.setattr(PrivateTrainer, "train", watched)
    measure(model, SETTINGS, rows=2, length=8)
    layers = [{int(name.split(".layer.")[1][0]) for name in names if ".layer." in name} for names in moved]
    assert layers[:5] == [{0, 1, 2}, {2}, {0}, {1, 2}, {0, 1, 2}]
    assert all(any("classifier" in name or ".layer." not in name for name in names) for names in moved)


@pytest.mark.skipif(
    not memory._LIMITS[0].parent.exists(), reason="the peak of a process is told on Linux alone"
)
def test_a_part_that_gradients_go_through_is_measured_as_larger() -> None:
    seen = measure(trainer(4, width=96), SETTINGS, rows=12, length=64)
    top, lowest, *_ = seen.parts
    assert lowest.memory_bytes > top.memory_bytes + 2**20
    assert seen.cost.memory.crossed > 0


def test_time_is_of_the_whole_batch_though_one_microbatch_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("fedlora_priv.allocation.measuring.time.perf_counter", lambda: float(next(clock)))
    seen = measure(trainer(2), SETTINGS, rows=3000, length=8)
    assert {part.seconds for part in seen.parts} == {3000 / (SETTINGS.max_tokens_per_microbatch // 8)}


def test_a_model_of_one_layer_has_no_parts() -> None:
    with pytest.raises(AllocationError, match="single adapted layer"):
        measure(trainer(1), SETTINGS, rows=2, length=8)


def test_the_largest_memory_begins_anew() -> None:
    cpu = torch.device("cpu")
    if memory._of_status("VmHWM") is None:
        pytest.skip("the peak of a process is told on Linux alone")
    size = 64 << 20
    memory.reset_peak(cpu)
    before = memory.peak_bytes(cpu)
    held = np.ones(size, dtype=np.uint8)
    with_it = memory.peak_bytes(cpu)
    del held
    assert with_it - before > 0.9 * size
    assert memory.peak_bytes(cpu) - before > 0.9 * size  # until it is reset
    memory.reset_peak(cpu)
    assert memory.peak_bytes(cpu) < with_it - 0.5 * size


def test_a_containers_limit_is_a_limit(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_LIMITS", (limit, tmp_path / "none"))
    free = memory.usable_bytes(torch.device("cpu"))
    limit.write_text("max\n")
    assert memory.usable_bytes(torch.device("cpu")) > free / 2
    limit.write_text("1000000\n")
    assert memory.usable_bytes(torch.device("cpu")) == 10**6


def model_of(memory_cost: Cost) -> CostModel:
    """Of six layers at rank 4."""
    return CostModel.declared(layout(6), memory=memory_cost, step=Cost(0.5, 0.1, 1e-6))


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        (3.1e9, "all 6 layers at rank 4"),
        (2.7e9, "3 of 6 layers wherever they are at rank 4; or all 6 at rank 2"),
        (1.9e9, "the top 2 of 6 layers, and none wherever it is"),
        (1.1e9, "no layer"),
    ],
)
def test_what_fits_is_the_most_that_stays_below(usable: float, expected: str) -> None:
    # 1 GB + 0.2 a layer crossed; a layer has 88 coordinates and the head 6: 1.5e6 bytes each make 0.132 GB a layer
    assert capacity.fitting(model_of(Cost(1e9, 2e8, 1.5e6)), usable).endswith(f"usable: {expected}")


def test_what_is_to_be_declared_is_toml_that_says_the_same() -> None:
    cost = model_of(Cost(1e9, 2e8, 1.5e6))
    read = tomllib.loads(capacity.declaration(cost, 4.2e9))["allocation"]
    costs = read["cost"]
    assert costs["memory_fixed_bytes"] == 1e9
    assert (costs["step_fixed_s"], costs["step_layer_s"], costs["step_coordinate_s"]) == (0.5, 0.1, 1e-6)
    assert read["tiers"] == [{"clients": ["client-1"], "memory_bytes": 4.2e9}]


def test_lines_name_every_part() -> None:
    parts = tuple(Measurement(held, 4, 1e9, 2.0) for held in ((5,), (0,), (3, 4, 5), tuple(range(6))))
    first, needs, fits = capacity.lines(Measured(model_of(Cost(1e9, 2e8, 1.5e6)), parts, 64, 32), 3.1e9)
    for text in (
        "64 rows of 32 tokens",
        "the top 1 1.000 GB, 2 s",
        "the lowest layer",
        "the top 3",
        "all layers",
    ):
        assert text in first
    assert "1: 2.341 (1.341)" in needs
    assert fits == "3.10 GB usable: all 6 layers at rank 4"
