"""A server that plays with a round's exchanges; every client is asked by bytes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedlora_priv.engines.base import Step
from fedlora_priv.federation import start, wire
from fedlora_priv.federation.exchange import ANNOUNCED_PREFIX
from fedlora_priv.federation.rounds import RoundResult
from fedlora_priv.methods import Method
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.flexlora import FlexLoRA
from fedlora_priv.methods.flora import FLoRA
from fedlora_priv.methods.fra import FRALoRA
from protocols.secagg.session import SessionParameters
from protocols.sparsify import dense

from .paper import DENSE, LAYOUT, Meddling, Paper, proposing

BOTH = dense(2).to_bytes()
REFUSED = wire.Message(wire.REFUSED, {"code": "FederationError"})
BASIS = ANNOUNCED_PREFIX + "layer.0.query.basis"


@pytest.fixture
def paper(on_paper: Callable[..., Paper]) -> Callable[..., Paper]:
    def make(method: Method, mode: str = "secure") -> Paper:
        return on_paper(method, {"communication": DENSE, "secure_aggregation": {"mode": mode}})

    return make


def two_pass() -> Method:
    return FRALoRA(CrossTerm("two-pass"))


Change = Callable[[wire.Message], wire.Message]


def meddled(
    small: Paper, phase: str, change: Change, *, exchange: int = 1, only: str | None = None
) -> RoundResult:
    """Conduct a round in which the messages of a phase, to one client or all, are changed on their way."""

    def meddle(step: Step, client_id: str, data: bytes) -> bytes:
        if (step.phase, step.exchange) == (phase, exchange) and only in (None, client_id):
            return wire.encode(change(wire.decode(data)))
        return data

    small.use(Meddling(small.clients, meddle))
    return small.round()


def released(small: Paper) -> list[int]:
    """The exchanges that the first client's ledger knows of."""
    (charge,) = small.clients[0]._setup.ledger.charges()
    return [release.exchange for release in charge.releases if release.transcript is None]


def fields(**changes: object) -> Change:
    return lambda message: replace(message, fields={**message.fields, **changes})


def blobs(change: Callable[[dict[str, bytes]], Mapping[str, bytes]]) -> Change:
    return lambda message: replace(message, blobs=change(dict(message.blobs)))


def floats(*numbers: float) -> bytes:
    return np.array(numbers, "<f4").tobytes()


def value(number: float) -> bytes:
    return np.full((14, 2), number, "<f4").tobytes()


@pytest.mark.parametrize(
    "change",
    [
        fields(exchange=0),
        fields(exchange=2),
        fields(exchange=True),
        fields(exchange="1"),
        blobs(lambda b: {name: blob for name, blob in b.items() if name != "bounds"}),
        blobs(lambda b: b | {"bounds": b""}),
        blobs(lambda b: b | {"bounds": b["bounds"][:-1]}),
        blobs(lambda b: b | {"bounds": b["bounds"] + bytes(4)}),
        blobs(lambda b: b | {"bounds": floats(-1.0, 1.0)}),
        blobs(lambda b: b | {"bounds": floats(1.0, 0.0)}),
        blobs(lambda b: b | {"bounds": floats(1e-40, 1.0)}),
        blobs(lambda b: b | {"bounds": floats(1.0, np.inf)}),
        blobs(lambda b: b | {"bounds": floats(np.nan, 1.0)}),
        fields(bounds={"layer.0.query.projected": 1.0, "layer.1.value.projected": 1.0}, exchange=2),
        blobs(lambda b: b | {BASIS: value(np.nan)}),
        blobs(lambda b: b | {BASIS: value(np.inf)}),
        blobs(lambda b: b | {BASIS: b[BASIS][:-4]}),
        blobs(lambda b: b | {BASIS: b[BASIS] + bytes(4)}),
        blobs(lambda b: {name: blob for name, blob in b.items() if name != BASIS}),
        blobs(lambda b: b | {ANNOUNCED_PREFIX + "another": bytes(4)}),
        blobs(lambda b: {BASIS.removeprefix(ANNOUNCED_PREFIX): bytes(len(b[BASIS])), **b}),  # two of one name
    ],
)
def test_an_exchange_that_is_not_the_next_or_does_not_fit_is_refused(
    paper: Callable[..., Paper], change: Change
) -> None:
    small = paper(two_pass())
    result = meddled(small, "announce", change, only="client-1")
    assert result.record.refused == [("client-1", "FederationError")]
    assert result.summed is None
    assert released(small) == [0]
    assert small.state.state is small.begun.state


def test_a_basis_that_would_amplify_the_upload_is_refused_by_everybody(paper: Callable[..., Paper]) -> None:
    """It is finite and of the right shape, all were told the same, and still nobody projects on it."""
    small = paper(two_pass())

    def announce(*arguments: Any) -> Any:
        exchange = real(*arguments)
        return exchange and replace(
            exchange, announced={n: a * np.float32(100) for n, a in exchange.announced.items()}
        )

    real, small.server.announce = small.server.announce, announce
    result = small.round()
    assert {code for _, code in result.record.refused} == {"UploadError"}
    assert len(result.record.refused) == 5
    assert result.record.aborted is not None
    assert "mask of exchange 1" in result.record.aborted
    assert released(small) == [0]


def test_an_announcement_that_one_client_alone_was_told_gets_nothing_of_it(
    paper: Callable[..., Paper],
) -> None:
    """It refuses the session, whose context is another than its own; without it there is none."""
    small = paper(two_pass())
    turned = blobs(
        lambda b: b | {BASIS: (-np.frombuffer(b[BASIS], "<f4")).tobytes()}
    )  # as orthonormal as before
    result = meddled(small, "announce", turned, only="client-1")
    assert result.record.refused == [("client-1", "PolicyViolation")]
    assert result.record.aborted is not None
    assert "4 were ready" in result.record.aborted
    assert released(small) == [0]


@pytest.mark.parametrize(
    "change",
    [
        lambda p: replace(p, roster=p.roster[:-1], degree=3),
        lambda p: replace(p, min_survivors=4),
        lambda p: replace(p, exchange=0),
        lambda p: replace(p, exchange=2),
        lambda p: replace(p, round=2),
    ],
)
def test_a_later_session_must_have_the_first_ones_survivors_and_all_of_them(
    paper: Callable[..., Paper], change: Callable[[Any], Any]
) -> None:
    small = paper(two_pass())

    def thin(parameters: SessionParameters) -> SessionParameters:
        changed = change(parameters)
        everybody = (replace(parameters.groups[0], contributors=tuple(range(changed.n))),)
        least = min(changed.min_survivors, changed.n)
        return replace(changed, groups=everybody, min_survivors=least, min_contributors=least)

    result = meddled(small, "announce", proposing(thin))
    assert {code for _, code in result.record.refused} == {"PolicyViolation"}
    assert released(small) == [0]


class Alone:
    """One client after a number of a real round's messages, and what would announce its next exchange."""

    def __init__(self, small: Paper, phases: int) -> None:
        self.announcement = self._run(small, phases)
        self.client = small.clients[0]

    def _run(self, small: Paper, phases: int) -> bytes:
        """Let everybody go through so many phases; return the announcement that a whole round would have made."""
        seen: dict[str, bytes] = {}

        def note(step: Step, client_id: str, data: bytes) -> bytes:
            if client_id == "client-1":
                seen[f"{step.exchange}/{step.phase}"] = data
            return data

        small.use(Meddling(small.clients, note))
        small.round()
        announcement, _ = wire.decode(seen["1/announce"]).without_blob(wire.PROPOSAL)
        small.state = small.begun
        small.live()  # the same round once more, which a crash has cut off

        def stop(step: Step, client_id: str, data: bytes) -> bytes:
            order = ["train", "share", "mask", "confirm", "reveal"]
            if step.exchange or order.index(step.phase) > phases:
                raise KeyboardInterrupt
            return data

        small.use(Meddling(small.clients, stop))
        with pytest.raises(KeyboardInterrupt):
            small.round()
        return wire.encode(announcement)

    def ask(self, message: bytes) -> wire.Message:
        return wire.decode(self.client.handle(message))


@pytest.mark.parametrize("phases", [0, 1, 2])
def test_an_exchange_before_the_last_one_was_confirmed_is_refused(
    paper: Callable[..., Paper], phases: int
) -> None:
    one = Alone(paper(two_pass()), phases)
    rows = len(one.client._setup.ledger.rows())
    assert one.ask(one.announcement) == REFUSED
    assert len(one.client._setup.ledger.rows()) == rows


def test_an_exchange_begins_once(paper: Callable[..., Paper]) -> None:
    """Announced again, with the same or another content, it is refused; so is one that was never there."""
    one = Alone(paper(two_pass()), 3)
    message = wire.decode(one.announcement)
    assert one.ask(one.announcement).kind == wire.READY
    assert one.ask(one.announcement) == REFUSED
    turned = (-np.frombuffer(message.blobs[BASIS], "<f4")).tobytes()
    assert one.ask(wire.encode(replace(message, blobs={**message.blobs, BASIS: turned}))) == REFUSED
    assert one.ask(wire.encode(replace(message, fields={**message.fields, "exchange": 2}))) == REFUSED


def test_what_has_left_does_not_leave_again_within_the_round(paper: Callable[..., Paper]) -> None:
    """Nor does a second exchange begin in any mode in which updates are private only together."""
    small = paper(FRALoRA(CrossTerm("two-pass")), mode="insecure")
    client = small.clients[0]

    def ask(message: wire.Message) -> wire.Message:
        return wire.decode(client.handle(wire.encode(message)))

    task = small.server.task(small.state)
    assert ask(task.to_message(small.begun.state)).kind == wire.TRAINED
    assert ask(wire.Message(wire.UPLOAD)).kind == wire.UPLOAD
    assert ask(wire.Message(wire.UPLOAD)) == REFUSED
    assert ask(task.to_message(small.begun.state)).kind == wire.TRAINED  # the round begins again as a whole
    assert ask(wire.Message(wire.UPLOAD)).kind == wire.UPLOAD
    privacy = small.experiment.privacy.model_copy(update={"mode": "distributed"})
    assert client._round is not None
    experiment = small.experiment.model_copy(update={"privacy": privacy})
    client._round._setup = replace(client._setup, experiment=experiment)
    basis = {"bounds": floats(1.0, 1.0)} | {
        f"{ANNOUNCED_PREFIX}{m.name}.basis": np.eye(m.out_features, m.rank, dtype="<f4").tobytes()
        for m in LAYOUT.modules
    }
    message = wire.Message(wire.EXCHANGE, {"exchange": 1}, basis | {"support": BOTH})
    assert ask(message) == REFUSED
    client._round._setup = client._setup
    assert ask(message).kind == wire.READY


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "confirm", "reveal", "done", None, []])
def test_a_phase_after_the_last_one_is_refused(paper: Callable[..., Paper], phase: object) -> None:
    """A client answers whatever a server says about a session that has ended."""
    small = paper(FedIT())
    small.round()
    message = wire.Message(wire.PHASE, {"phase": phase}, {"body": b""})
    answer = wire.decode(small.clients[0].handle(wire.encode(message)))
    assert answer.kind == wire.REFUSED
    assert released(small) == [0]


def test_a_method_of_one_exchange_has_no_second(paper: Callable[..., Paper]) -> None:
    small = paper(FedIT(), mode="insecure")
    client = small.clients[0]
    client.handle(wire.encode(small.server.task(small.state).to_message(small.begun.state)))
    client.handle(wire.encode(wire.Message(wire.UPLOAD)))
    message = wire.Message(wire.EXCHANGE, {"exchange": 1}, {"bounds": b""})
    assert wire.decode(client.handle(wire.encode(message))) == REFUSED


# --- what travels down ---------------------------------------------------------------------------------

Q = LAYOUT.modules[0].name


def grown(**shapes: tuple[int, ...]) -> Change:
    """Add arrays to a state of which nothing has moved, named by the last part of their names."""

    def change(message: wire.Message) -> wire.Message:
        named = {f"{Q}.{name}": list(shape) for name, shape in shapes.items()}
        size = sum(int(np.prod(shape)) for shape in shapes.values())
        whole = {start.SUPPORT: dense(size).to_bytes(), start.VALUES: bytes(4 * size)}
        return replace(message, fields={**message.fields, "shapes": named}, blobs={**message.blobs, **whole})

    return change


@pytest.mark.parametrize(
    ("method", "change"),
    [
        (FLoRA(cross=CrossTerm("sketch")), grown(base=(12, 14))),
        (FLoRA(cross=CrossTerm("sketch")), grown(base_B=(14, 3))),
        (FLoRA(cross=CrossTerm("sketch")), grown(base_B=(14, 3), base_A=(2, 12))),
        (FLoRA(cross=CrossTerm("sketch")), grown(base_B=(14, 7), base_A=(7, 12))),  # dense is smaller
        (FLoRA(cross=CrossTerm("sketch")), grown(base=(14, 12), base_B=(14, 3), base_A=(3, 12))),
        (FLoRA(cross=CrossTerm("sketch")), grown(base_B=(), base_A=())),
        (FLoRA(cross=CrossTerm("sketch")), grown(base_B=(14,), base_A=(12,))),
        (FedIT(), grown(base=(14, 12))),
        (FedIT(), grown(lora_R=(2, 2))),
        (FedIT(), grown(lora_A=(3, 12))),
        (FedIT(), fields(shapes={f"{Q}.lora_A": [2, -12]})),
        (FedIT(), fields(shapes={f"{Q}.lora_A": [2, 12.0]})),
        (FedIT(), fields(shapes={f"{Q}.lora_A": [2**40, 2**40]})),
        (FedIT(), fields(shapes=[1])),
        (FedIT(), blobs(lambda b: b | {f"{Q}.lora_A": bytes(96)})),
        (FedIT(), fields(state_sha256="00" * 32)),  # the server goes on from other weights
        (FlexLoRA(), blobs(lambda b: b | {"bounds": b["bounds"].replace(floats(1.0), floats(0.5), 1)})),
    ],
)
def test_a_state_that_the_layout_does_not_allow_is_refused_before_anything_is_charged(
    paper: Callable[..., Paper], method: Method, change: Change
) -> None:
    small = paper(method)
    message = small.server.task(small.state).to_message(small.begun.state)
    client = small.clients[0]
    assert wire.decode(client.handle(wire.encode(change(message)))) == REFUSED
    assert len(client._setup.ledger.rows()) == 1
    assert wire.decode(client.handle(wire.encode(message))).kind == wire.TRAINED


def test_only_what_has_changed_travels_and_arrives_as_it_is(paper: Callable[..., Paper]) -> None:
    small = paper(FLoRA(cross=CrossTerm("sketch")))
    first = small.server.task(small.state).to_message(small.begun.state)
    assert set(first.blobs) == {"support", "bounds"}
    small.round()
    task = small.server.task(small.state)
    message = task.to_message(small.begun.state)
    moved = set(message.fields["shapes"])
    assert len(message.blobs[start.SUPPORT]) == 1  # all of it has: whole arrays are shorter
    b = {m.b_name for m in LAYOUT.modules}  # zero again
    assert moved == set(small.state.state) - b
    assert {f"{Q}.base_B", f"{Q}.base_A"} <= moved
    client = small.clients[0]
    assert wire.decode(client.handle(wire.encode(message))).kind == wire.TRAINED
    assert client._round is not None
    assert client._round._task.state_digest == task.state_digest
