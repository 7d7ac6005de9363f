"""The communication study in small: its sums are those of real masked sessions, its order, its bytes, its page."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import communication_study, methods_runs
from benchmarks.communication_bytes import RING, dense_bytes, round_bytes, session
from benchmarks.communication_order import BUDGETS, CORNERS, FAMILIES, OTHERS, TELLING, wanted
from benchmarks.communication_plots import plots
from benchmarks.communication_runs import Clients, Masked, run
from benchmarks.communication_setting import Setting
from benchmarks.communication_tables import page
from benchmarks.communication_uplink import Uplink, ring_sum
from benchmarks.methods_task import StudyTask, load
from benchmarks.sst2_study import Lines
from fedlora_priv.communication.scales import Channels
from protocols.packing import packed_size
from protocols.private import PrivateAtClient
from protocols.quantise import Quantiser
from protocols.secagg.client import SecAggClient
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.local import run_session
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy, SessionParameters
from protocols.sparsify import Support

from .studies import circles, each_table_has_one_width, kept_line, write_sst2

TARGETS = ("intermediate.dense", "output.dense")
SETTING = Setting(
    "sst2", "fedit", 0.03, None, "iid", 0,
    clients=6, rounds=4, steps=2, batch=20, rank=4, alpha=4.0, targets=TARGETS, optimizer="adam", base_dtype="float32",
    vote_every=2,
)  # fmt: skip
SPARSE = replace(SETTING, support="server-topk", density=1 / 4, value_bits=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both data sets, each of texts that one word decides."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "banking77").mkdir()
    for name, texts in write_sst2(folder, np.random.default_rng(0), train=240).items():
        table = "".join(f'"{text}, was it?",{("lost_card", "top_up")["good" in text]}\n' for text in texts)
        (folder / "banking77" / f"{name}.csv").write_text("text,category\n" + table)
    return folder


@pytest.fixture(scope="module")
def task(data: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyTask:
    cache = tmp_path_factory.mktemp("cache")
    return load("sst2", data / "sst2_glue", 1, attended=True, encoder=tiny_model, cache=cache)


def test_with_attention_done_the_model_gives_what_the_whole_layer_gives(
    task: StudyTask, data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    # The same head on the same last layer; the cache is bfloat16 in both cases, below and above the attention.
    whole = load("sst2", data / "sst2_glue", 1, encoder=tiny_model, cache=tmp_path)
    logits = []
    for each in (whole, task):
        trainer = methods_runs.make_trainer(SETTING, each, 4)
        with torch.no_grad():
            logits.append(trainer.model(**each.test.collate(torch.device("cpu")).inputs).logits.numpy())
    np.testing.assert_allclose(logits[1], logits[0], atol=0.02 * np.abs(logits[0]).max())
    assert task.lower.attended
    assert not whole.lower.attended


def test_banking77_is_read_with_labels_in_the_order_of_their_names(
    data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    task = load("banking77", data / "banking77", 1, attended=True, encoder=tiny_model, cache=tmp_path)
    assert (task.labels, len(task.train) + len(task.validation), len(task.test)) == (2, 240, 60)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value_bits": 8},
        {"support": "server-topk", "density": 1 / 4, "value_bits": 4, "rounds": 8},
        {"support": "voted-topk", "density": 1 / 4, "value_bits": 4, "feedback": True},
        {"support": "seeded-random-k", "density": 1 / 4, "value_bits": 4, "server_power": 1.0, "rounds": 8},
        {"support": "server-topk", "density": 1 / 4, "download_density": 1 / 4, "rounds": 8},
        {"support": "server-topk", "density": 1 / 4, "value_bits": 4, "rounds": 8, "train": "support"},
        {"method": "ffa", "value_bits": 8},
        {"method": "flasc", "density": 1 / 4, "server_rate": 0.1, "rounds": 8},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())) or "dense",
)
def test_every_way_learns(task: StudyTask, changes: dict[str, Any]) -> None:
    outcome = run(replace(SETTING, **changes), task, test=True)
    assert outcome["validation"] > 0.9
    assert outcome["accuracy"] > 0.9
    assert outcome["spent"] is None


def test_under_dp_every_client_spends_its_epsilon_and_a_run_can_be_repeated(task: StudyTask) -> None:
    setting = replace(SPARSE, epsilon=8.0, optimizer="sgd", delta=1e-3, rounds=2, feedback=True)
    first, again = (run(setting, task, test=False) for _ in range(2))
    assert first | {"cpu_minutes": 0} == again | {"cpu_minutes": 0}
    assert 7.9 < first["spent"] <= 8.0
    assert first["noise"] > 0.3


# sums


def masked_sum(vectors: list[np.ndarray], parameters: SessionParameters) -> np.ndarray:
    """What secure aggregation gives for these vectors."""
    identities = {name: Identity.generate() for name in parameters.roster}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    policy = ClientPolicy(exact_round=(1, 0), exact_form=parameters.form)
    clients = {
        name: SecAggClient(client_id=name, identity=identity, roster=roster, policy=policy, guard=MemoryGuard(),
                           context=parameters.context)
        for name, identity in identities.items()
    }  # fmt: skip
    server = SecAggServer(parameters=parameters, roster=roster)
    return run_session(clients, server, dict(zip(parameters.roster, vectors, strict=True))).sum


@pytest.mark.parametrize("neighbours", [None, RING])
def test_a_rounds_sum_is_that_of_a_masked_session_bit_for_bit(
    task: StudyTask, monkeypatch: pytest.MonkeyPatch, neighbours: int | None
) -> None:
    kept: list[tuple[Quantiser, list[np.ndarray]]] = []
    plain = Uplink.rings

    def rings(
        uplink: Uplink, number: int, quantiser: Quantiser, support: Support, updates: list[PrivateAtClient]
    ) -> list[np.ndarray]:
        kept.append((quantiser, plain(uplink, number, quantiser, support, updates)))
        return kept[-1][1]

    monkeypatch.setattr(Uplink, "rings", rings)
    server = Masked(Clients(replace(SPARSE, feedback=True), task), task.validation)
    server.round(1)
    server.round(2)
    (quantiser, vectors) = kept[-1]
    parameters = session(6, neighbours, vectors[0].size, quantiser.modulus_bits, quantiser.levels)
    assert masked_sum(vectors, parameters).tolist() == ring_sum(vectors, quantiser).tolist()


def uplink(**changes: Any) -> Uplink:
    """Three clients' way up, 40 coordinates in two channels."""
    setting = replace(SPARSE, clients=3, **changes)
    return Uplink(setting, Channels(np.arange(40, dtype=np.int32) % 2), np.array([1.0, 2.0]))


def changes_of(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(40).astype(np.float32) for _ in range(3)]


def test_in_the_clear_and_dense_the_mean_is_the_mean() -> None:
    changes = changes_of(0)
    mean = uplink(support="dense", density=1.0, value_bits=None).mean(1, changes)
    np.testing.assert_allclose(mean, np.mean(changes, axis=0, dtype=np.float64), atol=1e-7)


def test_a_topk_support_follows_the_sums_and_is_whole_or_drawn_at_first() -> None:
    whole = uplink(value_bits=None).support(1)
    assert whole is not None
    assert whole.is_dense
    way = uplink(value_bits=None, whole_rounds=0)
    first = way.support(1)
    assert first is not None
    assert len(first) == 10
    assert first.indices.tolist() != list(range(10))  # not the order of the names
    loud = [np.where(np.isin(np.arange(40), first.indices[:3]), 9.0, 0.1).astype(np.float32)] * 3
    way.mean(1, loud)
    second = way.support(2)
    assert second is not None
    assert set(first.indices[:3]) <= set(second.indices)


def test_a_voted_support_is_kept_until_the_next_vote_and_is_the_clients() -> None:
    way = uplink(support="voted-topk", value_bits=None)
    assert way.support(1) is None
    same = [np.where(np.arange(40) < 10, 5.0, 0.0).astype(np.float32)] * 3
    assert np.flatnonzero(way.mean(1, same)).tolist() == list(range(10))
    kept = way.support(2)
    assert kept is not None
    assert kept.indices.tolist() == list(range(10))
    assert way.support(3) is None


def test_with_feedback_nothing_is_lost_and_without_it_something_is() -> None:
    sums = []
    for feedback in (True, False):
        way = uplink(support="seeded-random-k", value_bits=8, feedback=feedback, density=1 / 2)
        changes = [0.2 * change for change in changes_of(3)]
        arrived = sum(way.mean(number, changes) for number in range(1, 41))
        sums.append(np.linalg.norm(arrived / 40 - np.mean(changes, axis=0)))
    assert sums[0] < 0.2 * sums[1]


# order


def _finished(lines: list[dict[str, Any]], skipped: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Run everything on paper: the rates in the middle of each first grid are best."""
    while todo := wanted(lines, ["sst2"], skipped):
        rates = [pair for pair in todo if pair[0] == "grid"]
        for study, setting in rates or todo:
            peak = {None: 1e-2, 8.0: 3.0}[setting.epsilon]
            value = 0.8 - 0.1 * abs(np.log(setting.learning_rate / peak)) - 0.01 * setting.server_power
            if setting.method == "flasc":
                value -= 0.1 * abs(np.log(setting.server_rate / 1e-2))
            outcome = {"validation": value, "accuracy": None if study == "grid" else value}
            more = {"spent": setting.epsilon, "noise": 0.0, "coordinates": 123650, "cpu_minutes": 1.0}
            lines.append(kept_line(study, setting, **outcome, **more))
    return lines


def test_rates_come_before_what_they_are_for_and_corners_before_the_rest() -> None:
    studies = [study for study, _ in wanted([], ["sst2"])]
    assert set(studies) == {"grid"}
    lines = _finished([])
    finals = [Setting.from_json(line["setting"]) for line in lines if line["study"] == "final"]
    assert len(finals) == len({json.dumps(asdict(setting)) for setting in finals})
    assert len(finals) == 2 * (3 * len(CORNERS) + len(TELLING) + len(OTHERS))
    assert {setting.learning_rate for setting in finals} == {1e-2, 3.0}
    assert {setting.server_rate for setting in finals if setting.method == "flasc"} == {1e-2}
    third = [i for i, setting in enumerate(finals) if (setting.epsilon, setting.seed) == (8.0, 2)]
    assert (third[0], third[7], len(third)) == (2 * len(CORNERS), 3 * len(CORNERS) - 1, len(CORNERS))
    assert not [s for _, s in wanted([], ["sst2"], ("support",)) if s.train == "support"]
    for cell in (*CORNERS, *TELLING, *OTHERS):
        assert cell.family in FAMILIES
        replace(SETTING, **cell.changes)


# bytes


def test_bytes_are_packed_words_with_keys_and_a_share_of_votes_and_whole_rounds() -> None:
    d, k = 123_650, 7729
    plain = Setting(
        "sst2", "fedit", 1.0, 8.0, "iid", 0, support="seeded-random-k", density=1 / 16, value_bits=4
    )
    ring, complete = (round_bytes(plain, d, neighbours) for neighbours in (RING, None))
    assert ring.up["values"] == pytest.approx(packed_size(k, 8))
    assert complete.uploaded - ring.uploaded == pytest.approx(9890, abs=30)  # five more neighbours' shares
    assert ring.down["values"] == 4 * d
    voted = round_bytes(replace(plain, support="voted-topk"), d)
    assert voted.up["votes"] == pytest.approx(packed_size(d, 5) / 24)
    assert voted.up["keys"] == pytest.approx(ring.up["keys"] * (1 + 1 / 24))
    ranked = round_bytes(replace(plain, support="server-topk"), d)
    assert ranked.up["values"] == pytest.approx((packed_size(d, 8) + 23 * packed_size(k, 8)) / 24)
    assert ranked.up["keys"] == pytest.approx(ring.up["keys"])
    clear = round_bytes(Setting("sst2", "fedit", 1.0, 8.0, "iid", 0), d)
    assert clear.uploaded == dense_bytes(d) == 494_600
    down = round_bytes(replace(plain, download_density=1 / 4), d).down["values"]
    assert 4 * d / 4 < down < 5 * d / 4


# page


def test_the_page_holds_every_cell_against_dense_and_the_targets() -> None:
    lines = _finished([])
    text = page(lines)
    assert "| server-topk, 1/16, 4 bits | 3 | 80.0 ± 0.0 (80.0) | +0.0 ± 0.0 | 24,3" in text
    assert "20.3 (14.5)" in text
    assert "| dense, 32 bits | 3 | 80.0 ± 0.0 (80.0) | +0.0 ± 0.0 | 494,600 | 1.0 | 494,601 |  |  |" in text
    assert "| yes | yes |" in text  # 1/16 at 4 bits
    assert "| no | no |" in text  # dense at 4 bits
    assert "| feedback, against none | +0.0 ± 0.0 (9) | +0.0 ± 0.0 (9) |  |  |" in text
    assert "SST-2, ε = 8 | random | **0: 80.0**, 0.5: 79.5, 1: 79.0 |" in text
    each_table_has_one_width(text)
    assert page([]).startswith("# Accuracy against bytes")


def test_every_plot_is_a_drawing_of_its_cells() -> None:
    drawn = dict(plots(_finished([])))
    assert set(drawn) == {"communication/sst2-8.svg", "communication/sst2-none.svg"}
    assert (
        len(circles(drawn["communication/sst2-8.svg"])) == len(CORNERS) + len(TELLING) + len(OTHERS) + 5
    )  # and the legend


def test_the_command_runs_what_is_missing_and_writes_its_page(
    data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    small = ("rounds=1", "steps=1", "batch=8", "clients=4", "delta=0.001", "rank=2", "base_dtype=float32")
    where = ("--data", str(data), "--results", str(tmp_path), "--encoder", str(tiny_model))
    for _ in range(2):
        communication_study.main(["run", *where, "--set", *small, "--datasets", "sst2", "--most", "1"])
    rates = [line["setting"]["learning_rate"] for line in Lines(tmp_path / "communication.jsonl")]
    assert rates == [1.0, 3.0]
    assert "2 runs to choose rates, 0 compared" in (tmp_path / "communication.md").read_text()
    assert BUDGETS[0] == ("sst2", 8.0)
