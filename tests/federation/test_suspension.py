"""Clients that are another process at every message: the same sums, and nothing but the latest state is believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from numpy.testing import assert_array_equal

from fedlora_priv.engines.base import Step
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.federation import wire
from fedlora_priv.federation.client import ClientSetup, FederationClient
from fedlora_priv.federation.rounds import RoundResult
from fedlora_priv.methods import Method
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fra import FRALoRA
from protocols.secagg.interface import PHASES

from .paper import Paper

TWO_EXCHANGES = FRALoRA(CrossTerm("two-pass"))


class Restarting(LocalEngine):
    """Every message comes to a new client, which has its home and what the last one suspended, as on a SuperNode.

    Args:
        paper: whose clients.
        tamper: (step, client_id, its suspended rounds so far) → the bytes it is resumed from.
    """

    def __init__(self, paper: Paper, tamper: Callable[[Step, str, list[bytes]], bytes] | None = None) -> None:
        super().__init__(paper.clients)
        self.setups: dict[str, ClientSetup] = {client.client_id: client._setup for client in paper.clients}
        self.suspended: dict[str, list[bytes]] = {client_id: [b""] for client_id in self.setups}
        self.tamper = tamper or (lambda step, client_id, kept: kept[-1])

    def exchange(self, messages: Mapping[str, bytes], step: Step) -> Mapping[str, bytes]:
        answers = {}
        for client_id, data in messages.items():
            client, kept = FederationClient(self.setups[client_id]), self.suspended[client_id]
            client.resume(self.tamper(step, client_id, kept))
            answers[client_id] = client.handle(data)
            kept.append(client.suspend())
        return answers


@pytest.fixture
def paper(on_paper: Callable[..., Paper]) -> Callable[..., Paper]:
    def make(method: Method, *, mode: str = "secure", **communication: Any) -> Paper:
        sections = {"communication": {"value_bits": 16} | communication, "secure_aggregation": {"mode": mode}}
        return on_paper(method, sections)

    return make


def same(one: RoundResult, other: RoundResult) -> None:
    assert one.summed is not None
    assert other.summed is not None
    for mine, theirs in zip(one.summed.parts, other.summed.parts, strict=True):
        assert mine.ring_sum.any()
        assert_array_equal(mine.ring_sum, theirs.ring_sum)


@pytest.mark.parametrize("mode", ["secure", "insecure"])
@pytest.mark.parametrize(
    ("method", "communication"),
    [(FedIT(), {}), (TWO_EXCHANGES, {"support": "dense", "density": 1.0})],
    ids=["one exchange, half of the coordinates", "two exchanges"],
)
def test_a_process_for_every_message_gives_the_same_sums(
    paper: Callable[..., Paper], method: Method, communication: dict[str, Any], mode: str
) -> None:
    alive = paper(method, mode=mode, **communication)
    restarting = paper(method, mode=mode, **communication)
    restarting.use(Restarting(restarting))
    for _ in range(2):
        same(restarting.round(), alive.round())
    assert restarting.trainings == alive.trainings == 2 * len(alive.clients)


def test_what_is_kept_between_messages_is_the_keys_and_in_the_home_there_are_none(
    paper: Callable[..., Paper],
) -> None:
    small = paper(FedIT())
    engine = Restarting(small)
    small.use(engine)
    assert small.round().summed is not None
    for client_id, kept in engine.suspended.items():
        held = b"".join(file.read_bytes() for file in (small.folder / client_id).iterdir() if file.is_file())
        sessions = [
            wire.decode(wire.decode(suspended).blobs["release"]).blobs.get("session", b"")
            for suspended in kept
            if suspended
        ]
        assert sum(map(bool, sessions)) == len(PHASES)
        # Cut in pieces, so that a secret cannot hide among what is public around it.
        secret = next(session for session in sessions if session)[64:128]
        assert not any(secret[i : i + 16] in held for i in range(0, 64, 16))


@pytest.mark.parametrize("phase", PHASES[1:])
def test_an_earlier_state_is_refused_and_the_round_goes_on_without_that_client(
    paper: Callable[..., Paper], phase: str
) -> None:
    """The state before the last: what a crash between answer and hand-over leaves, or a server that turns back."""

    def turn_back(step: Step, client_id: str, kept: list[bytes]) -> bytes:
        stale = client_id == "client-2" and step.phase == phase and step.round == 1
        return kept[-2] if stale else kept[-1]

    small = paper(FedIT())
    small.use(Restarting(small, turn_back))
    result = small.round()
    code = "FederationError" if phase == "share" else "StaleRound"  # before it there was no round at all
    assert result.record.refused == [("client-2", code)]
    assert result.summed is not None
    assert ("client-2" in result.record.survivors) == (phase in ("confirm", "reveal"))
    second = small.round()  # and it is back as if nothing had been
    assert second.record.survivors == small.experiment.client_ids
    assert not second.record.refused
    assert small.trainings == 2 * len(small.clients)


def test_another_clients_and_another_runs_states_are_refused(paper: Callable[..., Paper]) -> None:
    small = paper(FedIT())
    engine = Restarting(small)
    small.use(engine)
    small.round()
    for setup, suspended in [
        (engine.setups["client-1"], engine.suspended["client-2"][2]),
        (engine.setups["client-1"], engine.suspended["client-1"][2][:-1]),
        (engine.setups["client-1"], b"nothing that was ever written"),
    ]:
        client = FederationClient(setup)
        client.resume(suspended)
        message = wire.encode(wire.Message(wire.PHASE, {"phase": "share"}, {"body": b""}))
        answer = wire.decode(client.handle(message))
        assert (answer.kind, answer.fields) == (wire.REFUSED, {"code": "StaleRound"})
        assert not answer.blobs


def test_a_client_without_a_state_waits_for_the_next_round(paper: Callable[..., Paper]) -> None:
    small = paper(FedIT())
    small.use(Restarting(small, lambda step, client_id, kept: b"" if step.phase == "mask" else kept[-1]))
    result = small.round()
    assert result.summed is None
    assert {code for _, code in result.record.refused} == {"FederationError"}
