"""Any bytes in any phase: a message or a typed error, at both machines, and the others are not affected."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from protocols.errors import ProtocolError, RemoteProtocolError
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.local import PHASES

MUTATIONS_PER_PHASE = 150


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, extend, splice or replace."""
    match rng.randrange(7):
        case 0:
            position = rng.randrange(len(data))
            return data[:position] + bytes([data[position] ^ (1 << rng.randrange(8))]) + data[position + 1 :]
        case 1:
            return data[: rng.randrange(len(data))]
        case 2:
            return data + rng.randbytes(rng.randrange(1, 40))
        case 3:
            cut, other = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
            return data[:cut] + data[other:]
        case 4:
            return data[:2] + rng.randbytes(rng.randrange(200))
        case 5:  # a length or count field somewhere near the start
            position = rng.randrange(2, min(len(data), 60))
            return data[:position] + rng.randbytes(4) + data[position + 4 :]
        case _:
            return rng.randbytes(rng.randrange(100))


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_answers_or_raises(make_federation: Any, phase: str) -> None:
    federation = make_federation()
    message = federation.drive(until=phase)["client-1"]
    snapshot = federation.clients["client-1"].snapshot()
    rng = random.Random(phase)
    honest = federation.answer("client-1", phase, message)
    errors = 0
    for _ in range(MUTATIONS_PER_PHASE):
        bad = mutated(message, rng)
        client = federation.restore("client-1", snapshot, guard=MemoryGuard())
        federation.clients["client-1"] = client
        try:
            answer = federation.answer("client-1", phase, bad)
        except ProtocolError:
            errors += 1
            assert client.phase == "refused"
        else:
            # Another round may be proposed, and a box may not open: that changes no mask of this client. Nothing
            # else passes.
            assert phase == "advertise" or answer == honest
    assert errors > MUTATIONS_PER_PHASE / 2


@pytest.mark.parametrize("phase", PHASES)
def test_the_server_accepts_or_names_the_client(make_federation: Any, phase: str) -> None:
    federation = make_federation()
    inbox = federation.drive(until=phase)
    answer = federation.answer("client-1", phase, inbox["client-1"])
    rng = random.Random(phase)
    for _ in range(MUTATIONS_PER_PHASE):
        bad = mutated(answer, rng)
        if bad == answer:
            continue
        with pytest.raises(RemoteProtocolError) as caught:
            federation.server.receive("client-1", bad)
        assert caught.value.client_id == "client-1"
        # White-box: take the loss back, so that one session serves every mutation.
        del federation.server._state.lost[0]
    with pytest.raises(RemoteProtocolError):
        federation.server.receive("client-1", bad + b"\0")
    finish_without_first(federation, phase, inbox)


def finish_without_first(federation: Any, phase: str, inbox: dict[str, bytes]) -> None:
    """The others complete the session as if nothing had happened."""
    for step in PHASES[PHASES.index(phase) :]:
        for name in [name for name in inbox if name != "client-1"]:
            federation.server.receive(name, federation.answer(name, step, inbox[name]))
        inbox = federation.server.advance()
    result = federation.server.result()
    np.testing.assert_array_equal(result.sum, federation.plain_sum(result.survivors))


@pytest.mark.parametrize(("phase", "source"), list(itertools.permutations(PHASES, 2)))
def test_messages_of_another_phase_are_refused(make_federation: Any, phase: str, source: str) -> None:
    federation, other = make_federation(), make_federation()
    federation.drive(until=phase)
    message = other.drive(until=source)["client-1"]
    with pytest.raises(ProtocolError):
        federation.answer("client-1", phase, message)
    with pytest.raises(RemoteProtocolError):
        federation.server.receive("client-1", other.answer("client-1", source, message))


@pytest.mark.parametrize("phase", PHASES)
def test_messages_of_another_session_are_refused(make_federation: Any, phase: str) -> None:
    federation, other = make_federation(), make_federation(session_id=bytes(32))
    federation.drive(until=phase)
    replayed = other.answer("client-1", phase, other.drive(until=phase)["client-1"])
    with pytest.raises(RemoteProtocolError, match="client-1"):
        federation.server.receive("client-1", replayed)
