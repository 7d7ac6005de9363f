"""The methods study in small: what it runs and in which order, what it sums, what it keeps, what the page says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import methods_study, resumable
from benchmarks.methods_list import KIN, MAIN
from benchmarks.methods_order import LADDER, choose, wanted
from benchmarks.methods_plots import plots
from benchmarks.methods_runs import JUDGED, Federation, Setting, run
from benchmarks.methods_tables import page
from benchmarks.methods_task import FEWEST, StudyTask, load
from benchmarks.sst2_study import Lines
from fedlora_priv.training import PrivateTrainer
from fedlora_priv.training.trainer import TrainResult

from .studies import circles, each_table_has_one_width, kept_line, write_sst2

SETTING = Setting(
    "sst2", "ffa", 0.1, None, "iid", 0,
    clients=3, rounds=3, steps=2, batch=20, rank=4, optimizer="adam", base_dtype="float32",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both data sets, each of texts that one word decides."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    write_sst2(folder, rng, train=240)
    (folder / "trec").mkdir()
    for name, rows in (("TREC.train", 150), ("TREC.test", 30)):
        labels = rng.integers(0, 2, rows)
        text = "".join(f"{('LOC:city', 'NUM:date')[v]} was {('bad', 'good')[v]} caf\xe9 ?\n" for v in labels)
        (folder / "trec" / name).write_text(text, "latin-1")
    return folder


@pytest.fixture(scope="module")
def task(data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyTask:
    return load("sst2", data / "sst2_glue", 1, encoder=tiny_model, cache=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("partition", ["iid", "skewed"])
def test_clients_hold_all_training_rows_once_and_nothing_else(task: StudyTask, partition: str) -> None:
    parts = task.clients(4, partition, 3)
    held = sorted(int(row[0]) for part in parts for row in part.input_ids)
    assert held == sorted(int(row[0]) for row in task.train.input_ids)
    kept = {int(row[0]) for part in (task.validation, task.test) for row in part.input_ids}
    assert not kept & set(held)
    assert min(len(part) for part in parts) >= FEWEST * len(task.train) / 4


def test_trec_is_read_with_its_coarse_labels(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    trec = load("trec", data / "trec", 1, encoder=tiny_model, cache=tmp_path)
    assert (trec.labels, len(trec.train) + len(trec.validation), len(trec.test)) == (6, 150, 30)
    assert trec.test.labels is not None
    assert set(trec.test.labels.tolist()) == {4, 5}  # LOC and NUM in the order of the names


def test_the_cache_gives_the_same_task_again(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    first, again = (load("trec", data / "trec", 1, encoder=tiny_model, cache=tmp_path) for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 1
    setting = replace(SETTING, dataset="trec")
    assert run(setting, first, (3,)) | {"cpu_minutes": 0} == run(setting, again, (3,)) | {"cpu_minutes": 0}


@pytest.mark.parametrize("method", [*MAIN, *KIN])
def test_every_method_runs_learns_and_says_what_it_lost(task: StudyTask, method: str) -> None:
    outcome = run(replace(SETTING, method=method, learning_rate=0.03, rounds=4), task, (1, 4))
    assert outcome["validation"] > 0.9
    assert set(outcome["accuracy"]) == {1, 4}
    lost, least = outcome["lost"], outcome["least"]
    if method == "fedsa":
        assert lost == {}
    elif method in ("ffa", "fedsvd", "fedask", "rolora", "fed-sb", "rac-lora"):
        assert max(lost.values()) < 1e-4
    elif method == "fra-exact":
        assert list(lost.values()) == pytest.approx(list(least.values()), abs=1e-4)
    elif method in ("fedit", "fra", "fra-two-pass", "hybrid"):
        assert all(lost[number] >= least[number] - 1e-6 for number in lost)


def test_the_loss_of_the_average_is_that_of_its_equations(task: StudyTask) -> None:
    federation = Federation(replace(SETTING, method="fedit", rounds=2), task)
    federation.round(1)
    before = {name: array.astype(np.float64) for name, array in federation._state.items()}
    lost, _ = federation.round(2) or (None, None)
    missed = moved = 0.0
    for module in federation._layout.modules:
        a, b = module.a_name, module.b_name
        owns = [client.own for client in federation._clients]
        mean = np.mean([own[b].astype(np.float64) @ own[a] for own in owns], axis=0)
        mean_b = np.mean([own[b].astype(np.float64) for own in owns], axis=0)
        missed += np.square(mean - mean_b @ np.mean([own[a] for own in owns], axis=0)).sum()
        moved += np.square(mean - before[b] @ before[a]).sum()
    assert lost == pytest.approx(np.sqrt(missed / moved), rel=1e-4)


def test_under_dp_every_client_spends_its_epsilon(task: StudyTask) -> None:
    setting = replace(SETTING, method="fra", epsilon=8.0, optimizer="sgd", delta=1e-3, rounds=2)
    outcome = run(setting, task, ())
    assert 7.9 < outcome["spent"] <= 8.0
    assert min(outcome["noise"]) > 0.3


def test_sums_of_integers_are_those_of_floats_but_for_rounding(task: StudyTask) -> None:
    plain, wire = (Federation(replace(SETTING, method="fra", value_bits=bits), task) for bits in (None, 16))
    for federation in (plain, wire):
        federation.round(1)
    gaps = [float(np.abs(plain._state[name] - wire._state[name]).max()) for name in plain._state]
    assert 0 < max(gaps) < 1e-3


def test_a_run_that_diverges_is_as_good_as_none(task: StudyTask, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PrivateTrainer.train

    def diverged(*given: Any, **named: Any) -> TrainResult:
        result = whole(*given, **named)
        return replace(result, state={name: array * np.nan for name, array in result.state.items()})

    monkeypatch.setattr(PrivateTrainer, "train", diverged)
    outcome = run(replace(SETTING, method="fedit"), task, (1, 3))
    assert (outcome["validation"], outcome["accuracy"]) == (0.0, {})


def test_the_best_rate_is_never_at_the_edge_of_what_was_tried() -> None:
    assert choose({}, (0.1, 0.3)) == (None, (0.1, 0.3))
    assert choose({0.1: 0.9, 0.3: 0.8}, (0.1, 0.3)) == (None, (0.03,))
    assert choose({0.03: 0.9, 0.1: 0.9, 0.3: 0.8}, (0.1, 0.3)) == (None, (0.01,))  # of equals the smallest
    assert choose({0.01: 0.1, 0.03: 0.9, 0.1: 0.9, 0.3: 0.8}, (0.1, 0.3)) == (0.03, ())
    assert choose(dict.fromkeys(LADDER[:2], 0.5), LADDER[:2]) == (LADDER[0], ())  # the ladder ends


def test_rates_come_before_runs_and_kin_before_others() -> None:
    first = wanted([], ["trec"], ["ffa", "rac-lora", "fra-exact"], {})
    assert {(study, s.method, s.seed) for study, s in first} == {("grid", m, 9) for m in ("ffa", "fra")}
    lines = [
        kept_line(study, s, validation=1 - abs(np.log(s.learning_rate / 3)))
        for study, s in first
        if s.epsilon == 8.0
    ]
    then = [
        (study, s)
        for study, s in wanted(lines, ["trec"], ["ffa", "rac-lora", "fra-exact"], {})
        if s.epsilon == 8.0
    ]
    assert {(study, s.method) for study, s in then} == {
        ("final", "ffa"), ("grid", "rac-lora"), ("final", "fra-exact"), ("wire", "ffa")
    }  # fmt: skip
    assert {s.learning_rate for study, s in then if s.method == "rac-lora"} == {1.0, 3.0, 10.0}
    assert [s.seed for _, s in then if s.method == "fra-exact"] == [0, 0]  # two partitions, one seed
    assert sorted(s.seed for study, s in then if study == "final" and s.method == "ffa") == [0, 0, 1, 1, 2, 2]


@pytest.fixture
def command(data: Path, tiny_model: Path, tmp_path: Path) -> Callable[..., None]:
    """The command on the tiny data, with runs of one round."""

    def go(*more: str) -> None:
        small = ("rounds=1", "steps=1", "batch=8", "clients=2", "delta=0.001", "rank=2", "base_dtype=float32")
        where = ("--data", str(data), "--results", str(tmp_path), "--encoder", str(tiny_model))
        methods_study.main(["run", *where, "--set", *small, "--datasets", "trec", "--methods", "ffa", *more])

    return go


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--set", "rounds"), "error: argument --set: 'rounds' is not NAME=VALUE"),
        (
            ("--set", "round=1", "--data", "here"),
            "error: a setting has no 'round'; name one of dataset, method",
        ),
        (("--set", "rounds=some", "--data", "here"), "error: rounds cannot be 'some'"),
        ((), "error: run needs --data, a folder with sst2_glue and trec"),
    ],
)
def test_bad_options_are_one_clear_line(
    more: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        methods_study.main(["run", "--results", str(tmp_path), "--datasets", "trec", *more])
    assert ended.value.code != 0
    said = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err.splitlines()[-1]
    assert text in str(said)
    assert "\n" not in str(said)


def test_finished_runs_are_not_run_again_and_others_claims_are_kept(
    command: Callable[..., None], tmp_path: Path
) -> None:
    command("--most", "1")
    assert len(list(Lines(tmp_path / "methods.jsonl"))) == 1
    (_, second), (_, third) = _todo(tmp_path)[:2]
    with resumable.claimed(tmp_path / "methods.locks", "grid", second) as mine:
        assert mine
        command("--most", "1")
    kept = [line["setting"] for line in Lines(tmp_path / "methods.jsonl")]
    assert (len(kept), kept[-1]["learning_rate"]) == (2, third.learning_rate)
    assert second in [setting for _, setting in _todo(tmp_path)]


def _todo(results: Path) -> list[tuple[str, Setting]]:
    small = {"rounds": "1", "steps": "1", "batch": "8", "clients": "2", "delta": "0.001", "rank": "2"}
    return wanted(
        list(Lines(results / "methods.jsonl")), ["trec"], ["ffa"], small | {"base_dtype": "float32"}
    )


def _lines() -> list[dict[str, Any]]:
    """Two methods on TREC, three seeds, and the grid of one."""
    lines = []
    for method, base in (("fedit", 0.7), ("ffa", 0.8)):
        for seed in (0, 1, 2):
            accuracy = {str(number): base + 0.01 * seed - 0.3 / number for number in JUDGED}
            setting = Setting("trec", method, 3.0, 8.0, "skewed", seed)
            figures = {"validation": base, "lost": {"1": 0.25}, "least": {"1": 0.125}, "spent": 8.0}
            lines.append(
                kept_line("final", setting, accuracy=accuracy, coordinates=8192, cpu_minutes=6.0, **figures)
            )
    for rate, found in ((1.0, 0.5), (3.0, 0.75), (10.0, 0.25)):
        setting = Setting("trec", "fedit", rate, 8.0, "iid", 9)
        lines.append(kept_line("grid", setting, validation=found, accuracy={}, cpu_minutes=6.0))
    return lines


def test_the_page_has_means_deviations_losses_bytes_and_rates() -> None:
    text = page(_lines())
    assert "3 runs to choose rates, 6 compared, 0 with sums as they travel; 0.9 CPU hours" in text
    assert "| fedit | 0/3/0 |  | 68.0 ± 1.0 (70.0) |  |" in text
    assert "| ε = 8 | ffa | 51.0 | 66.0 | 71.0 | 75.0 | 78.0 |" in text
    assert "| TREC | skewed | fedit |  | 25.0 (12.5) |  |" in text
    assert "| fedit |  |  | 8,192 | 19.0 |" in text
    assert "| TREC | ε = 8 | fedit | 3 | -10.0 ± 0.0 | -10.0 ± 0.0 |" in text
    assert "| TREC | ε = 8 | fedit | 1: 50.0, **3: 75.0**, 10: 25.0 |" in text
    assert "(methods/trec-skewed-8.svg)" in text
    each_table_has_one_width(text)


def test_every_plot_on_the_page_is_a_drawing_of_its_runs() -> None:
    drawn = dict(plots(_lines()))
    assert set(drawn) == {"trec-skewed-8.svg"}
    tree = ElementTree.fromstring(drawn["trec-skewed-8.svg"])
    spans = [node for node in tree.iter() if node.get("class") == "span ffa"]
    dots = [dot for dot in circles(drawn["trec-skewed-8.svg"]) if dot.get("class") == "ffa"]
    assert (len(spans), len(dots)) == (len(JUDGED), len(JUDGED))
    heights = [float(dot.get("cy") or 0) for dot in dots]
    assert heights == sorted(heights, reverse=True)  # accuracy grows, and y points down
    assert all(
        float(s.get("y1") or 0) > h > float(s.get("y2") or 0) for s, h in zip(spans, heights, strict=True)
    )
