"""Any bytes in any phase: a message or a typed error, at both machines, and the others are not affected."""

from __future__ import annotations

import itertools
import random
import runpy
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.errors import ProtocolError, RemoteProtocolError
from protocols.secagg.codec import encode
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Roster
from protocols.secagg.interface import PHASES
from protocols.secagg.limits import longest
from protocols.secagg.messages import (
    Advertisement,
    Advertisements,
    Confirmation,
    Confirmations,
    MaskedVector,
    Proposal,
    Reveal,
    SharesIn,
    SharesOut,
    Survivors,
)
from protocols.secagg.session import CoordinateGroup

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


CASES_IN_CI = 4_000


@pytest.mark.long
def test_the_fuzzer_finds_nothing(make_federation: Any) -> None:
    # The same as `python tests/protocols/fuzz.py --cases 4000 --seed 7`; docs/fuzzing.md says what was run before.
    fuzz = runpy.run_path(str(Path(__file__).with_name("fuzz.py")))
    fuzzer = fuzz["Fuzzer"](make_federation, seed=7)
    fuzzer.run(CASES_IN_CI)
    seen = fuzzer.outcomes
    for phase in PHASES:
        assert seen[f"client, {phase}: RemoteProtocolError"] > 50
        assert seen[f"server, {phase}: RemoteProtocolError"] > 50
        assert seen[f"server, {phase}: taken"] > 0
    assert seen["client, advertise: PolicyViolation"] > 50
    assert fuzzer.weighed > 0


def test_the_fuzzer_would_notice(make_federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz = runpy.run_path(str(Path(__file__).with_name("fuzz.py")))
    monkeypatch.setattr(Roster, "verify", lambda *arguments: None)
    with pytest.raises(fuzz["Finding"]):
        fuzz["Fuzzer"](make_federation, seed=7).run(2_000)


def dense_proposal(federation: Any, size: int) -> bytes:
    """The proposal of that many bytes that unfolds into the most objects: roster indices of two bytes each."""
    crowd = tuple(1000 + i % 60_000 for i in range(size // 2 - 300))
    return encode(Proposal(replace(federation.parameters, groups=(CoordinateGroup(0, 7, crowd),))))


def peak_of(refused: Callable[[], object]) -> int:
    """The peak of what a call allocates before it raises."""
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            refused()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_densest_proposal_costs_what_the_policy_allows(federation: Any) -> None:
    limit = 2**17
    policy = replace(federation.policy, max_proposal_bytes=limit)
    client, other = (federation.client(name, policy=policy) for name in ("client-1", "client-2"))
    within = dense_proposal(federation, limit)
    assert 0.99 * limit < len(within) <= limit
    peak = peak_of(lambda: client.advertise(within))
    assert peak < 40 * limit  # a roster index of two bytes becomes an object of 28 and pointers to it
    beyond = within + bytes(10 * limit)
    assert peak_of(lambda: other.advertise(beyond)) < 10_000
    assert (client.phase, other.phase) == ("refused", "refused")


@pytest.mark.parametrize("phase", PHASES[1:])
def test_messages_beyond_the_limit_are_not_read(federation: Any, phase: str) -> None:
    inbox = federation.drive(until=phase)
    good = federation.answer("client-2", phase, inbox["client-2"])
    huge = 2 * max(len(inbox["client-1"]), len(good)) + 100_000
    client, server = federation.clients["client-1"], federation.server
    to_client, to_server = inbox["client-1"] + bytes(huge), good + bytes(huge)
    assert peak_of(lambda: federation.answer("client-1", phase, to_client)) < 20_000
    assert client.phase == "refused"
    assert peak_of(lambda: server.receive("client-2", to_server)) < 20_000


@pytest.mark.parametrize("shape", [{"n": 5}, {"n": 9, "degree": 6}, {"n": 2, "max_colluders": 0}])
def test_the_longest_messages_are_as_long_as_computed(make_federation: Any, shape: dict[str, Any]) -> None:
    federation = make_federation(**shape)
    inbox = federation.server.start()
    kinds = {
        "advertise": (None, Advertisement),
        "share": (Advertisements, SharesOut),
        "mask": (SharesIn, MaskedVector),
        "confirm": (Survivors, Confirmation),
        "reveal": (Confirmations, Reveal),
    }
    for phase, (asked, answered) in kinds.items():
        sizes = []
        for name in federation.names:
            attached = (bytes(1024),) if phase == "confirm" else ()
            given = (federation.vectors[name],) if phase == "mask" else attached
            answer = getattr(federation.clients[name], phase)(inbox[name], *given)
            sizes.append(len(answer))
            federation.server.receive(name, answer)
        assert max(sizes) == longest(answered, federation.parameters)
        if asked is not None and asked is not SharesIn and asked is not Confirmations:
            assert max(map(len, inbox.values())) == longest(asked, federation.parameters)
        elif (
            asked is not None
        ):  # a client with none but lower neighbours, and a quorum of everybody, are rare
            assert max(map(len, inbox.values())) <= longest(asked, federation.parameters)
        inbox = federation.server.advance()
