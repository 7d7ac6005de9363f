"""The study of unequal clients in small: its splits, its sums, its order, its page."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks import heterogeneous_study
from benchmarks.equal_parts import by_label, mixed
from benchmarks.heterogeneous_cells import BOUNDS, CELLS, HOLDERS, MAIN, MORE, SEEDED, client_name
from benchmarks.heterogeneous_order import BUDGETS, PARTITIONS, SEEDS, wanted
from benchmarks.heterogeneous_plots import plots
from benchmarks.heterogeneous_runs import Federation, run
from benchmarks.heterogeneous_setting import Setting
from benchmarks.heterogeneous_tables import page
from benchmarks.methods_task import StudyTask, load
from benchmarks.sst2_study import Lines
from fedlora_priv.methods.errors import SumError
from fedlora_priv.methods.layout import State

from .studies import circles, each_table_has_one_width, kept_line, write_sst2

LAYERS = 6
SETTING = Setting(
    "sst2", "whole", 0.03, None, "iid", 0,
    rounds=3, steps=2, batch=12, rank=3, alpha=6.0, optimizer="adam", base_dtype="float32", upper_layers=LAYERS,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SST-2's files, of texts that one word decides."""
    folder = tmp_path_factory.mktemp("study")
    write_sst2(folder, np.random.default_rng(0), train=270)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model, six layers deep."""
    folder = tmp_path_factory.mktemp("deep") / "bert"
    shutil.copytree(tiny_model, folder)
    config = BertConfig.from_pretrained(folder)
    config.num_hidden_layers = LAYERS
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def task(data: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyTask:
    return load("sst2", data / "sst2_glue", LAYERS, encoder=encoder, cache=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("labels", [2, 77])
def test_splits_are_of_equal_size_and_of_all_rows(labels: int) -> None:
    rows = np.random.default_rng(1).integers(0, labels, 1004)
    for parts in (mixed(rows, 9, 0.1, np.random.default_rng(2)), by_label(rows, 9, np.random.default_rng(2))):
        assert sorted(np.concatenate(parts)) == list(range(1004))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    few = by_label(rows, 9, np.random.default_rng(2))
    assert sum(len(set(rows[part])) for part in few) <= labels + 8
    # The commonest label of a client: in an equal split of two labels about half, here far more.
    unlike = mixed(rows, 9, 0.1, np.random.default_rng(2))
    shares = [np.bincount(rows[part]).max() / len(part) for part in unlike]
    assert np.mean(shares) > (0.7 if labels == 2 else 0.15)


@pytest.mark.parametrize("name", CELLS)
def test_every_part_is_within_its_tier_and_every_layer_has_enough_clients(name: str, task: StudyTask) -> None:
    federation = Federation(replace(SETTING, method=name), task)
    for number in range(1, 5):
        dealt = federation.allocation(number)
        thin = min(len(dealt.holders(i, j)) for i in range(LAYERS) for j in range(3))
        assert thin >= HOLDERS or name in BOUNDS
        for k in range(9):
            part, third = dealt.parts[client_name(k)], k % 3 + 1
            if name == "whole":
                assert (len(part.layers), part.rank) == (LAYERS, 3)
            elif CELLS[name].by_rank or name == "least-rank":
                assert (len(part.layers), part.rank) == (LAYERS, 1 if name == "least-rank" else third)
            else:
                assert (len(part.layers), part.rank) == (2 if name == "least-layers" else 2 * third, 3)


def test_means_are_over_holders(task: StudyTask) -> None:
    federation = Federation(replace(SETTING, method="gd-inverted"), task)
    before, kept = dict(federation.state), {}
    trained = federation.trained_by

    def watched(k: int, *rest: Any) -> Any:
        kept[k] = trained(k, *rest)
        return kept[k]

    federation.trained_by = watched  # type: ignore[method-assign]  # to see what goes into the sum
    federation.round(1)
    for layer, holders in ((0, (2, 5, 8)), (3, (1, 2, 4, 5, 7, 8)), (5, tuple(range(9)))):
        names = [n for n in before if f"layer.{layer}." in n]
        assert len(names) == 4
        for name in names:
            mean = np.mean([kept[k][name] for k in holders], axis=0, dtype=np.float64)
            np.testing.assert_allclose(federation.state[name], mean, atol=1e-6)
            others = [k for k in range(9) if k not in holders]
            assert all(np.array_equal(kept[k][name], before[name]) for k in others)


@pytest.mark.parametrize("name", [*BOUNDS, "fim", "hetlora", "flexlora"])
def test_every_way_learns(name: str, task: StudyTask) -> None:
    outcome = run(replace(SETTING, method=name), task, test=False)
    assert outcome["validation"] > 0.8
    assert (outcome["accuracy"], outcome["spent"]) == (None, None)
    assert len(outcome["counts"]) == 3
    small, middle, large = outcome["trained"]
    assert small == middle == large if name in BOUNDS else small < middle < large


def test_only_a_run_that_diverged_counts_as_none(task: StudyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Federation.trained_by

    def wild(*arguments: Any) -> State:
        return {name: np.full_like(array, np.nan) for name, array in trained(*arguments).items()}

    def broken(*_: Any) -> None:
        raise SumError("the study is wrong", "mend it")

    monkeypatch.setattr(Federation, "trained_by", wild)
    assert run(replace(SETTING, method="whole"), task, test=False)["validation"] == 0.0
    monkeypatch.setattr(Federation, "round", broken)
    with pytest.raises(SumError):
        run(replace(SETTING, method="whole"), task, test=False)


def test_under_dp_every_client_spends_its_epsilon_and_a_run_can_be_repeated(task: StudyTask) -> None:
    setting = replace(
        SETTING, method="fedra", epsilon=8.0, optimizer="sgd", delta=1e-3, rounds=1, partition="few"
    )
    first, again = (run(setting, task, test=True) for _ in range(2))
    clocks = {"cpu_minutes": 0, "tier_seconds": 0}
    assert first | clocks == again | clocks
    assert 7.9 < first["spent"] <= 8.0
    assert first["validation"] is None


def test_layers_are_scored_on_the_state_as_it_is(task: StudyTask) -> None:
    federation = Federation(replace(SETTING, method="fim"), task)
    first = federation.scored()
    federation.round(1)
    assert federation.scored().values != first.values
    assert len(first.values) == LAYERS


# order


def _finished(datasets: tuple[str, ...] = ("banking77",)) -> list[dict[str, Any]]:
    """Run everything on paper: rates in the middle of each first grid are best, whole clients are best."""
    lines: list[dict[str, Any]] = []
    while todo := wanted(lines, datasets):
        rates = [pair for pair in todo if pair[0] == "grid"]
        for study, setting in rates or todo:
            peak = {None: 1e-2, 8.0: 3.0}[setting.epsilon]
            value = (
                0.8
                - 0.1 * abs(np.log(setting.learning_rate / peak))
                - 0.01 * list(CELLS).index(setting.method)
            )
            judged = (
                {"accuracy": None, "validation": value}
                if study == "grid"
                else {"accuracy": value, "validation": None}
            )
            more = {
                "counts": [[9, 6, 3, 3, 6, 9]],
                "tier_seconds": [1.0, 2.0, 3.0],
                "trained": [10.0, 20.0, 30.0],
            }
            lines.append(kept_line(study, setting, **judged, **more, spent=None, noise=0.0, cpu_minutes=0.5))
    return lines


def test_rates_come_before_what_they_are_for_and_each_partition_has_its_own() -> None:
    assert {study for study, _ in wanted([], ["banking77"])} == {"grid"}
    lines = _finished()
    finals = [Setting.from_json(line["setting"]) for line in lines if line["study"] == "final"]
    assert len(finals) == len({json.dumps(asdict(setting)) for setting in finals})
    budgets = sum(name == "banking77" for name, _ in BUDGETS)
    each = len(PARTITIONS) * (len(MAIN) + len(MORE) + (len(SEEDS) - 1) * len(SEEDED)) + len(MAIN)
    assert len(finals) == budgets * each
    assert {setting.learning_rate for setting in finals} == {1e-2, 3.0}
    first = finals[: budgets * len(PARTITIONS) * len(SEEDED) * len(SEEDS)]
    assert {setting.method for setting in first} == set(SEEDED)
    assert {setting.seed for setting in first[: len(first) // len(SEEDS)]} == {0}
    grids = {
        (line["setting"]["partition"], line["setting"]["epsilon"])
        for line in lines
        if line["study"] == "grid"
    }
    assert grids == {("iid", None), ("few", None), ("iid", 8.0)}
    assert not [s for _, s in wanted([], ["banking77"], ["fedra"]) if s.method != "fedra"]


def test_longer_runs_take_the_rates_of_the_shorter() -> None:
    longer = {"rounds": "40"}
    every = wanted([], ["banking77"], ["fedra", "whole"], longer, [None], _finished())
    settings = [setting for study, setting in every if study == "final"]
    assert len(settings) == len(every) > len(SEEDS) * len(PARTITIONS)
    assert {(setting.epsilon, setting.rounds, setting.learning_rate) for setting in settings} == {
        (None, 40, 1e-2)
    }
    assert not wanted([], ["banking77"], ["fedra"], longer, [None], [])


# page


def test_the_page_holds_every_row_against_whole_clients_and_the_published_order() -> None:
    lines = _finished()
    text = page(lines)
    assert "| FedRA | 71.0 ± 0.0 (-9.0) | 71.0 ± 0.0 (-9.0) | 71.0 (-9.0) |" in text
    assert "| Banking77, no DP | i.i.d. | GD-HLA, inverted | +5.0 ± 0.0 | +2.0 ± 0.0 | +2.0 ± 0.0 |" in text
    assert "| Banking77, no DP | FedRA | 10 | 20 | 30 | 0.50 | 1.00 | 1.50 |" in text
    assert "| FedRA | 9.0 | 6.0 | 3.0 | 3.0 | 6.0 | 9.0 | 3 |" in text
    assert "**0.01: 71.0**" in text
    each_table_has_one_width(text)
    assert page([]).startswith("# Unequal clients")


def test_every_plot_is_a_drawing_of_its_rows() -> None:
    drawn = dict(plots(_finished()))
    assert set(drawn) == {"heterogeneous/banking77-8.svg", "heterogeneous/banking77-none.svg"}
    assert (
        len(circles(drawn["heterogeneous/banking77-8.svg"])) == 3 * len(MAIN) + 2 * len(MORE) + 3
    )  # and the legend


def test_the_command_runs_what_is_missing_and_writes_its_page(
    data: Path, encoder: Path, tmp_path: Path
) -> None:
    small = ("rounds=1", "steps=1", "batch=8", "delta=0.001", "rank=3", "base_dtype=float32")
    where = ("--data", str(data), "--results", str(tmp_path), "--encoder", str(encoder))
    for _ in range(2):
        heterogeneous_study.main(["run", *where, "--set", *small, "--datasets", "sst2", "--most", "1"])
    rates = [line["setting"]["learning_rate"] for line in Lines(tmp_path / "heterogeneous.jsonl")]
    assert rates == [3e-3, 1e-2]
    assert "2 runs to choose rates, 0 compared" in (tmp_path / "heterogeneous.md").read_text()
