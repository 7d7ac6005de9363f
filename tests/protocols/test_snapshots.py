"""Clients that are stored and restored between any two phases give the same sum; damaged snapshots give errors."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.errors import LocalProtocolError
from protocols.secagg.guard import SqliteGuard
from protocols.secagg.interface import PHASES


def test_a_restart_before_every_phase(make_federation: Any, tmp_path: Path) -> None:
    federation = make_federation()
    for name in federation.names:
        federation.guards[name] = SqliteGuard(tmp_path / f"{name}.db")
        federation.clients[name] = federation.client(name)
    inbox = federation.server.start()
    for phase in PHASES:
        for name in inbox:
            federation.clients[name] = federation.restore(name, federation.clients[name].snapshot())
            federation.server.receive(name, federation.answer(name, phase, inbox[name]))
        inbox = federation.server.advance()
    np.testing.assert_array_equal(federation.server.result().sum, federation.plain_sum(federation.names))
    done = federation.restore("client-1", federation.clients["client-1"].snapshot())
    assert done.phase == "done"
    assert done.survivors == federation.names


@pytest.mark.parametrize("phase", [*PHASES, "done"])
def test_a_snapshot_restores_the_phase_and_snapshots_alike(make_federation: Any, phase: str) -> None:
    federation = make_federation()
    federation.drive(until=phase)
    snapshot = federation.clients["client-2"].snapshot()
    restored = federation.restore("client-2", snapshot)
    assert restored.phase == phase
    assert restored.snapshot() == snapshot


def test_later_snapshots_forget_what_made_the_masks(federation: Any) -> None:
    inbox = federation.drive(until="mask")
    client = federation.clients["client-1"]
    state = client._state
    secrets = [state.seed, state.master, state.box_secret, *(edge.shared_secret for edge in state.edges)]
    assert all(secret in client.snapshot() for secret in secrets)
    federation.answer("client-1", "mask", inbox["client-1"])
    assert not any(secret in client.snapshot() for secret in secrets)


def test_snapshots_belong_to_one_client_and_context(federation: Any) -> None:
    federation.drive(until="mask")
    snapshot = federation.clients["client-1"].snapshot()
    with pytest.raises(LocalProtocolError, match="another client"):
        federation.restore("client-2", snapshot)
    with pytest.raises(LocalProtocolError, match="another context"):
        federation.restore("client-1", snapshot, context=bytes(32))


@pytest.mark.parametrize("phase", [*PHASES, "done"])
def test_damaged_snapshots_give_an_error(make_federation: Any, phase: str) -> None:
    federation = make_federation()
    federation.drive(until=phase)
    snapshot = federation.clients["client-1"].snapshot()
    rng = random.Random(phase)
    sizes = [rng.randrange(len(snapshot)) for _ in range(100)]
    for size in sizes:
        with pytest.raises(LocalProtocolError):
            federation.restore("client-1", snapshot[:size])
    with pytest.raises(LocalProtocolError):
        federation.restore("client-1", snapshot + b"\0")
    for position in [*range(min(60, len(snapshot))), *sizes]:
        flipped = snapshot[:position] + bytes([snapshot[position] ^ 0x10]) + snapshot[position + 1 :]
        with pytest.raises(LocalProtocolError, match="snapshot"):
            federation.restore("client-1", flipped)
