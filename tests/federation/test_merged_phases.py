"""Advertise rides on the message that begins an exchange: how many messages that leaves, and what it must not cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numpy.testing import assert_array_equal

from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import Dropout
from fedlora_priv.engines.base import Step
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.federation import wire
from fedlora_priv.methods import Method
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fra import FRALoRA
from protocols.secagg.interface import PHASES
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import SessionParameters

from .paper import Killed, Meddling, Paper, proposed, proposing

Make = Callable[..., Paper]


@pytest.fixture
def paper(experiment_file: Callable[..., Path], tmp_path: Path) -> Iterator[Make]:
    made: list[Paper] = []

    def make(method: Method, clients: int = 5, dropouts: Any = (), **secure: Any) -> Paper:
        experiment = Experiment.load(
            experiment_file(
                federation={"clients": clients, "rounds": 4},
                training={"deterministic_noise": True},
                communication={"support": "dense", "density": 1.0, "value_bits": 16},
                secure_aggregation=secure,
            )
        )
        made.append(Paper(experiment, method, tmp_path / f"paper-{len(made)}", dropouts=dropouts))
        return made[-1]

    yield make
    for one in made:
        one.close()


def counted(small: Paper) -> Counter[str]:
    """How many messages of each step client-1 is sent in a round, which has a sum."""
    seen: Counter[str] = Counter()

    def note(step: Step, client_id: str, data: bytes) -> bytes:
        seen[step.name] += client_id == "client-1"
        return data

    engine = Meddling(small.clients, note)
    engine._dropouts = LocalEngine(small.clients, small.dropouts)._dropouts
    small.use(engine)
    assert small.round().summed is not None
    return seen


def test_an_exchange_is_five_messages(paper: Make) -> None:
    phases = ["share", "mask", "confirm", "reveal"]
    assert counted(paper(FedIT())) == Counter(["train", *phases])
    later = [f"{phase} of exchange 1" for phase in ("announce", *phases)]
    assert counted(paper(FRALoRA(CrossTerm("two-pass")))) == Counter(["train", *phases, *later])


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: replace(p, min_survivors=p.min_survivors - 1, quorum=3, threshold=3, max_colluders=0),
        lambda p: replace(p, context=bytes(32)),
        lambda p: replace(p, round=p.round + 1),
        lambda p: replace(p, bound=p.bound + 1),
    ],
    ids=["thresholds", "context", "round", "bound"],
)
def test_a_proposal_that_is_refused_costs_no_budget(
    paper: Make, edit: Callable[[SessionParameters], SessionParameters]
) -> None:
    """The policy is asked before the ledger: no charge, no training, and the next round is as if nothing had been."""
    small = paper(FedIT())
    bad = proposing(edit)

    def meddle(step: Step, client_id: str, data: bytes) -> bytes:
        return wire.encode(bad(wire.decode(data))) if (step.round, step.phase) == (1, "train") else data

    small.use(Meddling(small.clients, meddle))
    first = small.round()
    assert {code for _, code in first.record.refused} == {"PolicyViolation"}
    assert first.record.aborted is not None
    assert not first.record.exchanges
    assert small.trainings == 0
    assert not any(client._setup.ledger.charges() for client in small.clients)
    assert small.round().record.survivors == small.experiment.client_ids


def test_without_a_proposal_a_client_trains_and_waits_for_one(paper: Make) -> None:
    """What a server does that could not yet say who takes part."""
    small = paper(FedIT())
    message = small.server.task(small.state).to_message(small.begun.state)
    answer = wire.decode(small.clients[0].handle(wire.encode(message)))
    assert answer == wire.Message(wire.TRAINED)
    (charge,) = small.clients[0]._setup.ledger.charges()
    assert not charge.releases


class Untrained(LocalEngine):
    """Some clients are not there while others train, and for the rest of the round."""

    def __init__(self, small: Paper, gone: set[str]) -> None:
        super().__init__(small.clients)
        self.gone = gone
        self.rosters: list[tuple[str, ...]] = []
        self.steps: Counter[str] = Counter()

    def exchange(self, messages: Mapping[str, bytes], step: Step) -> Mapping[str, bytes]:
        self.steps[step.name] += 1
        self.rosters += {p.roster for data in messages.values() if (p := proposed(data)) is not None}
        return super().exchange({c: data for c, data in messages.items() if c not in self.gone}, step)


@pytest.mark.parametrize("neighbours", [None, 4])
def test_who_does_not_train_is_a_loss_where_all_mask_and_no_neighbour_on_a_ring(
    paper: Make, neighbours: int | None
) -> None:
    """Beside each other on a ring of four neighbours those two would be too many; another ring is proposed instead."""
    sections = {} if neighbours is None else {"neighbours": neighbours}
    gone = {"client-2", "client-5"}
    small, plain = paper(FedIT(), 9, **sections), paper(FedIT(), 9, mode="insecure")
    engine = Untrained(small, gone)
    small.use(engine)
    plain.use(LocalEngine([c for c in plain.clients if c.client_id not in gone]))
    masked, unmasked = small.round(), plain.round()
    everybody = small.experiment.client_ids
    there = tuple(c for c in everybody if c not in gone)
    assert engine.rosters == ([everybody] if neighbours is None else [everybody, there])
    assert engine.steps["advertise"] == (neighbours is not None)
    assert masked.record.survivors == there
    assert sorted(masked.record.lost) == [("client-2", "train"), ("client-5", "train")]
    assert masked.summed is not None
    assert unmasked.summed is not None
    assert_array_equal(masked.summed.parts[0].ring_sum, unmasked.summed.parts[0].ring_sum)
    assert len(masked.record.exchanges) == 1


def test_too_few_who_train_end_the_round_before_a_session_begins(paper: Make) -> None:
    small = paper(FedIT())
    small.use(Untrained(small, {"client-1", "client-4"}))
    result = small.round()
    assert result.record.aborted == "secure aggregation ended in train: 3 clients take part, a sum needs 4"
    assert not result.record.exchanges


def test_a_client_lost_in_advertise_has_trained_and_is_charged(paper: Make) -> None:
    """In a simulation of losses it gets the message, and its answer never comes."""
    small = paper(FedIT(), dropouts=[Dropout(round=1, client_id="client-2", phase="advertise")])
    result = small.round()
    assert result.record.lost == [("client-2", "train")]
    assert small.trainings == 5
    (charge,) = small.clients[1]._setup.ledger.charges()
    assert not charge.releases
    assert small.round().record.survivors == small.experiment.client_ids


# A server that proposes one session with the message that begins an exchange, and another by itself.


def until(small: Paper, phase: str) -> SessionParameters:
    """Conduct a round up to a phase, which nobody hears of any more; return the session that was proposed."""
    seen: list[SessionParameters] = []

    def stop(step: Step, client_id: str, data: bytes) -> bytes:
        if step.phase == phase:
            raise Killed
        seen.extend(p for p in [proposed(data)] if p is not None)
        return data

    small.use(Meddling(small.clients, stop))
    with pytest.raises(Killed):
        small.round()
    return seen[0]


def by_itself(small: Paper, server: SecAggServer, phases: int) -> list[wire.Message]:
    """Conduct a session that is proposed by itself; return all answers to the last of its phases."""
    outgoing, answers = server.start(), []
    for phase in PHASES[:phases]:
        answers = []
        for client in small.clients:
            asked = wire.Message(wire.PHASE, {"phase": phase}, {"body": outgoing[client.client_id]})
            answers.append(wire.decode(client.handle(wire.encode(asked))))
            if answers[-1].kind == wire.PHASE:
                server.receive(client.client_id, answers[-1].blobs["body"])
        if phase != PHASES[phases - 1]:
            outgoing = server.advance()
    return answers


def test_however_many_sessions_are_proposed_one_vector_leaves(paper: Make) -> None:
    """All have masked; a second session of the same exchange then gets keys and shares, and no vector."""
    small = paper(FedIT())
    again = replace(until(small, "confirm"), session_id=bytes(32))
    answers = by_itself(small, SecAggServer(parameters=again, roster=small.roster), 3)
    assert answers == [wire.Message(wire.REFUSED, {"code": "FederationError"})] * 5
    for client in small.clients:
        (charge,) = client._setup.ledger.charges()
        assert [release.session for release in charge.releases] != [again.session_id.hex()]
        assert len(charge.releases) == 1
    assert small.trainings == 5


def test_the_session_that_was_proposed_first_ends_with_the_second(paper: Make) -> None:
    """Its keys are gone: what others have sent for it is refused, and the second one goes on."""
    small = paper(FedIT())
    seen: list[SessionParameters | None] = []
    first: dict[str, bytes] = {}

    def keep(step: Step, client_id: str, data: bytes) -> bytes:
        if step.phase == "share":
            first[client_id] = data
            if len(first) == 5:
                raise Killed
            return wire.encode(wire.Message(wire.UPLOAD))  # which a client refuses, and nothing comes of it
        seen.append(proposed(data))
        return data

    small.use(Meddling(small.clients, keep))
    with pytest.raises(Killed):
        small.round()
    assert seen[0] is not None
    server = SecAggServer(parameters=replace(seen[0], session_id=bytes(32)), roster=small.roster)
    assert {answer.kind for answer in by_itself(small, server, 1)} == {wire.PHASE}
    for client in small.clients[1:]:
        refused = wire.decode(client.handle(first[client.client_id]))
        assert refused == wire.Message(wire.REFUSED, {"code": "RemoteProtocolError"})
        assert not client._setup.ledger.charges()[0].releases
