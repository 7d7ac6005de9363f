"""Every choice that docs/methods.md shows, end to end: masks, losses, exchanges, report, adapter and audit.

Five clients with real (tiny) models. The global state after every round must be what the method's equations make of
what the survivors have trained (`tests.federation.references`), within the error of quantising. Noise is reproducible
here, so that a red run can be run again; that is the one thing that the audit must say against it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accounting.anchor import Anchor
from fedlora_priv.adapter_folder import load_adapter
from fedlora_priv.adapters import adapted_layers, layout, read_state
from fedlora_priv.communication.meter import Summed, by_direction, wire_bytes
from fedlora_priv.config import Experiment
from fedlora_priv.federation import checkpoint, wire
from fedlora_priv.federation.run import run
from fedlora_priv.federation.runfolder import RunFolder
from fedlora_priv.federation.session import session_parameters
from fedlora_priv.federation.setup import Parts
from fedlora_priv.methods import METHODS, Shared
from fedlora_priv.reports.auditing import audit_files
from protocols.packing import packed_size
from protocols.secagg.interface import PHASES, Phase
from tests.federation.references import Arrays, Seen, expected, product, whole

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
CHOICES = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)]
ROUNDS, VALUE_BITS = 2, 16
TOLERANCE = 4e-3
"""Of a round's change: 16 bits a value, and a sketch passes on some of what rounding does to it."""


SMALLEST = 1e-6
"""A change below this is none."""


def losses(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """In round 1 a client whose upload is not in the sum; in round 2 one that is gone when the last sum is opened."""
    method = choice["federation"]["method"]
    options = choice.get("aggregation", {})
    last = method in ("fedask", "lora-fair") or "fallback" in options or options.get("products") == "two-pass"
    return [
        {"round": 1, "client_id": "client-2", "phase": "mask"},
        {
            "round": 2,
            "client_id": "client-3",
            "phase": "reveal",
            "exchange": int(last and method != "hybrid"),
        },
    ]


def named(choice: dict[str, Any]) -> str:
    options = [str(value) for value in choice.get("aggregation", {}).values()]
    return " ".join([choice["federation"]["method"], *options[:1]])


@dataclass
class Watched:
    """A run, with what its clients trained (as an empirical audit is told it) and the global state of every round."""

    experiment: Experiment
    trained: dict[tuple[int, str], tuple[Arrays, Arrays]] = field(default_factory=dict)
    states: list[Arrays] = field(default_factory=list)

    def go(self) -> Watched:
        self.outcome = run(self.experiment, progress=self, amend=self.amend)
        self.states.append(self.stored())
        return self

    def stored(self) -> Arrays:
        found = checkpoint.load(Path(self.experiment.experiment.output) / "checkpoints")
        assert found is not None
        return found[0].state

    def amend(self, parts: Parts, folder: RunFolder) -> Parts:
        def observe(client_id: str, start: Arrays, result: Arrays) -> None:
            self.trained[len(self.states), client_id] = ({**start}, {**result})

        self.parts = replace(parts, observe=observe)
        return self.parts

    def say(self, line: str) -> None: ...
    def round_finished(self, row: dict[str, object]) -> None: ...
    def answered(self, client_id: str, step: object) -> None: ...
    def round_started(self, number: int, rounds: int) -> None:
        self.states.append(self.stored())

    def seen(self, record: dict[str, Any]) -> Seen:
        """A round as the reference wants it: of its survivors alone."""
        number, trainers = record["round"], self.parts.trainers
        clients = [(trainers[c].layout, *self.trained[number, c]) for c in record["survivors"]]
        shared = Shared(self.experiment.experiment.seed, number)
        return Seen(self.parts.layout, self.states[number - 1], clients, shared)


@pytest.fixture
def watched(experiment_file: Callable[..., Path]) -> Callable[..., Watched]:
    def go(choice: dict[str, Any]) -> Watched:
        path = experiment_file(
            federation={"rounds": ROUNDS} | choice["federation"],
            aggregation=choice.get("aggregation", {}),
            lora=choice.get("lora", {}),
            training={"deterministic_noise": True, "learning_rate": 1.0},
            communication={"support": "dense", "density": 1.0, "value_bits": VALUE_BITS},
            simulate={"dropouts": losses(choice)},
        )
        return Watched(Experiment.load(path)).go()

    return go


def test_the_page_shows_every_method() -> None:
    assert {choice["federation"]["method"] for choice in CHOICES} == set(METHODS)


@pytest.mark.long
@pytest.mark.parametrize("choice", CHOICES, ids=named)
def test_a_federation_does_what_the_method_says(
    choice: dict[str, Any], watched: Callable[..., Watched]
) -> None:
    w = watched(choice)
    memory: dict[str, Any] = {}
    for number, record in enumerate(w.outcome.report["rounds"], 1):
        assert len(record["survivors"]) == (4 if number == 1 else 5)
        seen = w.seen(record)
        wanted = expected(w.parts.method.at(number).name, seen, mode_of(w.experiment, record))
        wanted = optimised(choice.get("aggregation", {}), seen.state, wanted, memory)
        for what, array in wanted.items():
            got, before = value(seen, what, w.states[number]), value(seen, what, w.states[number - 1])
            error = np.linalg.norm(got - array) / max(np.linalg.norm(array - before), SMALLEST)
            assert error < TOLERANCE, (number, what)
        assert_bytes(w, record)
    assert_adapter(w)
    failed = {verdict.check for verdict in audit_files(w.outcome.folder) if verdict.status == "FAIL"}
    assert failed == {13}  # noise that can be drawn again


def mode_of(experiment: Experiment, record: dict[str, Any]) -> str:
    """How the mean product was had in a round: a second exchange after a sketch is the fallback's."""
    asked = experiment.aggregation
    return asked.fallback if asked.fallback != "none" and len(record["exchanges"]) > 1 else asked.products


def optimised(options: Arrays, before: Arrays, averaged: Arrays, memory: dict[str, np.ndarray]) -> Arrays:
    """What a server optimiser makes of a mean change (Reddi et al. 2021); `memory` is its moments."""
    kind, rate = options.get("server_optimizer", "average"), options.get("server_learning_rate", 1.0)
    if kind == "average":
        return averaged
    result = {}
    for name, array in averaged.items():
        delta, beta = array - before[name], options.get("server_momentum", 0.9)
        first = memory.get(f"{name} first", 0.0)
        if kind == "momentum":
            memory[f"{name} first"] = beta * first + delta
            result[name] = before[name] + rate * memory[f"{name} first"]
            continue
        second, steps = memory.get(f"{name} second", 0.0), memory.get(f"{name} steps", 0.0) + 1
        first, second = 0.9 * first + 0.1 * delta, 0.999 * second + 0.001 * delta**2
        memory |= {f"{name} first": first, f"{name} second": second, f"{name} steps": steps}
        scale = np.sqrt(second / (1 - 0.999**steps)) + 1e-8
        result[name] = before[name] + rate * first / (1 - 0.9**steps) / scale
    return result


def assert_bytes(w: Watched, record: dict[str, Any]) -> None:
    """A survivor has sent its contract's coordinates at the ring's width, and the overhead that is stated for it."""
    number, bits, everybody = (
        record["round"],
        VALUE_BITS + 3,
        w.experiment.client_ids,
    )  # three bits to sum five
    contract, exchanges = w.parts.method.at(number).contract(w.parts.layout), len(record["exchanges"])
    anchors = [Anchor.from_json(anchor) for anchor in w.outcome.report["anchors"]]
    (anchor_bytes,) = {len(anchor.to_bytes()) - len(str(anchor.rows)) for anchor in anchors}
    steps: list[Summed] = []
    for j in range(exchanges):
        answer = wire.Message(wire.READY if j else wire.TRAINED)
        roster = tuple(c for c in everybody if j == 0 or c in record["survivors"])
        parameters = session_parameters(
            w.experiment, roster, round=number, exchange=j, session_id=bytes(32), context=bytes(32),
            vector_length=contract.size(j), modulus_bits=bits, bound=1,
        )  # fmt: skip
        there = answered(roster, record, j)
        steps.append(
            Summed(parameters, "values", there, attachment_bytes=anchor_bytes, begun_by=(answer, answer))
        )
    table = wire_bytes(steps)
    for client_id in record["survivors"]:
        up = by_direction(table, client_id)["up"]
        assert up["values"] == sum(packed_size(contract.size(j), bits) for j in range(exchanges))
        over = w.outcome.metrics[number - 1]["uploaded_bytes"][client_id] - sum(up.values())
        if client_id not in {lost["client_id"] for lost in record["lost"]}:
            # Digits of how many rows the ledger had at each confirmation; and a personal accuracy, where there is one.
            assert exchanges <= over <= 2 * exchanges + (100 if contract.stays_home else 0)


def answered(roster: tuple[str, ...], record: dict[str, Any], number: int) -> dict[Phase, set[str]]:
    """Who answered in each phase of an exchange."""
    left: dict[Phase, set[str]] = {phase: set(roster) for phase in PHASES}
    for lost in record["lost"]:
        phase, _, exchange = lost["phase"].partition(" of exchange ")
        if int(exchange or 0) == number:
            at = 0 if phase in ("train", "announce") else PHASES.index(phase)
            for later in PHASES[at:]:
                left[later] -= {lost["client_id"]}
    return left


def assert_adapter(w: Watched) -> None:
    """The adapter folder is plain PEFT, and adds to the model that training began with what the final state adds."""
    model, state = w.parts.trainer.model, w.states[-1]
    base = {name: layer.base_layer.weight.detach().clone() for name, layer in adapted_layers(model).items()}
    loaded = load_adapter(model, w.outcome.folder / "adapter")
    arrays, layers = read_state(loaded), adapted_layers(loaded)
    for m, plain in zip(w.parts.layout.modules, layout(loaded).modules, strict=True):
        changed = (layers[m.name].base_layer.weight.detach() - base[m.name]).numpy()
        np.testing.assert_allclose(changed + product(plain, arrays), whole(m, state), rtol=1e-4, atol=1e-5)
    for name in w.parts.layout.heads:
        np.testing.assert_array_equal(arrays[name], state[name])


def value(seen: Seen, what: str, state: Arrays) -> np.ndarray:
    """An array of a state or, under map/<module>, what it adds to that module's first base weights."""
    if not what.startswith("map/"):
        return state[what].astype(float)
    (module,) = [m for m in seen.layout.modules if f"map/{m.name}" == what]
    return whole(module, state)
