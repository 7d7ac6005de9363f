"""The SST-2 study in small: what it runs, what it keeps, what it does not run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import sst2
from benchmarks.sst2_study import Average, Lines, Setting, load_task, logistic_regression, probe, run
from benchmarks.sst2_tables import page
from fedlora_priv.errors import DataError
from fedlora_priv.precision import has_bfloat16

SETTING = Setting(3.0, steps=12, batch=40, learning_rate=0.05, clip_norm=1.0)


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of GLUE's layout with 200 texts that one word decides."""
    folder = tmp_path_factory.mktemp("glue")
    rng = np.random.default_rng(0)
    for name, rows in (("train", 200), ("dev", 60)):
        labels = rng.integers(0, 2, rows)
        words = np.where(labels == 1, "good", "bad")
        text = "".join(f"the film was {word} \t{label}\n" for word, label in zip(words, labels, strict=True))
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + text)
    return folder


@pytest.fixture(scope="module")
def command(glue: Path, tiny_model: Path) -> Callable[..., None]:
    """The command with the tiny task and a setting that takes two steps."""

    def go(study: str, results: Path, *more: str) -> None:
        where = ("--data", str(glue), "--encoder", str(tiny_model), "--results", str(results))
        sst2.main(
            [study, *where, "--max-length", "8", *more, "--set", "steps=2", "batch=20", "base_dtype=float32"]
        )

    return go


def test_a_run_learns_spends_its_epsilon_and_says_what_it_did(glue: Path, tiny_model: Path) -> None:
    task = load_task(glue, max_length=8, encoder=tiny_model)
    outcome = run(SETTING, task)
    assert 2.95 < outcome["spent"] <= 3.0
    assert outcome["noise_multiplier"] > 0.3
    assert 0 <= outcome["clipped"] <= 1
    free = run(SETTING.changed("epsilon", "none").changed("clip_norm", "1e6"), task)
    assert (free["noise_multiplier"], free["spent"], free["clipped"]) == (0.0, None, 0.0)
    assert free["accuracy"] == 1.0


def test_the_probe_separates_what_one_word_decides(glue: Path, tiny_model: Path) -> None:
    assert probe(load_task(glue, max_length=8, encoder=tiny_model), inverse_penalty=1e3)["accuracy"] == 1.0


def test_the_logistic_regression_is_at_its_optimum() -> None:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((300, 5))
    labels = (inputs[:, 0] + rng.standard_normal(300) > 0.3).astype(np.int64)
    weights = logistic_regression(inputs, labels, 0.7)
    chances = 1 / (1 + np.exp(-(inputs @ weights[:-1] + weights[-1])))
    residuals = 0.7 * (labels - chances)
    np.testing.assert_allclose(inputs.T @ residuals, weights[:-1], atol=2e-3)
    assert abs(residuals.sum()) < 2e-3


def test_finished_runs_are_not_run_again(command: Callable[..., None], tmp_path: Path) -> None:
    command("final", tmp_path, "--presets", "3", "--seeds", "0")
    first = (tmp_path / "sst2.jsonl").read_text()
    command("final", tmp_path, "--presets", "3", "--seeds", "0", "1")
    both = (tmp_path / "sst2.jsonl").read_text()
    assert both.startswith(first)
    lines = [json.loads(line) for line in both.splitlines()]
    assert [line["setting"]["seed"] for line in lines] == [0, 1]
    table = (tmp_path / "sst2.md").read_text()
    values = [line["accuracy"] for line in lines]
    assert f"**{np.mean(values):.4f}** ± {np.std(values, ddof=1):.4f}" in table


def test_the_grid_moves_one_axis_at_a_time(command: Callable[..., None], tmp_path: Path) -> None:
    command("grid", tmp_path, "--vary", "rank=2,8", "clip_norm=0.7")
    settings = [line["setting"] for line in Lines(tmp_path / "sst2.jsonl")]
    clip_norm = sst2.PRESETS["3"]["clip_norm"]
    assert [(s["rank"], s["clip_norm"]) for s in settings] == [(8, clip_norm), (2, clip_norm), (8, 0.7)]
    assert "Grid, ε = 3" in (tmp_path / "sst2.md").read_text()


def test_a_line_cut_short_counts_as_not_run(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "runs" / "sst2.jsonl")
    assert list(lines) == []
    lines.add({"study": "probe"}, {"accuracy": 0.5})
    with (tmp_path / "runs" / "sst2.jsonl").open("a") as file:
        file.write('{"study": "final", "sett')
    assert not lines.have({"study": "final"})
    lines.add({"study": "final"}, {"accuracy": 0.6})
    assert [line["study"] for line in lines] == ["probe", "final"]


def test_an_average_forgets_the_start_and_then_decays() -> None:
    states = iter(np.array([value], np.float32) for value in (2.0, 4.0, 10.0))
    average = Average(0.5, lambda: {"a": next(states)})
    seen = []
    for step in (1, 2, 3):
        average.take(step)
        seen.append(float(average.state["a"][0]))
    assert seen == [2.0, 3.0, 6.5]


def test_settings_survive_their_file_and_refuse_what_they_do_not_know() -> None:
    changed = SETTING.changed("targets", "5.attention.self.query,value").changed("rank", "4")
    assert Setting.from_json(json.loads(json.dumps(changed.__dict__))) == changed
    with pytest.raises(DataError, match="no 'momentum'"):
        SETTING.changed("momentum", "0.9")
    with pytest.raises(DataError, match=r"rank cannot be '8\.5'"):
        SETTING.changed("rank", "8.5")


def test_the_page_keeps_different_settings_apart() -> None:
    figures = {"spent": None, "noise_multiplier": 0.0, "cpu_minutes": 1.0}
    setting = SETTING.changed("epsilon", "none")
    lines = [
        {"study": "final", "setting": s.__dict__, "accuracy": a, **figures}
        for s, a in ((setting, 0.5), (setting.changed("seed", "1"), 0.7), (setting.changed("rank", "4"), 0.9))
    ]
    text = page(lines)
    assert "| no DP | **0.6000** ± 0.1414 (0.5000, 0.7000) | 2 |" in text
    assert "| no DP | **0.9000** (0.9000) | 1 |" in text


def test_cached_lower_layers_give_the_same_logits(glue: Path, tiny_model: Path) -> None:
    task = load_task(glue, max_length=8, encoder=tiny_model)
    whole, _, dev, _ = task.model(SETTING)
    upper, _, dev_rows, minutes = task.model(SETTING.changed("upper_layers", "1"))
    assert minutes > 0
    assert task.model(SETTING.changed("upper_layers", "1"))[3] == minutes  # the states are kept
    assert len(upper.get_submodule("base_model.model.encoder.encoder.layer")) == 1
    device = torch.device("cpu")
    with torch.no_grad():
        expected = whole(**dev.collate(device).inputs).logits
        found = upper(**dev_rows.collate(device).inputs).logits
    # The heads are seeded by name, so they are the same; the states have bfloat16's 8 bits.
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    assert expected.std() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_upper_layers_learns(dtype: str, glue: Path, tiny_model: Path) -> None:
    if dtype == "bfloat16" and not has_bfloat16(torch.device("cpu")):
        pytest.skip("this CPU has no bfloat16 instructions")
    task = load_task(glue, max_length=8, encoder=tiny_model)
    free = SETTING.changed("epsilon", "none").changed("clip_norm", "1e6").changed("upper_layers", "1")
    assert run(free.changed("base_dtype", dtype), task)["accuracy"] == 1.0
