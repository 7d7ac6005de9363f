"""A recorded session (vectors/session.json) is replayed at both machines; its bad variants are refused as stated.

An edit of a bad variant: ``flip`` the lowest bit of a byte, ``cut`` bytes off the end, ``append`` bytes, send the
answer of another phase ``instead``, or ``replace`` the whole message.
"""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.errors import PolicyViolation, RemoteProtocolError
from protocols.secagg.client import SecAggClient
from protocols.secagg.codec import decode
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.messages import Proposal
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy

FOLDER = Path(__file__).parent / "vectors"
SESSION = json.loads((FOLDER / "session.json").read_text(encoding="utf-8"))
BAD = json.loads((FOLDER / "session_bad.json").read_text(encoding="utf-8"))
STEPS = {step["phase"]: step for step in SESSION["steps"]}
IDENTITIES = {
    name: Identity.from_private_bytes(bytes.fromhex(key)) for name, key in SESSION["private_keys"].items()
}
ROSTER = Roster({name: identity.public_bytes for name, identity in IDENTITIES.items()})


def message(phase: str, way: str, name: str) -> bytes:
    """A recorded message."""
    return b64decode(STEPS[phase][way][name])


def client_before(phase: str, name: str) -> SecAggClient:
    """A client as it was before a phase."""
    return SecAggClient.restore(
        message(phase, "snapshots", name),
        client_id=name,
        identity=IDENTITIES[name],
        roster=ROSTER,
        policy=ClientPolicy(max_colluders=0, min_survivors=2, min_quorum=2, min_contributors=2),
        guard=MemoryGuard(),
        context=bytes.fromhex(SESSION["context"]),
    )


def answer(client: SecAggClient, phase: str, name: str, request: bytes) -> bytes:
    """What a client answers."""
    if phase == "mask":
        return client.mask(request, np.array(SESSION["vectors"][name], dtype=np.uint32))
    return bytes(getattr(client, phase)(request))


def server_before(phase: str) -> SecAggServer:
    """A server that was given the recorded answers of all earlier phases, and asks as recorded."""
    parameters = decode(Proposal, message("advertise", "requests", "client-1"), "test").parameters
    server = SecAggServer(parameters=parameters, roster=ROSTER)
    inbox = server.start()
    for step in SESSION["steps"]:
        for name, request in step["requests"].items():
            assert inbox[name] == b64decode(request)
        if step["phase"] == phase:
            break
        for name, recorded in step["answers"].items():
            server.receive(name, b64decode(recorded))
        inbox = server.advance()
    return server


def test_the_server_gives_the_recorded_messages_and_sum() -> None:
    server = server_before("done")
    result = server.result()
    assert result.sum.tolist() == SESSION["sum"]
    assert list(result.survivors) == SESSION["survivors"] == ["client-1", "client-3"]
    assert result.transcript.hex() == SESSION["transcript"]
    clear = [sum(SESSION["vectors"][name][k] for name in result.survivors) % 2**11 for k in range(4)]
    assert SESSION["sum"] == clear


@pytest.mark.parametrize("phase", ["mask", "confirm", "reveal"])
def test_the_clients_give_the_recorded_answers(phase: str) -> None:
    for name, request in STEPS[phase]["requests"].items():
        given = answer(client_before(phase, name), phase, name, b64decode(request))
        assert given == message(phase, "answers", name)


def edited(case: dict[str, Any], way: str) -> bytes:
    """The recorded message of client-1 in a phase, made bad."""
    if "instead" in case:
        return message(case["instead"], way, "client-1")
    if "replace" in case:
        return bytes.fromhex(case["replace"])
    data = bytearray(message(case["phase"], way, "client-1"))
    if "flip" in case:
        data[case["flip"]] ^= 1
    if "cut" in case:
        del data[-case["cut"] :]
    return bytes(data) + bytes.fromhex(case.get("append", ""))


@pytest.mark.parametrize("case", BAD, ids=[case["name"].replace(" ", "-") for case in BAD])
def test_bad_variants_are_refused_as_stated(case: dict[str, Any]) -> None:
    phase = case["phase"]
    if case["to"] == "server":
        bad = edited(case, "answers")
        with pytest.raises(RemoteProtocolError) as refused:
            server_before(phase).receive("client-1", bad)
    else:
        bad = edited(case, "requests")
        with pytest.raises((RemoteProtocolError, PolicyViolation)) as refused:
            answer(client_before(phase, "client-1"), phase, "client-1", bad)
    assert case["error"] in str(refused.value)
