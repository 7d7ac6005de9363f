"""FedSA-LoRA in a real federation: B and head stay at each client, which starts from them, measures and keeps them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel

from fedlora_priv.adapters import read_state
from fedlora_priv.config import Experiment
from fedlora_priv.federation import checkpoint, wire
from fedlora_priv.federation.client import LocalResult
from fedlora_priv.federation.personal import home_roles
from fedlora_priv.federation.run import Outcome, run
from fedlora_priv.federation.setup import Parts, assemble
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fedsa import FedSALoRA
from fedlora_priv.methods.layout import Layout, LoraModule, State
from fedlora_priv.pooling import MeanPoolingClassifier
from fedlora_priv.training import PrivateTrainer

from .lab import Lab

WHOLE = {"support": "dense", "density": 1.0, "value_bits": 16}
FEDSA = {"method": "fedsa", "rounds": 3, "clients": 3, "evaluate_every": 2}


class Seen:
    """A finished run, and every training in it as its client saw it."""

    def __init__(self, file: Path, silent: Any) -> None:
        self.trainings: list[tuple[str, State, State]] = []
        self.experiment = Experiment.load(file)
        self.parts: Parts

        def amend(parts: Parts, folder: object) -> Parts:
            self.parts = replace(parts, observe=lambda *training: self.trainings.append(training))
            return self.parts

        self.outcome: Outcome = run(self.experiment, progress=silent, amend=amend)

    def of(self, client_id: str) -> list[tuple[State, State]]:
        """Return the start and the end of each of a client's trainings."""
        return [(start, end) for name, start, end in self.trainings if name == client_id]

    def home(self, client_id: str) -> Path:
        (folder,) = (self.outcome.folder / "clients" / client_id).glob("personal-*")
        return folder


@pytest.mark.long
def test_b_and_head_stay_at_home_in_a_whole_run(
    experiment_file: Callable[..., Path], silent: Any, tiny_model: Path
) -> None:
    seen = Seen(experiment_file(federation=FEDSA, communication=WHOLE), silent)
    clients_start_from_their_own_and_keep_and_measure_it(seen, tiny_model)
    metrics_report_and_card_say_what_is_personal(seen)


def clients_start_from_their_own_and_keep_and_measure_it(seen: Seen, tiny_model: Path) -> None:
    role = seen.parts.layout.role
    stored = checkpoint.load(seen.outcome.folder / "checkpoints")
    assert stored is not None
    final = stored[0].state
    assert seen.outcome.problem is None
    rows = seen.parts.evaluation
    assert rows is not None
    last = seen.outcome.metrics[-1]
    for client_id in seen.parts.plans:
        trainings = seen.of(client_id)
        assert len(trainings) == 3
        for (_, ended), (began, _) in itertools.pairwise(trainings):
            for name, array in began.items():  # what stays at home goes on, what is shared is everybody's
                assert np.array_equal(array, ended[name]) == (role(name) != "A"), name
        own = {n: final[n] if role(n) == "A" else array for n, array in trainings[-1][1].items()}
        assert last["personal_accuracy"][client_id] == seen.parts.trainer.evaluate(rows, own).value
        base = MeanPoolingClassifier.from_pretrained(str(tiny_model), 2)
        loaded = PrivateTrainer(PeftModel.from_pretrained(base, str(seen.home(client_id))))
        assert all(np.array_equal(array, own[name]) for name, array in read_state(loaded.model).items())
        assert (
            f"one client, {client_id}: what all clients share, and its own B and head"
            in (seen.home(client_id) / "README.md").read_text()
        )
    starts = [seen.of(client_id)[-1][0] for client_id in seen.parts.plans]
    for name in final:
        alike = all(np.array_equal(starts[0][name], start[name]) for start in starts)
        assert alike == (role(name) == "A")


def metrics_report_and_card_say_what_is_personal(seen: Seen) -> None:
    measured = [row["personal_accuracy"] for row in seen.outcome.metrics if "personal_accuracy" in row]
    assert [row["round"] for row in seen.outcome.metrics if "personal_accuracy" in row] == [2, 3]
    assert all(set(each) == set(seen.parts.plans) for each in measured)
    means = [row["accuracy"] for row in seen.outcome.metrics]
    assert means[0] is None
    assert means[1:] == [pytest.approx(np.mean(list(each.values()))) for each in measured]
    said = "100 held-out public examples, by each client with its own model: the mean of those that answered"
    assert seen.outcome.report["metrics"]["evaluated_on"] == said
    assert seen.outcome.report["metrics"]["accuracy_after"] == means[-1]
    outputs = json.dumps(seen.outcome.report["outputs"])
    assert "of what stays at each client (B, head), saved in its own home: its accuracy" in outputs
    card = (seen.outcome.folder / "adapter" / "README.md").read_text()
    assert "## What is missing\n\nB and head stayed at each client" in card
    assert "\n\n\n" not in card


@pytest.mark.long
def test_where_no_row_is_public_nothing_is_measured_and_everything_kept(
    experiment_file: Callable[..., Path], silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out rows that may not be evaluated are not there for clients either."""

    def without_rows(*arguments: Any) -> Parts:
        return replace(assemble(*arguments), evaluation=None)

    monkeypatch.setattr("fedlora_priv.federation.run.assemble", without_rows)
    seen = Seen(experiment_file(federation=FEDSA | {"rounds": 1}, communication=WHOLE), silent)
    assert [row["accuracy"] for row in seen.outcome.metrics] == [None]
    assert "personal_accuracy" not in seen.outcome.metrics[0]
    assert all((seen.home(client_id) / "adapter_config.json").exists() for client_id in seen.parts.plans)
    outputs = json.dumps(seen.outcome.report["outputs"])
    assert "saved in its own home: nothing else" in outputs


@pytest.fixture
def lab(experiment_file: Callable[..., Path]) -> Iterator[Lab]:
    made = Lab(experiment_file(federation=FEDSA, communication=WHOLE))
    yield made
    for client in made.clients:
        client.close()
    made.folder.close()


def question(lab: Lab, number: object = 2, change: float = 0.0, **more: Any) -> wire.Message:
    state = {n: a + np.float32(change) for n, a in lab.begun.items() if n.endswith(".lora_A")}
    fields = {"round": number, "keep": False}
    return lab.ask(wire.encode(wire.Message(wire.PERSONAL, fields, wire.pack_arrays({**state, **more}))))


def test_a_client_answers_with_one_number_about_one_state_a_round(lab: Lab) -> None:
    answer = question(lab)
    assert answer.kind == wire.PERSONAL
    assert not answer.blobs
    assert set(answer.fields) == {"quality"}
    assert question(lab) == answer
    refused = wire.Message(wire.REFUSED, {"code": "FederationError"})
    assert question(lab, change=0.1) == refused
    assert question(lab, 3, change=0.1).kind == wire.PERSONAL
    for odd in (0, 4, "2", None, 2.0, True):
        assert question(lab, odd) == refused
    name = next(name for name in lab.begun if name.endswith(".lora_B"))
    assert question(lab, 1, **{name: lab.begun[name]}) == refused  # nobody's B but its own
    assert len(lab.ledger.rows()) == 1  # opened, and nothing charged


def test_a_client_whose_own_arrays_are_no_numbers_has_no_model_to_measure(lab: Lab) -> None:
    """Its training diverged. It neither answers about that model nor trains on from it, and the run goes on."""
    train = lab.client._setup.train

    def diverged(*arguments: Any) -> LocalResult:
        result = train(*arguments)
        return replace(result, state={name: array * np.nan for name, array in result.state.items()})

    object.__setattr__(lab.client._setup, "train", diverged)
    assert lab.ask(lab.train()).kind == wire.TRAINED
    refused = wire.Message(wire.REFUSED, {"code": "FederationError"})
    assert question(lab) == refused
    assert lab.ask(lab.train(replace(lab.state, round=1))) == refused
    assert len(lab.ledger.charges()) == 1


def test_where_nothing_stays_at_home_there_is_nothing_to_ask(experiment_file: Callable[..., Path]) -> None:
    made = Lab(experiment_file(federation={"method": "fedit"}, communication=WHOLE))
    assert question(made) == wire.Message(wire.REFUSED, {"code": "FederationError"})
    for client in made.clients:
        client.close()
    made.folder.close()


def test_what_stays_at_home_is_what_the_model_has() -> None:
    module = LoraModule("query", 8, 8, 2, 1.0)
    assert home_roles(FedSALoRA(), Layout((module,), {"classifier.weight": (2, 8)})) == {"B", "head"}
    assert home_roles(FedSALoRA(), Layout((module,), {})) == {"B"}  # a language model has no head
    assert home_roles(FedIT(), Layout((module,), {})) == frozenset()
