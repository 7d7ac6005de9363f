"""Federations in which clients train only what they send: what is noised, charged, recorded, resumed and audited."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accounting import private_audit
from accounting.case import Case, Evidence, Verdict
from accounting.chain import replay
from accounting.checks import CHECKS
from fedlora_priv.config import Experiment
from fedlora_priv.errors import ConfigError
from fedlora_priv.federation import setup, state_check, wire
from fedlora_priv.federation.home import UpdateStore
from fedlora_priv.federation.run import run
from fedlora_priv.federation.server import FederationServer
from fedlora_priv.federation.trained import support_of, update_key
from fedlora_priv.reports.auditing import audit_files
from fedlora_priv.training import trainer as trainer_module

from .lab import Lab

SPARSE: dict[str, Any] = {"support": "seeded-random-k", "density": 0.1, "train": "support"}


@pytest.fixture
def make_lab(experiment_file: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    made: list[Lab] = []

    def make(**sections: dict[str, Any]) -> Lab:
        given: dict[str, dict[str, Any]] = {
            "federation": {"rounds": 3, "local_steps": 4, "method": "fedit"},
            "training": {"batch_size": 20, "learning_rate": 0.1},
            "communication": SPARSE,
            "experiment": {"output": str(tmp_path / f"run-{len(made)}")},
        }
        for name, section in sections.items():
            given[name] = {**given.get(name, {}), **section}
        made.append(Lab(experiment_file(**given)))
        return made[-1]

    yield make
    for lab in made:
        for client in lab.clients:
            client.close()
        lab.folder.close()


def verdicts(lab: Lab) -> dict[int, Verdict]:
    """What checks 6 and 7 say of client-1's ledger and private file."""
    run = lab.folder.run.hex()
    (chain,) = replay(lab.ledger.export_jsonl().splitlines()).values()
    records = private_audit.by_client([lab.folder.client_home("client-1").private_audit_path(run)])
    report = {
        "run": run,
        "plan": {"client-1": lab.parts.plans["client-1"].to_json()},
        "method": lab.parts.stated_method,
    }
    case = Case(report, {"client-1": chain}, None, None, Evidence(records))
    return {number: CHECKS[number - 1](case) for number in (6, 7)}


@pytest.mark.parametrize(("support", "optimizer"), [("seeded-random-k", "adam"), ("server-topk", "sgd")])
def test_only_what_travels_is_trained_noised_and_recorded(
    make_lab: Callable[..., Lab], support: str, optimizer: str
) -> None:
    lab = make_lab(
        communication={"support": support},
        training={"optimizer": optimizer, "learning_rate": 0.01},
        federation={"local_steps": 40, "rounds": 1},
        privacy={"retry_rounds": 0},
    )
    task = lab.server.task(lab.state)
    marked = support_of(lab.experiment, task, "client-1")
    assert marked is not None
    k = sum(int(mask.sum()) for mask in marked.values())
    assert k == len(task.first.values.support) < task.first.values.dimension / 9
    assert lab.ask(lab.train()).kind == "trained"
    update = lab.client._updates.load(update_key(task, marked))
    assert update is not None
    for name, mask in marked.items():
        moved = update.state[name].view(np.uint32) != task.state[name].view(np.uint32)
        assert np.array_equal(moved, mask)
    contract = lab.parts.stated_method["contracts"][0]
    assert set(contract["noised"].values()) == {k}
    assert "only the coordinates that they send" in contract["notes"][-1]
    found = verdicts(lab)
    assert {number: verdict.status for number, verdict in found.items()} == {6: "PASS", 7: "PASS"}, found


def test_noise_on_fewer_or_more_coordinates_than_stated_is_caught(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that ignores the support is no danger, but it is not what the report says."""
    lab = make_lab()
    real = trainer_module.coordinates
    monkeypatch.setattr(trainer_module, "coordinates", lambda trained, support: real(trained, None))
    monkeypatch.setattr(trainer_module, "require_unmoved", lambda *_: None)
    assert lab.ask(lab.train()).kind == "trained"
    verdict = verdicts(lab)[7]
    assert verdict.status == "FAIL"
    assert "coordinates in round 1" in verdict.evidence


RANKED = {"support": "server-topk", "whole_rounds": 0}
"""A support that clients must take from the server."""


def another_support(lab: Lab) -> bytes:
    """The message of the round, of a server that has another seed for its supports."""
    experiment = lab.experiment.experiment.model_copy(update={"seed": 99})
    other = lab.experiment.model_copy(update={"experiment": experiment})
    server = FederationServer(other, lab.parts.layout, lab.parts.method, lab.parts.initial, 1.0)
    task = server.task(lab.state)
    assert task.first.values.support != lab.server.task(lab.state).first.values.support
    return wire.encode(task.to_message(lab.begun))


def test_an_update_is_kept_for_its_own_support(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(communication=RANKED)
    assert lab.ask(lab.train()).kind == "trained"
    charges = len(lab.ledger.rows())
    assert lab.ask(lab.train()).kind == "trained"
    assert len(lab.ledger.rows()) == charges, "asked again, the stored update is used"
    assert lab.ask(another_support(lab)).kind == "trained"
    assert len(lab.ledger.rows()) > charges, "trained anew on another support, and charged for it"


def test_training_everything_does_not_depend_on_the_support(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(communication={**RANKED, "train": "all"})
    task = lab.server.task(lab.state)
    assert support_of(lab.experiment, task, "client-1") is None
    assert update_key(task, None) == task.state_digest
    assert lab.ask(lab.train()).kind == "trained"
    charges = len(lab.ledger.rows())
    assert lab.ask(another_support(lab)).kind == "trained"
    assert len(lab.ledger.rows()) == charges


def test_a_support_on_which_examples_depend_on_each_other_is_refused(
    make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, asked = make_lab(), []

    def coupled(model: Any, state: Any, *, device: Any, support: Any) -> float:
        asked.append(support)
        return 1.0

    monkeypatch.setattr(state_check, "coupling", coupled)
    assert lab.ask(lab.train()).fields == {"code": "StateBeyondBounds"}
    wanted = support_of(lab.experiment, lab.server.task(lab.state), "client-1")
    assert wanted is not None
    assert all(np.array_equal(asked[0][name], mask) for name, mask in wanted.items())


def test_the_first_bounds_have_room_for_the_same_signal_on_fewer_coordinates(
    make_lab: Callable[..., Lab],
) -> None:
    sparse, dense = make_lab(), make_lab(communication={"train": "all"})
    one, other = (lab.server.task(lab.state).first.values.bounds for lab in (sparse, dense))
    assert all(np.all(np.asarray(one[name]) > np.asarray(other[name])) for name in one)


def test_a_rehearsal_trains_a_support(make_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch) -> None:
    lab, real, seen = make_lab(), setup.rehearse, []
    monkeypatch.setattr(setup, "rehearse", lambda *a, **k: seen.append(k["support"]) or real(*a, **k))
    lab.parts.rehearse()
    (support,) = seen
    travels = len(lab.server.task(lab.state).first.values.support)
    assert sum(int(mask.sum()) for mask in support.values()) == travels


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"communication": {"support": "dense", "density": 1.0}}, "no effect where everything travels"),
        ({"federation": {"method": "fedsvd"}}, "makes more of them"),
        ({"federation": {"method": "fedsa"}}, "B and head never travel"),
        ({"communication": {"error_feedback": True}}, "keeps what was left out"),
        ({"federation": {"method": "fra"}}, "nothing in part"),
        ({"federation": {"method": "rac-lora"}}, "makes more of them"),
        ({"training": {"per_example": "ghost"}}, "norms of whole arrays"),
    ],
)
def test_what_makes_no_sense_is_refused(
    experiment_file: Callable[..., Path], sections: dict[str, dict[str, Any]], complaint: str
) -> None:
    given: dict[str, dict[str, Any]] = {"communication": SPARSE}
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section}
    with pytest.raises(ConfigError, match=complaint):
        Experiment.load(experiment_file(**given))


@pytest.mark.long
@pytest.mark.parametrize("support", ["server-topk", "seeded-random-k"])
def test_a_masked_run_is_resumed_and_audited(
    experiment_file: Callable[..., Path],
    tmp_path: Path,
    silent: Any,
    monkeypatch: pytest.MonkeyPatch,
    support: str,
) -> None:
    """A crash after a client of the second round has stored its update; a loss in the third."""
    experiment = Experiment.load(
        experiment_file(
            federation={"rounds": 4, "local_steps": 8, "method": "fedit"},
            training={"batch_size": 40, "learning_rate": 1.0},
            privacy={"epsilon": 20.0},
            communication={"support": support, "density": 0.25, "value_bits": 8, "train": "support"},
            simulate={"dropouts": [{"round": 3, "client_id": "client-4", "phase": "mask"}]},
        )
    )
    real, saved = UpdateStore.save, []

    def crash(self: UpdateStore, key: bytes, update: Any) -> None:
        real(self, key, update)
        saved.append(key)
        if len(saved) == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(UpdateStore, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            run(experiment, progress=silent)
    outcome = run(experiment, progress=silent)
    assert outcome.problem is None
    assert [len(entry["survivors"]) for entry in outcome.report["rounds"]] == [5, 5, 4, 5]
    assert all(claim["epsilon"] <= 20.0 for claim in outcome.report["claims"])
    *whole, contract = outcome.report["method"]["contracts"]
    d = sum(contract["exchanges"][0]["travels"].values())
    assert set(contract["noised"].values()) == {math.ceil(0.25 * d)}
    ranked = [(first["rounds"], set(first["noised"].values())) for first in whole]
    assert ranked == ([([1], {d})] if support == "server-topk" else [])
    private = sorted((tmp_path / "run" / "clients").glob("*/private-audit-*.jsonl"))
    assert len(private) == 5
    found = audit_files(outcome.folder, ledger=None, roster=outcome.folder / "roster.json", private=private)
    statuses = {verdict.check: verdict.status for verdict in found}
    assert "FAIL" not in statuses.values(), [v for v in found if v.status == "FAIL"]
    assert {number for number, status in statuses.items() if status == "PASS"} >= {1, 2, 3, 4, 5, 6, 7, 11}
