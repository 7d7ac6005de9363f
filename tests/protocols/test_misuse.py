"""Callers who hold it wrong are told so, and the server's memory stays one vector."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protocols.errors import LocalProtocolError, SessionAborted
from protocols.secagg.client import TRANSITIONS
from protocols.secagg.client_state import Done, Fresh, Refused
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.local import SessionLog, run_session
from protocols.secagg.server import SecAggServer


def test_a_client_needs_its_own_pinned_identity(federation: Any) -> None:
    with pytest.raises(LocalProtocolError, match="does not pin this identity"):
        federation.client("client-1", identity=Identity.generate())
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        federation.client("client-1", context=bytes(31))


def test_phases_come_in_order(federation: Any) -> None:
    client = federation.clients["client-1"]
    for phase in ("share", "confirm", "reveal"):
        with pytest.raises(LocalProtocolError, match="not the turn"):
            getattr(client, phase)(b"")
    with pytest.raises(LocalProtocolError, match="cannot be followed"):
        client._leave(Done(()), b"")
    assert client.phase == "advertise"


def test_the_table_leads_from_the_first_state_to_the_last() -> None:
    state, seen = Fresh, [Fresh.PHASE]
    while state in TRANSITIONS:
        state = TRANSITIONS[state]
        seen.append(state.PHASE)
    assert seen == ["advertise", "share", "mask", "confirm", "reveal", "done"]
    assert Refused not in TRANSITIONS


def test_a_server_knows_everybody_it_serves(federation: Any) -> None:
    partial = Roster({name: federation.roster[name] for name in federation.names[1:]})
    with pytest.raises(LocalProtocolError, match="no identity is known for client-1"):
        SecAggServer(parameters=federation.parameters, roster=partial)
    with pytest.raises(LocalProtocolError, match="overflow"):
        SecAggServer(parameters=replace(federation.parameters, bound=10**6), roster=federation.roster)


def test_a_server_is_used_in_order(federation: Any) -> None:
    server = federation.server
    for misuse in (server.advance, server.result, lambda: server.receive("client-1", b"")):
        with pytest.raises(LocalProtocolError):
            misuse()
    assert server.phase == "propose"
    federation.drive()
    with pytest.raises(LocalProtocolError, match="starts once"):
        server.start()
    assert server.phase == "done"
    with pytest.raises(LocalProtocolError, match="'done'"):
        server.advance()


def test_an_aborted_server_stays_aborted(federation: Any) -> None:
    federation.server.start()
    with pytest.raises(SessionAborted, match="only 0 of at least 4 clients advertised"):
        federation.server.advance()
    assert federation.server.phase == "aborted"
    assert set(federation.server.lost.values()) == {"advertise"}
    with pytest.raises(LocalProtocolError):
        federation.server.advance()


def test_dropouts_must_exist(federation: Any) -> None:
    for dropouts in ({"nobody": "mask"}, {"client-1": "propose"}):
        with pytest.raises(LocalProtocolError, match="no such client or phase"):
            run_session(federation.clients, federation.server, federation.vectors, dropouts)


def test_refused_and_rejected_clients_are_logged(federation: Any) -> None:
    log = SessionLog()
    federation.clients["client-2"] = federation.client("client-2", context=bytes(32))
    result = run_session(federation.clients, federation.server, federation.vectors, log=log)
    assert "client-2" not in result.survivors
    assert "another model" in log.refused["client-2"]

    class Broken:
        """Answers nonsense."""

        def advertise(self, proposal: bytes) -> bytes:
            return b"nonsense"

    fresh, log = type(federation)(), SessionLog()
    fresh.clients["client-3"] = Broken()
    result = run_session(fresh.clients, fresh.server, fresh.vectors, log=log)
    assert "client-3" not in result.survivors
    assert "not a Advertisement" in log.rejected["client-3"]


def test_the_server_keeps_no_masked_vector(make_federation: Any) -> None:
    length = 200_000
    federation = make_federation(n=6, vector_length=length, modulus_bits=20, bound=1000)
    inbox = federation.drive(until="mask")
    answers = {name: federation.answer(name, "mask", inbox[name]) for name in federation.names}
    tracemalloc.start()
    try:
        for name, answer in answers.items():
            federation.server.receive(name, answer)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000  # six packed vectors would be 3 MB, six unpacked ones 4.8 MB
    assert peak < 3 * 4 * length
    assert np.count_nonzero(federation.server._sum)
