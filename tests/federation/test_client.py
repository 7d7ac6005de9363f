"""A client against a server that asks for what it must not get; only `handle`, only bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlora_priv.errors import FederationError, RunFolderError
from fedlora_priv.federation import record, wire
from fedlora_priv.federation.server import ServerState
from fedlora_priv.federation.session import session_parameters
from protocols.secagg.codec import encode
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.messages import Proposal

from .lab import Lab


@pytest.fixture
def lab(experiment_file: Callable[..., Path]) -> Iterator[Lab]:
    made = Lab(
        experiment_file(federation={"rounds": 2}, privacy={"retry_rounds": 0, "lifetime_epsilon": 50.0})
    )
    yield made
    for client in made.clients:
        client.close()
    made.folder.close()


def phase(name: str, body: bytes = b"") -> bytes:
    return wire.encode(wire.Message(wire.PHASE, {"phase": name}, {"body": body}))


def test_a_secure_client_never_sends_an_unmasked_upload(lab: Lab) -> None:
    assert lab.ask(lab.train()).kind == wire.TRAINED
    rows = len(lab.ledger.rows())
    answer = lab.ask(wire.encode(wire.Message(wire.UPLOAD)))
    assert answer.kind == wire.REFUSED
    assert not answer.blobs
    assert len(lab.ledger.rows()) == rows  # nothing was released


@pytest.mark.parametrize("message", [phase("mask"), phase("advertise"), phase("nonsense"), b"", b"\xff" * 40])
def test_a_message_out_of_turn_is_refused_and_releases_nothing(lab: Lab, message: bytes) -> None:
    answer = lab.ask(message)
    assert answer.kind == wire.REFUSED
    assert set(answer.fields) == {"code"}
    assert len(lab.ledger.rows()) == 1


def test_a_refusal_carries_a_code_and_no_text(lab: Lab) -> None:
    lab.ask(lab.train())
    answer = lab.ask(phase("advertise", b"not a proposal"))
    assert answer == wire.Message(wire.REFUSED, {"code": "RemoteProtocolError"})


def test_a_session_for_another_form_of_vector_is_refused_before_there_is_one(lab: Lab) -> None:
    """Under a smaller bound, whether `mask` refuses would tell what is in the upload."""
    lab.ask(lab.train())
    task = lab.server.task(lab.state)
    quantiser, digest = task.first.channel.quantiser, bytes.fromhex(lab.experiment.digest())
    proposal = session_parameters(
        lab.experiment,
        lab.experiment.client_ids,
        round=task.round,
        session_id=bytes(32),
        context=task.context(digest, lab.client._setup.run, task.first),
        vector_length=len(task.first.channel.support),
        modulus_bits=quantiser.modulus_bits,
        bound=quantiser.levels,
    )
    smaller = replace(proposal, session_id=bytes([1]) * 32, bound=5)
    answer = lab.ask(phase("advertise", encode(Proposal(smaller))))
    assert answer == wire.Message(wire.REFUSED, {"code": "PolicyViolation"})
    assert lab.ask(phase("advertise", encode(Proposal(proposal)))).kind == wire.PHASE


def test_the_same_round_again_costs_nothing(lab: Lab) -> None:
    for _ in range(3):
        assert lab.ask(lab.train()).kind == wire.TRAINED
    assert len(lab.ledger.charges()) == 1


def test_another_start_for_the_same_round_is_charged_and_ends_with_the_budget(lab: Lab) -> None:
    """A server that sends one model after another gets as many releases as were planned, then refusals."""
    answers = []
    for i in range(4):
        name = next(n for n in lab.state.state if n.endswith("lora_B"))
        changed = {**lab.state.state, name: np.full_like(lab.state.state[name], 0.01 * i)}
        answers.append(lab.ask(lab.train(replace(lab.state, state=changed))).kind)
    assert answers == [wire.TRAINED, wire.TRAINED, wire.REFUSED, wire.REFUSED]
    assert len(lab.ledger.charges()) == 2


def test_the_target_of_the_run_holds_although_the_ledger_has_room(lab: Lab) -> None:
    """The lifetime limit is far away; it is the run's own epsilon that the third round would exceed."""
    for state in (lab.state, replace(lab.state, round=1), replace(changed(lab, 0.01), round=1)):
        answer = lab.ask(lab.train(state))
    assert answer == wire.Message(wire.REFUSED, {"code": "BudgetExceeded"})


def changed(lab: Lab, value: float) -> ServerState:
    """Return the state with one B filled with a value."""
    name = next(n for n in lab.state.state if n.endswith("lora_B"))
    return replace(lab.state, state={**lab.state.state, name: np.full_like(lab.state.state[name], value)})


@pytest.mark.parametrize("value", [101.0, 1e16, -1e30])
def test_a_state_that_would_couple_examples_is_refused_before_anything_is_charged(
    lab: Lab, value: float
) -> None:
    answer = lab.ask(lab.train(changed(lab, value)))
    assert answer == wire.Message(wire.REFUSED, {"code": "StateBeyondBounds"})
    assert len(lab.ledger.rows()) == 1


def test_another_start_is_refused_once_the_round_has_been_released(lab: Lab) -> None:
    lab.ask(lab.train())
    setup = lab.client._setup
    setup.ledger.release(setup.ledger.charges()[0].reservation, session="ab" * 32)
    assert lab.ask(lab.train(changed(lab, 0.01))).kind == wire.REFUSED
    assert lab.ask(lab.train()).kind == wire.TRAINED  # the same update may be masked again
    assert len(lab.ledger.charges()) == 1


@pytest.mark.parametrize("number", [-1, 2, 2**32 - 2])
def test_rounds_beyond_the_experiment_are_refused(lab: Lab, number: int) -> None:
    assert lab.ask(lab.train(replace(lab.state, round=number))).kind == wire.REFUSED
    assert len(lab.ledger.rows()) == 1


def test_a_phase_out_of_turn_leaves_no_trace_in_the_ledger(lab: Lab) -> None:
    lab.ask(lab.train())
    rows = len(lab.ledger.rows())
    for name in ("confirm", "mask", "reveal", "share"):
        assert lab.ask(phase(name)).kind == wire.REFUSED
    assert len(lab.ledger.rows()) == rows


def test_unusable_bounds_are_refused_before_anything_is_charged(lab: Lab) -> None:
    message = wire.decode(lab.train())
    for number in (0.0, -1.0, 1e-40, np.inf, np.nan):
        bounds = np.frombuffer(message.blobs["bounds"], "<f4").copy()
        bounds[len(bounds) // 2] = number
        answer = lab.ask(wire.encode(replace(message, blobs={**message.blobs, "bounds": bounds.tobytes()})))
        assert answer.kind == wire.REFUSED
    assert len(lab.ledger.rows()) == 1


def test_one_home_serves_one_process(lab: Lab) -> None:
    with pytest.raises(RunFolderError, match="another process uses"):
        lab.folder.client_home("client-1").lock()


def test_a_statement_must_be_about_its_sender_and_signed_by_its_key(lab: Lab) -> None:
    class Relay:
        """An engine whose first client sends the second one's statement."""

        client_ids = ("client-1", "client-2", "client-3")

        def exchange(self, messages: dict[str, bytes], step: object) -> dict[str, bytes]:
            real = {c.client_id: c.handle(messages[c.client_id]) for c in lab.clients[1:3]}
            return {**real, "client-1": real["client-2"]}

    roster = lab.client._setup.roster
    assert set(record.collect(Relay(), roster, 2)) == {"client-2", "client-3"}
    unpinned = Roster({**roster, "client-3": Identity.generate().public_bytes})
    assert set(record.collect(Relay(), unpinned, 2)) == {"client-2"}


def test_wire_bombs_are_refused(lab: Lab) -> None:
    import struct

    endless = f'{{"version":{wire.VERSION},"kind":"train","fields":{{}},"blobs":[["a",Infinity]]}}'
    for header in (b"[" * 100_000, endless.encode()):
        with pytest.raises(FederationError):
            wire.decode(struct.pack("<I", len(header)) + header)
        assert lab.ask(struct.pack("<I", len(header)) + header).kind == wire.REFUSED


def test_a_message_of_another_release_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    message = lab.train()
    with monkeypatch.context() as other:
        other.setattr(wire, "VERSION", wire.VERSION + 1)
        theirs = lab.train()
    with pytest.raises(FederationError, match="version"):
        wire.decode(theirs)
    assert lab.ask(theirs).kind == wire.REFUSED
    assert lab.ask(message).kind == wire.TRAINED


def test_an_update_that_no_charge_covers_is_not_answered_for(
    experiment_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number about what stays at home is post-processing of what the ledger has charged, or is not sent."""
    whole = {"support": "dense", "density": 1.0, "value_bits": 16}
    lab = Lab(experiment_file(federation={"method": "fedsa", "rounds": 2}, communication=whole))
    assert lab.ask(lab.train()).kind == wire.TRAINED
    a = wire.pack_arrays({name: array for name, array in lab.begun.items() if name.endswith(".lora_A")})
    question = wire.encode(wire.Message(wire.PERSONAL, {"round": 1, "keep": False}, a))
    assert lab.ask(question).kind == wire.PERSONAL
    monkeypatch.setattr(lab.ledger, "charges", lambda **_: ())
    assert lab.ask(question) == wire.Message(wire.REFUSED, {"code": "FederationError"})
    for client in lab.clients:
        client.close()
    lab.folder.close()
