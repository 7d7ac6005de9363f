"""Rounds over the local engine: masked against plain, losses in every phase, refusals, a lost round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from accounting.errors import BudgetExceeded
from fedlora_priv.config import Experiment
from fedlora_priv.engines.base import Metered
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.federation.rounds import PHASES, RoundConductor, RoundResult
from fedlora_priv.federation.runfolder import RunFolder
from fedlora_priv.federation.seats import make_clients
from fedlora_priv.federation.server import FederationServer
from fedlora_priv.federation.setup import Parts, assemble

from .paper import step_of


class Federation:
    """One tiny federation, set up once and able to run single rounds."""

    def __init__(self, path: Path, parts: Parts | None = None) -> None:
        self.experiment = Experiment.load(path)
        self.parts = parts or assemble(self.experiment, lambda line: None)
        self.folder = RunFolder.open(self.experiment)
        self.clients, self.roster = make_clients(self.parts, self.folder)
        self.engine = Metered(LocalEngine(self.clients, self.experiment.simulate.dropouts))
        self.server = FederationServer(
            self.experiment, self.parts.layout, self.parts.method, self.parts.initial, 1.0
        )
        self.state = self.server.begin()
        self.conductor = RoundConductor(
            self.experiment, self.state.state, self.roster, self.folder.run, self.engine
        )

    def close(self) -> None:
        """Close the ledgers and let go of the run folder."""
        for client in self.clients:
            client.close()
        self.folder.close()

    def round(self) -> RoundResult:
        """Conduct one round and move on."""
        task = self.server.task(self.state)
        result = self.conductor.conduct(task, partial(self.server.announce, self.state, task))
        if result.summed is None:
            self.state = self.server.skip(self.state, task)
        else:
            self.state = self.server.advance(self.state, task, result.summed)
        return result


@pytest.fixture
def federation(experiment_file: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Federation]]:
    made: list[Federation] = []

    def make(**sections: dict[str, Any]) -> Federation:
        output = str(tmp_path / f"run-{len(made)}")
        made.append(Federation(experiment_file(experiment={"output": output}, **sections)))
        return made[-1]

    yield make
    for small in made:
        small.close()


def ring_sum(result: RoundResult) -> Any:
    """Return the modular sum of a round of one exchange, which is not nothing."""
    assert result.summed is not None
    (part,) = result.summed.parts
    assert part.ring_sum.any()
    return part.ring_sum


@pytest.mark.parametrize("method", ["ffa", "fedit", "fra"])
def test_the_masked_sum_equals_the_plain_sum_bit_for_bit(
    federation: Callable[..., Federation], method: str
) -> None:
    """With noise, batches and rounding made reproducible, the two paths must give the same integers."""
    sections: dict[str, Any] = {"federation": {"method": method}, "training": {"deterministic_noise": True}}
    if method == "fra":  # its sketches travel whole
        sections["communication"] = {"support": "dense", "density": 1.0}
    secure = federation(**sections)
    plain = federation(**sections, secure_aggregation={"mode": "insecure"})
    for _ in range(2):
        masked, unmasked = secure.round(), plain.round()
        assert_array_equal(ring_sum(masked), ring_sum(unmasked))
        assert masked.record.survivors == unmasked.record.survivors


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_lost_in_any_phase_leaves_an_exact_sum(
    federation: Callable[..., Federation], phase: str
) -> None:
    """Lost before `mask`: the others' exact sum. Lost later: its masked vector is in, and is counted."""
    lost = {"round": 1, "client_id": "client-2", "phase": phase}
    deterministic = {"deterministic_noise": True}
    secure = federation(training=deterministic, simulate={"dropouts": [lost]})
    # The plain reference never hears of client-2 where it is not in the sum.
    counted = phase in ("confirm", "reveal")
    plain = federation(training=deterministic, secure_aggregation={"mode": "insecure"})
    if not counted:
        plain.engine = Metered(LocalEngine([c for c in plain.clients if c.client_id != "client-2"]))
        plain.conductor._engine = plain.engine
    masked, unmasked = secure.round(), plain.round()
    assert_array_equal(ring_sum(masked), ring_sum(unmasked))
    assert ("client-2", step_of(phase)) in masked.record.lost
    assert ("client-2" in masked.record.survivors) == counted
    again = secure.round()  # it is back in the next round
    assert len(again.record.survivors) == 5


def test_too_many_losses_lose_the_round_and_say_in_which_phase(
    federation: Callable[..., Federation],
) -> None:
    drops = [{"round": 1, "client_id": f"client-{i}", "phase": "mask"} for i in (1, 2)]
    small = federation(simulate={"dropouts": drops})
    before = {name: array.copy() for name, array in small.state.state.items()}
    result = small.round()
    assert result.summed is None
    assert result.record.aborted is not None
    assert "mask" in result.record.aborted
    assert result.record.survivors == ()
    for name, array in before.items():
        assert_array_equal(small.state.state[name], array)
    assert len(small.round().record.survivors) == 5


def test_a_client_without_budget_refuses_and_the_others_go_on(
    federation: Callable[..., Federation],
) -> None:
    small = federation()
    spender = next(c for c in small.clients if c.client_id == "client-3")
    setup = spender._setup
    event = setup.plan.round_event()
    for number in range(100):  # another run on the same data has spent nearly everything
        try:
            spender._lifetime_budget.require(setup.ledger, event)
        except BudgetExceeded:
            break
        setup.ledger.commit(setup.ledger.reserve(event, round=number + 1, run="ee" * 16))
    result = small.round()
    assert result.record.refused == [("client-3", "BudgetExceeded")]
    assert result.record.survivors == ("client-1", "client-2", "client-4", "client-5")
    assert not setup.ledger.charges(run=small.folder.run.hex())


def test_every_byte_is_counted(federation: Callable[..., Federation]) -> None:
    small = federation()
    sizes: dict[str, int] = {}
    for client in small.clients:
        real = client.handle

        def counting(data: bytes, *, real: Any = real, client_id: str = client.client_id) -> bytes:
            answer = real(data)
            sizes[client_id] = sizes.get(client_id, 0) + len(answer)
            return answer

        client.handle = counting
    small.round()
    assert small.engine.take().uploaded == sizes
    assert not small.engine.take().uploaded


def test_the_global_state_moves_by_the_mean_update(federation: Callable[..., Federation]) -> None:
    """Against a reference that reads the clients' stored updates, which no server can."""
    small = federation(communication={"support": "dense", "density": 1.0, "value_bits": 16})
    start = {name: array.copy() for name, array in small.state.state.items()}
    bounds = small.server.task(small.state).first.channel.bounds
    small.round()
    stored = [client._round.update.state for client in small.clients]
    for name, bound in bounds.items():
        deltas = [np.clip(update[name] - start[name], -bound, bound) for update in stored]
        moved = small.state.state[name] - start[name]
        assert (np.abs(moved - np.mean(deltas, axis=0)) <= bound / (2**15 - 1) * 1.01).all()
