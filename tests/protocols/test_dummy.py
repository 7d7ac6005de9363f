"""The insecure dummy and the real machines do the same in every scenario: sums, survivors, losses, aborts, refusals."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protocols.errors import (
    LocalProtocolError,
    PolicyViolation,
    ProtocolError,
    RemoteProtocolError,
    SessionAborted,
)
from protocols.secagg.dummy import InsecureDummyClient, InsecureDummyServer
from protocols.secagg.interface import PHASES
from protocols.secagg.local import SessionLog, run_session
from protocols.secagg.session import CoordinateGroup

GROUPS = (CoordinateGroup(0, 3, (0, 1, 2, 3)), CoordinateGroup(3, 7, (0, 1, 2)))
SHAPES: dict[str, dict[str, Any]] = {
    "four": {"n": 4},
    "four, all needed": {"n": 4, "quorum": 4, "threshold": 4, "min_survivors": 4},
    "three, no colluder": {"n": 3, "max_colluders": 0},
    "two": {"n": 2, "max_colluders": 0},
    "groups": {"n": 4, "groups": GROUPS, "min_contributors": 3},
}


def dummies(federation: Any) -> tuple[dict[str, InsecureDummyClient], InsecureDummyServer]:
    """The dummies of a federation."""
    clients = {
        name: InsecureDummyClient(
            client_id=name, policy=federation.policy, context=federation.parameters.context
        )
        for name in federation.names
    }
    return clients, InsecureDummyServer(parameters=federation.parameters)


def outcome(clients: Any, server: Any, federation: Any, dropouts: dict[str, Any]) -> tuple[Any, ...]:
    """Everything that a system around the machines can notice."""
    log = SessionLog()
    attachments = {name: name.encode() for name in federation.names}
    try:
        result = run_session(clients, server, federation.vectors, dropouts, attachments=attachments, log=log)
    except SessionAborted as aborted:
        seen: tuple[Any, ...] = ("aborted", aborted.phase, aborted.lost, aborted.reason)
    else:
        seen = ("sum", result.sum.tolist(), result.survivors, result.attachments, result.lost)
        assert result.sum.dtype == np.uint32
    phases = {name: client.phase for name, client in clients.items()}
    return (
        *seen,
        server.phase,
        server.lost,
        phases,
        {name: c.survivors for name, c in clients.items()},
        log.rejected,
    )


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_set_of_losses_in_every_phase(make_federation: Any, shape: str, phase: Any) -> None:
    n = SHAPES[shape]["n"]
    for size in range(n + 1):
        for lost in itertools.combinations(range(n), size):
            federation = make_federation(**SHAPES[shape])
            if shape == "groups":
                federation.vectors["client-4"][3:] = 0
            dropouts = {federation.names[index]: phase for index in lost}
            real = outcome(federation.clients, federation.server, federation, dropouts)
            assert outcome(*dummies(federation), federation, dropouts) == real


def test_losses_in_mixed_phases(make_federation: Any) -> None:
    for first, second in itertools.product(PHASES, repeat=2):
        federation = make_federation(n=6, max_colluders=0)
        dropouts = {"client-2": first, "client-6": second}
        real = outcome(federation.clients, federation.server, federation, dropouts)
        assert outcome(*dummies(federation), federation, dropouts) == real


def test_a_ring(make_federation: Any) -> None:
    # The places on the ring are others, so only what does not hang on them is the same.
    federation = make_federation(n=12, max_colluders=1, degree=8)
    dropouts = {"client-3": "mask", "client-12": "confirm"}
    real = outcome(federation.clients, federation.server, federation, dropouts)
    assert outcome(*dummies(federation), federation, dropouts) == real


def test_a_ring_aborts_without_holders(make_federation: Any) -> None:
    federation = make_federation(n=12, max_colluders=1, degree=2, threshold=3)
    clients, server = dummies(federation)
    with pytest.raises(SessionAborted, match="only 2 of at least 3 clients hold shares of client-"):
        run_session(clients, server, federation.vectors, {"client-5": "reveal"})


REFUSALS: dict[str, dict[str, Any]] = {
    "a policy": {"min_survivors": 5},
    "another round": {"exact_round": (7, 0)},
    "another roster": {"exact_roster": frozenset({"client-1"})},
    "a long proposal": {"max_proposal_bytes": 10},
}


@pytest.mark.parametrize("name", REFUSALS)
def test_the_policy_is_the_same(federation: Any, name: str) -> None:
    proposal = federation.server.start()["client-1"]
    policy = replace(federation.policy, **REFUSALS[name])
    errors = []
    for client in (
        federation.client("client-1", policy=policy),
        InsecureDummyClient(client_id="client-1", policy=policy, context=federation.parameters.context),
    ):
        with pytest.raises((PolicyViolation, RemoteProtocolError)) as caught:
            client.advertise(proposal)
        errors.append(str(caught.value))
        assert client.phase == "refused"
        with pytest.raises(LocalProtocolError):
            client.advertise(proposal)
    assert errors[0] == errors[1]


def test_another_context_or_client_is_refused(federation: Any) -> None:
    proposal = federation.server.start()["client-1"]
    for changes, match in (
        ({"context": bytes(32)}, "another model"),
        ({"client_id": "client-9"}, "does not have"),
    ):
        arguments = {
            "client_id": "client-1",
            "policy": federation.policy,
            "context": federation.parameters.context,
        }
        with pytest.raises(PolicyViolation, match=match):
            InsecureDummyClient(**{**arguments, **changes}).advertise(proposal)


def test_bad_bytes_in_every_phase(federation: Any) -> None:
    clients, server = dummies(federation)
    inbox = server.start()
    messages: list[bytes] = []
    for phase in PHASES:
        answers = {}
        for name, client in clients.items():
            arguments = (federation.vectors[name],) if phase == "mask" else ()
            answers[name] = getattr(client, phase)(inbox[name], *arguments)
        for bad in (
            b"",
            b"nonsense",
            answers["client-1"][:-1],
            answers["client-1"] + b"\0",
            answers["client-2"],
            *messages,
        ):
            broken = InsecureDummyServer.restore(server.snapshot(), parameters=federation.parameters)
            with pytest.raises(RemoteProtocolError, match="client-1"):
                broken.receive("client-1", bad)
            with pytest.raises(RemoteProtocolError, match="lost in phase"):
                broken.receive("client-1", answers["client-1"])
        messages.append(answers["client-1"])
        for name, answer in answers.items():
            server.receive(name, answer)
        with pytest.raises(RemoteProtocolError, match="already answered"):
            server.receive("client-1", answers["client-1"])
        with pytest.raises(RemoteProtocolError, match="not on the roster"):
            server.receive("nobody", b"")
        inbox = server.advance()
    assert server.phase == "done"


@pytest.mark.parametrize("phase", PHASES[1:])
def test_a_client_refuses_what_the_real_one_refuses(federation: Any, phase: str) -> None:
    clients, server = dummies(federation)
    inbox, client = server.start(), clients["client-1"]
    earlier = inbox["client-1"]
    for step in PHASES[: PHASES.index(phase)]:
        earlier = inbox["client-1"]
        for name in federation.names:
            arguments = (federation.vectors[name],) if step == "mask" else ()
            server.receive(name, getattr(clients[name], step)(inbox[name], *arguments))
        inbox = server.advance()
    arguments = (federation.vectors["client-1"],) if phase == "mask" else ()
    alone = inbox["client-1"][:-1] + b"\x01"  # the bitmap is the last byte
    without = inbox["client-1"][:-1] + b"\x1e"
    beyond = inbox["client-1"][:-1] + b"\xff"
    for bad in (b"", inbox["client-1"][:-1], inbox["client-1"] + b"\0", earlier, alone, without, beyond):
        snapshot = client.snapshot()
        arguments_of = {
            "client_id": "client-1",
            "policy": federation.policy,
            "context": federation.parameters.context,
        }
        again = InsecureDummyClient.restore(snapshot, **arguments_of)
        with pytest.raises(RemoteProtocolError, match="server"):
            getattr(again, phase)(bad, *arguments)
        assert (again.phase, again.session_id) == ("refused", None)
    if phase == "mask":
        with pytest.raises(LocalProtocolError, match="shape"):
            client.mask(inbox["client-1"], np.zeros(3, dtype=np.uint32))
    assert client.phase == phase
    assert client.session_id == federation.parameters.session_id


def test_a_restart_before_every_message(federation: Any) -> None:
    clients, server = dummies(federation)
    inbox = server.start()
    for phase in PHASES:
        for name in federation.names:
            arguments = {
                "client_id": name,
                "policy": federation.policy,
                "context": federation.parameters.context,
            }
            clients[name] = InsecureDummyClient.restore(clients[name].snapshot(), **arguments)
            server = InsecureDummyServer.restore(server.snapshot(), parameters=federation.parameters)
            given = (federation.vectors[name],) if phase == "mask" else ()
            server.receive(name, getattr(clients[name], phase)(inbox[name], *given))
        inbox = server.advance()
    server = InsecureDummyServer.restore(server.snapshot(), parameters=federation.parameters)
    np.testing.assert_array_equal(server.result().sum, federation.plain_sum(federation.names))
    for bad in (b"", server.snapshot()[:-1], clients["client-1"].snapshot()):
        with pytest.raises(LocalProtocolError, match="snapshot"):
            InsecureDummyServer.restore(bad, parameters=federation.parameters)


def test_phases_come_in_order(federation: Any) -> None:
    clients, server = dummies(federation)
    for phase in PHASES[1:]:
        arguments = (federation.vectors["client-1"],) if phase == "mask" else ()
        with pytest.raises(LocalProtocolError, match="not the turn"):
            getattr(clients["client-1"], phase)(b"", *arguments)
    for misuse in (server.advance, server.result, lambda: server.receive("client-1", b"")):
        with pytest.raises(LocalProtocolError):
            misuse()


def test_it_says_what_it_is(federation: Any) -> None:
    clients, server = dummies(federation)
    for held in (clients["client-1"], server):
        assert "InsecureDummy" in repr(held)
        assert (type(held).__doc__ or "").startswith("INSECURE")
    sent = clients["client-1"].advertise(server.start()["client-1"])
    assert b"client-1" in sent
    with pytest.raises(ProtocolError):
        federation.clients["client-1"].share(sent)
