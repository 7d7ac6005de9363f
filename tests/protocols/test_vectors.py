"""Recorded sessions (vectors/session*.json) are replayed at both machines; bad messages are refused as stated."""

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
POLICY = ClientPolicy(
    max_colluders=0, min_survivors=2, min_quorum=2, min_contributors=2, exact_round=None, exact_form=None
)
NAMES = ("session", "session_setup", "session_masks", "session_late", "session_ring")
BAD = json.loads((FOLDER / "session_bad.json").read_text(encoding="utf-8"))


class Replay:
    """A recorded session, at our machines."""

    def __init__(self, name: str) -> None:
        self.recorded = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        self.steps = {step["phase"]: step for step in self.recorded["steps"]}
        public_keys = {name: bytes.fromhex(key) for name, key in self.recorded["public_keys"].items()}
        self.roster = Roster(public_keys)

    def message(self, phase: str, way: str, name: str) -> bytes:
        """A recorded message."""
        return b64decode(self.steps[phase][way][name])

    def client_before(self, phase: str) -> SecAggClient:
        """client-1 as it was before a phase."""
        return SecAggClient.restore(
            b64decode(self.steps[phase]["snapshot_of_client_1"]),
            client_id="client-1",
            identity=Identity.from_private_bytes(bytes.fromhex(self.recorded["private_keys"]["client-1"])),
            roster=self.roster,
            policy=POLICY,
            guard=MemoryGuard(),
            context=bytes.fromhex(self.recorded["context"]),
        )

    def answer(self, phase: str, request: bytes) -> bytes:
        """What client-1 answers."""
        client = self.client_before(phase)
        if phase == "mask":
            return client.mask(request, np.array(self.recorded["vectors"]["client-1"], dtype=np.uint32))
        if phase == "confirm":
            return client.confirm(request, bytes.fromhex(self.recorded["attachments"].get("client-1", "")))
        return bytes(getattr(client, phase)(request))

    def server_before(self, phase: str) -> SecAggServer:
        """A server that was given the recorded answers of all earlier phases, and asks as recorded."""
        proposal = decode(Proposal, self.message("advertise", "requests", "client-1"), "test")
        server = SecAggServer(parameters=proposal.parameters, roster=self.roster)
        inbox = server.start()
        for step in self.recorded["steps"]:
            for name, request in step["requests"].items():
                assert inbox[name] == b64decode(request)
            if step["phase"] == phase:
                break
            for name, recorded in step["answers"].items():
                server.receive(name, b64decode(recorded))
            inbox = server.advance()
        return server


@pytest.mark.parametrize("name", NAMES)
def test_the_server_gives_the_recorded_messages_and_sum(name: str) -> None:
    replay = Replay(name)
    result = replay.server_before("done").result()
    assert result.sum.tolist() == replay.recorded["sum"]
    assert list(result.survivors) == replay.recorded["survivors"]
    assert result.transcript.hex() == replay.recorded["t1"]
    assert dict(result.lost) == replay.recorded["lost"]


def test_clients_are_lost_in_every_phase() -> None:
    lost = {phase for name in NAMES for phase in Replay(name).recorded["lost"].values()}
    assert lost == {"advertise", "share", "mask", "confirm", "reveal"}
    assert Replay("session_masks").recorded["lost"] == {"client-1": "mask", "client-5": "mask"}


@pytest.mark.parametrize("phase", ["mask", "confirm", "reveal"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "session_masks"])
def test_client_1_gives_the_recorded_answers(name: str, phase: str) -> None:
    replay = Replay(name)
    given = replay.answer(phase, replay.message(phase, "requests", "client-1"))
    assert given == replay.message(phase, "answers", "client-1")


WAYS = {"server": "answers", "client-1": "requests"}


def edited(good: bytes, case: dict[str, Any]) -> bytes:
    """The recorded message, made bad."""
    bad = good[: case["start"]] + bytes.fromhex(case["insert"]) + good[case["stop"] :]
    return bad[:-64] + bytes.fromhex(case["signature"]) if "signature" in case else bad


@pytest.mark.parametrize("case", BAD, ids=[case["name"].replace(" ", "-") for case in BAD])
def test_bad_messages_are_refused_as_stated(case: dict[str, Any]) -> None:
    replay = Replay(case["session"])
    bad = edited(replay.message(case["phase"], WAYS[case["to"]], "client-1"), case)
    if case["to"] == "server":
        with pytest.raises(RemoteProtocolError) as refused:
            replay.server_before(case["phase"]).receive("client-1", bad)
        assert refused.value.client_id == "client-1"
    else:
        with pytest.raises((RemoteProtocolError, PolicyViolation)) as refused:
            replay.answer(case["phase"], bad)
    assert case["error"] in str(refused.value)


def test_there_are_bad_cases_for_both_machines_in_every_phase() -> None:
    covered = {(case["to"], case["phase"]) for case in BAD}
    phases = ("advertise", "share", "mask", "confirm", "reveal")
    assert covered == {(to, phase) for to in ("server", "client-1") for phase in phases}
    assert len({case["name"] for case in BAD}) == len(BAD)
