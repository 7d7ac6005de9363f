"""A server that is stored and restored at any moment goes on as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.errors import LocalProtocolError, RemoteProtocolError, SessionAborted
from protocols.secagg.codec import decode, encode
from protocols.secagg.interface import PHASES
from protocols.secagg.server import SecAggServer
from protocols.secagg.server_state import SavedServer


def restored(federation: Any, snapshot: bytes) -> SecAggServer:
    """The server that a snapshot was taken of."""
    return SecAggServer.restore(snapshot, parameters=federation.parameters, roster=federation.roster)


def restart(federation: Any) -> None:
    """Replace the server by a restored one, which snapshots alike."""
    before = federation.server
    federation.server = restored(federation, before.snapshot())
    assert federation.server is not before
    assert (federation.server.phase, federation.server.lost) == (before.phase, before.lost)
    assert federation.server.snapshot() == before.snapshot()


@pytest.mark.parametrize("degree", [None, 6])
def test_a_restart_before_every_message(make_federation: Any, degree: int | None) -> None:
    federation = make_federation(n=9, max_colluders=1, degree=degree)
    lost = {"client-5": "mask", "client-9": "reveal"}  # on the ring, each client can afford two neighbours
    restart(federation)
    inbox = federation.server.start()
    for phase in PHASES:
        for name in [name for name in inbox if lost.get(name) != phase]:
            restart(federation)
            federation.server.receive(name, federation.answer(name, phase, inbox[name]))
        restart(federation)
        inbox = federation.server.advance()
        restart(federation)
    result = federation.server.result()
    assert dict(result.lost) == lost
    assert result.survivors == tuple(name for name in federation.names if name != "client-5")
    np.testing.assert_array_equal(result.sum, federation.plain_sum(result.survivors))


@pytest.mark.parametrize("phase", PHASES)
def test_closing_a_phase_again_gives_the_same_messages(make_federation: Any, phase: str) -> None:
    # A server that dies between `advance` and its network is restored from before, and says the same again.
    federation = make_federation()
    inbox = federation.drive(until=phase)
    for name in federation.names[:4]:
        federation.server.receive(name, federation.answer(name, phase, inbox[name]))
    snapshot = federation.server.snapshot()
    again = restored(federation, snapshot)
    assert again.advance() == federation.server.advance()
    assert again.snapshot() == federation.server.snapshot()


@pytest.mark.parametrize("phase", PHASES)
def test_a_restored_server_keeps_its_refusals(make_federation: Any, phase: str) -> None:
    federation = make_federation()
    inbox = federation.drive(until=phase)
    good = federation.answer("client-1", phase, inbox["client-1"])
    federation.server.receive("client-1", good)
    with pytest.raises(RemoteProtocolError):
        federation.server.receive("client-2", b"nonsense")
    server = restored(federation, federation.server.snapshot())
    with pytest.raises(RemoteProtocolError, match="client-1: it already answered"):
        server.receive("client-1", good)
    with pytest.raises(RemoteProtocolError, match=f"client-2: it was lost in phase {phase}, for good"):
        server.receive("client-2", federation.answer("client-2", phase, inbox["client-2"]))


@pytest.mark.parametrize("phase", PHASES)
def test_an_aborted_server_stays_aborted(make_federation: Any, phase: str) -> None:
    federation = make_federation()
    federation.drive(until=phase)
    with pytest.raises(SessionAborted):
        federation.server.advance()
    server = restored(federation, federation.server.snapshot())
    assert server.phase == "aborted"
    assert set(server.lost.values()) == {phase}
    for misuse in (server.advance, server.result, server.start):
        with pytest.raises(LocalProtocolError):
            misuse()


def test_a_finished_server_still_has_its_result(federation: Any) -> None:
    federation.drive()
    first, again = federation.server.result(), restored(federation, federation.server.snapshot()).result()
    np.testing.assert_array_equal(first.sum, again.sum)
    assert (first.survivors, first.transcript, first.lost) == (again.survivors, again.transcript, again.lost)
    assert first.attachments == again.attachments


@pytest.mark.parametrize("phase", ["propose", *PHASES, "done"])
def test_damage_is_found(make_federation: Any, phase: str) -> None:
    federation = make_federation()
    if phase != "propose":
        federation.drive(until=phase)
    snapshot = federation.server.snapshot()
    rng = random.Random(phase)
    positions = [*range(min(80, len(snapshot))), *(rng.randrange(len(snapshot)) for _ in range(100))]
    for position in positions:
        flipped = snapshot[:position] + bytes([snapshot[position] ^ 0x10]) + snapshot[position + 1 :]
        for bad in (flipped, snapshot[:position], snapshot + snapshot[: position + 1]):
            with pytest.raises(LocalProtocolError, match="snapshot"):
                restored(federation, bad)


def test_foreign_snapshots_are_refused(make_federation: Any) -> None:
    federation, other = make_federation(), make_federation(session_id=bytes(32))
    with pytest.raises(LocalProtocolError, match="belongs to another session"):
        restored(federation, other.server.snapshot())
    with pytest.raises(LocalProtocolError, match="belongs to another session, or to a client"):
        restored(federation, federation.clients["client-1"].snapshot())
    with pytest.raises(LocalProtocolError, match="belongs to another client"):
        federation.restore("client-1", federation.server.snapshot())


def test_a_snapshot_from_disk(federation: Any, tmp_path: Path) -> None:
    inbox = federation.drive(until="mask")
    (tmp_path / "server").write_bytes(federation.server.snapshot())
    federation.server = restored(federation, (tmp_path / "server").read_bytes())
    for phase in PHASES[2:]:
        for name in federation.names:
            federation.server.receive(name, federation.answer(name, phase, inbox[name]))
        inbox = federation.server.advance()
    np.testing.assert_array_equal(federation.server.result().sum, federation.plain_sum(federation.names))


def test_nothing_is_kept_longer_than_needed(federation: Any) -> None:
    sizes, inbox = {}, federation.server.start()
    for phase in PHASES:
        for name in federation.names:
            federation.server.receive(name, federation.answer(name, phase, inbox[name]))
        state = federation.server._state
        sizes[phase] = (len(state.parcels), len(state.revealed))
        inbox = federation.server.advance()
    assert sizes == {
        "advertise": (0, 0), "share": (5, 0), "mask": (0, 0), "confirm": (0, 0), "reveal": (0, 5)
    }  # fmt: skip
    assert (federation.server._state.parcels, federation.server._state.revealed) == ({}, {})


def test_the_state_is_its_own_encoding(federation: Any) -> None:
    federation.drive(until="reveal")
    saved = SavedServer(federation.server._state, b"")
    assert encode(decode(SavedServer, encode(saved), "test")) == encode(saved)
