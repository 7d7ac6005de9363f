"""The training benchmark in small: every way takes the step that its name says, and figures are what they claim."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import training_gpu
from benchmarks.common import Row
from benchmarks.training import Speed, Timing, interleaved, speed
from benchmarks.training_accuracy import accuracies
from benchmarks.training_memory import in_a_process
from benchmarks.training_ways import WAYS, Setup, adam, dtypes, ordinary_training
from fedlora_priv.adapters import read_state
from fedlora_priv.data import assets
from fedlora_priv.modeling import LoraSettings, load_model
from fedlora_priv.precision import BaseDtype
from fedlora_priv.training import TokenisedExamples


@pytest.fixture(autouse=True)
def _hooks_may_fire_early() -> Iterator[None]:
    """Opacus' own hooks warn of a first layer whose input needs no gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


@pytest.fixture
def setup(tiny_model: Path) -> Setup:
    """Forty texts of 3 to 12 tokens, of which the first token decides."""
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(2, 20, length) for length in rng.integers(3, 13, 40))
    labels = np.array([row[0] > 10 for row in ids], np.int64)

    def build(dtype: BaseDtype) -> Any:
        lora = LoraSettings(("query", "value"), rank=2)
        return load_model(tiny_model, pooling="mean", num_labels=2, lora=lora, seed=0, base_dtype=dtype)

    return Setup(build, TokenisedExamples(ids, labels, 0), max_tokens=64)


def remembered(setup: Setup) -> tuple[Setup, list[Any]]:
    """Return the setup with a list of the models that it builds."""
    models: list[Any] = []

    def build(dtype: BaseDtype) -> Any:
        models.append(setup.build(dtype))
        return models[-1]

    return Setup(build, setup.examples, setup.max_tokens), models


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains_everything_that_it_should(way: str, setup: Setup) -> None:
    kept, models = remembered(setup)
    step = WAYS[way](kept, "float32")
    before = read_state(models[0])
    step()
    after = read_state(models[0])
    unmoved = [name for name in before if np.array_equal(before[name], after[name])]
    # B is 0 at the start, so A has no gradient in a first step; noise moves it all the same.
    one_step_without_noise = way in (PLAIN, "PEFT, shuffled batches of 256")
    assert unmoved == [name for name in before if name.endswith("lora_A") and one_step_without_noise]


PLAIN = "plain, same microbatches"


def test_ways_without_clipping_and_noise_have_the_same_gradient(setup: Setup) -> None:
    kept, models = remembered(setup)
    WAYS[PLAIN](kept, "float32")()
    WAYS["PEFT, shuffled batches of 256"](kept, "float32")()  # 40 examples are one batch of it
    plain, ordinary = (read_state(model) for model in models)
    for name, values in plain.items():
        np.testing.assert_allclose(ordinary[name], values, atol=2e-5)


def test_ordinary_training_passes_over_every_example_once(setup: Setup) -> None:
    model = setup.model("float32")
    assert list(ordinary_training(setup, model, adam(model), 16)) == [16, 16, 8]


def test_no_way_has_dropout(setup: Setup) -> None:
    model = setup.model("float32")
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p] == []


def test_ways_take_turns() -> None:
    called: list[str] = []
    steps: dict[tuple[str, str], Callable[[], object]] = {
        (name, ""): lambda name=name: called.append(name) for name in "ab"
    }
    times = interleaved(steps, 2)
    assert "".join(called) == "abab"
    assert all(timing.cpu_s >= 0 and 0 <= timing.wall_s < 5 for timing in times.values())


def test_a_speed_is_examples_over_seconds() -> None:
    line = Speed("ours", Timing(2.0, 4.0), "theirs", Timing(5.0, 6.0), 100, "≥ 1.7")
    assert line.cells() == ("ours", "50", "theirs", "20", "2.50 ×", "1.50 ×", "≥ 1.7")


def test_the_table_of_times_has_every_rival(setup: Setup) -> None:
    text = "\n".join(" ".join(line.cells()) for line in speed(setup, 1))
    for name in (*WAYS, "nobody is drawn", *dtypes(setup.device)):
        assert name in text or name == "ours, checkpointing"


@pytest.mark.long
def test_all_ways_learn_what_one_token_decides(setup: Setup) -> None:
    learned = list(accuracies(setup, setup.examples, 60, 20))
    # Chance is about .5; with other draws of the batches these three ended between .875 and 1.
    assert [line.accuracy > 0.8 for line in learned] == [True] * (1 + len(dtypes(setup.device)))
    assert 1000 < min(line.examples for line in learned) <= max(line.examples for line in learned) < 1400


@pytest.mark.long
def test_the_llama_table_runs_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--batch", "4", "--longest", "16", "--repetitions", "1")
    training_gpu.main(["--shape", "tiny", "--device", "cpu", *sizes])
    table = capsys.readouterr().out
    for way, dtype, _ in training_gpu.CASES:
        assert dtype not in dtypes(torch.device("cpu")) or f"{way}, {dtype} base, Llama tiny, cpu" in table


@pytest.mark.long
@pytest.mark.skipif(not assets.is_cached(assets.MINILM), reason="MiniLM is not in the cache")
def test_more_examples_at_once_need_more_memory() -> None:
    few, many = (in_a_process(PLAIN, "float32", batch) for batch in (2, 32))
    assert 0 < few < many
    assert Row("peak", many, "few", few, unit="bytes").cells()[1].endswith("bytes")
