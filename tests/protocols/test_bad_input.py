"""Every bad input at both machines, as one table: a typed error that names the client, where there is one, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protocols.errors import (
    LocalProtocolError,
    PolicyViolation,
    ProtocolError,
    QuantisationError,
    RemoteProtocolError,
    SessionAborted,
)
from protocols.prg import SecretStream
from protocols.quantise import Quantiser
from protocols.secagg.codec import encode
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.interface import PHASES
from protocols.secagg.local import run_session
from protocols.secagg.messages import Proposal
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import CoordinateGroup

VICTIM, OTHER = "client-1", "client-2"
LIE = b"\xff\xff\xff\xff"
SIGNATURE = "client-1: the signature for .* does not verify"
CUT = "ends too early|claimed length exceeds"

# Where a message has a length or a count: a client's, and the server's. An advertisement has neither.
LENGTHS_UP = {"share": 2 + 4 * 32, "mask": 2, "confirm": 2, "reveal": 2}
LENGTHS_DOWN = {"advertise": 2 + 32 + 8, "share": 2 + 32, "mask": 2, "confirm": 2, "reveal": 2}


def lying(message: bytes, at: int) -> bytes:
    """A message whose length field claims four gigabytes."""
    return message[:at] + LIE + message[at + 4 :]


@pytest.fixture
def stage(make_federation: Any, request: pytest.FixtureRequest) -> Any:
    """A federation where everybody is asked in a phase, the answers, and a session beside it."""
    federation, beside = make_federation(), make_federation(session_id=bytes(32))
    phase = request.param
    federation.phase = phase
    federation.inbox = federation.drive(until=phase)
    federation.snapshot = federation.clients[VICTIM].snapshot()
    federation.answers = {
        name: federation.answer(name, phase, federation.inbox[name]) for name in federation.names
    }
    beside.inbox = beside.drive(until=phase)
    federation.beside = beside
    federation.beside_answer = beside.answer(VICTIM, phase, beside.inbox[VICTIM])
    return federation


TO_THE_SERVER: dict[str, tuple[Callable[[Any], tuple[str, bytes]], str]] = {
    "a stranger": (lambda f: ("client-9", f.answers[VICTIM]), "client-9: it is not on the roster"),
    "no name": (lambda f: ("", f.answers[VICTIM]), "it is not on the roster"),
    "in another's name": (lambda f: (VICTIM, f.answers[OTHER]), "client-1: "),
    "another session": (lambda f: (VICTIM, f.beside_answer), "client-1: "),
    "truncated by a byte": (lambda f: (VICTIM, f.answers[VICTIM][:-1]), f"client-1: .*({CUT})"),
    "truncated to its header": (lambda f: (VICTIM, f.answers[VICTIM][:2]), f"client-1: .*({CUT})"),
    "empty": (lambda f: (VICTIM, b""), f"client-1: .*({CUT})"),
    "a trailing byte": (lambda f: (VICTIM, f.answers[VICTIM] + b"\0"), "client-1: 1 bytes are left over"),
    "another version": (lambda f: (VICTIM, b"\x02" + f.answers[VICTIM][1:]), "client-1: not a .* version 1"),
    "the server's own message": (lambda f: (VICTIM, f.inbox[VICTIM]), "client-1: (not a|a .* of .* bytes)"),
    "a flipped signature": (
        lambda f: (VICTIM, f.answers[VICTIM][:-1] + bytes((f.answers[VICTIM][-1] ^ 1,))),
        SIGNATURE,
    ),
}


@pytest.mark.parametrize("stage", PHASES, indirect=True)
@pytest.mark.parametrize("name", TO_THE_SERVER)
def test_the_server_names_the_client_and_the_reason(stage: Any, name: str) -> None:
    make, match = TO_THE_SERVER[name]
    sender, bad = make(stage)
    with pytest.raises(RemoteProtocolError, match=match) as caught:
        stage.server.receive(sender, bad)
    assert caught.value.client_id == sender
    assert set(stage.server.lost) == {sender} & set(stage.names)
    for other in stage.names[1:]:
        stage.server.receive(other, stage.answers[other])


@pytest.mark.parametrize("stage", PHASES, indirect=True)
def test_twice_too_late_and_no_bytes(stage: Any) -> None:
    server, phase = stage.server, stage.phase
    for wrong in ("text", None, bytearray(stage.answers[VICTIM])):
        with pytest.raises(LocalProtocolError, match="a message is bytes"):
            server.receive(VICTIM, wrong)
    server.receive(VICTIM, stage.answers[VICTIM])
    with pytest.raises(RemoteProtocolError, match=f"client-1: it already answered in phase {phase}"):
        server.receive(VICTIM, stage.answers[VICTIM])
    for name in stage.names[:4]:
        if name != VICTIM:
            server.receive(name, stage.answers[name])
    server.advance()
    if phase == "reveal":
        with pytest.raises(LocalProtocolError, match="no phase is open"):
            server.receive("client-5", stage.answers["client-5"])
    else:
        with pytest.raises(RemoteProtocolError, match=f"client-5: it was lost in phase {phase}, for good"):
            server.receive("client-5", stage.answers["client-5"])
        with pytest.raises(RemoteProtocolError, match=r"client-1: (not a|a .* of .* bytes)"):
            server.receive(VICTIM, stage.answers[VICTIM])  # the same message, one phase later


@pytest.mark.parametrize("stage", PHASES, indirect=True)
def test_a_message_of_a_later_phase_is_too_early(make_federation: Any, stage: Any) -> None:
    later = make_federation()
    for phase in PHASES[PHASES.index(stage.phase) + 1 :]:
        ahead = make_federation()
        early = ahead.answer(VICTIM, phase, ahead.drive(until=phase)[VICTIM])
        server = SecAggServer.restore(
            stage.server.snapshot(), parameters=stage.parameters, roster=stage.roster
        )
        with pytest.raises(RemoteProtocolError, match=r"client-1: (not a|a .* of .* bytes)"):
            server.receive(VICTIM, early)
    with pytest.raises(LocalProtocolError, match="no phase is open"):
        later.server.receive(VICTIM, stage.answers[VICTIM])


@pytest.mark.parametrize("stage", list(LENGTHS_UP), indirect=True)
def test_a_client_that_lies_about_a_length(stage: Any) -> None:
    with pytest.raises(
        RemoteProtocolError, match="client-1: a claimed length exceeds its limit or the message"
    ):
        stage.server.receive(VICTIM, lying(stage.answers[VICTIM], LENGTHS_UP[stage.phase]))


TO_A_CLIENT: dict[str, tuple[Callable[[Any], bytes], str]] = {
    "truncated by a byte": (lambda f: f.inbox[VICTIM][:-1], f"server: .*({CUT})"),
    "truncated to its header": (lambda f: f.inbox[VICTIM][:2], f"server: .*({CUT})"),
    "empty": (lambda f: b"", f"server: .*({CUT})"),
    "a trailing byte": (lambda f: f.inbox[VICTIM] + b"\0", "server: 1 bytes are left over"),
    "a length that lies": (
        lambda f: lying(f.inbox[VICTIM], LENGTHS_DOWN[f.phase]), "server: a claimed length exceeds"
    ),
    "another version": (lambda f: b"\x02" + f.inbox[VICTIM][1:], "server: not a .* version 1"),
    "its own answer": (lambda f: f.answers[VICTIM], "server: (not a|a .* of .* bytes)"),
}  # fmt: skip


@pytest.mark.parametrize("stage", PHASES, indirect=True)
@pytest.mark.parametrize("name", TO_A_CLIENT)
def test_a_client_names_the_server_and_the_reason(stage: Any, name: str) -> None:
    make, match = TO_A_CLIENT[name]
    stage.clients[VICTIM] = stage.restore(VICTIM, stage.snapshot, guard=MemoryGuard())
    stage.refuses(stage.phase, make(stage), match)


FOREIGN: dict[str, dict[str, str | None]] = {
    # What the server sends is one thing for all in two phases, so there nothing is another client's.
    "share": {"session": "server: the advertisement of client-1 is not in the tree", "client": None},
    "mask": {"session": None, "client": "server: the parcels are not those of this client's neighbours"},
    "confirm": {"session": "client-2: the signature", "client": "server: the mask statements are not those"},
    "reveal": {"session": "client-1: the signature", "client": None},
}


@pytest.mark.parametrize("of", ["session", "client"])
@pytest.mark.parametrize("stage", list(FOREIGN), indirect=True)
def test_a_client_refuses_what_belongs_to_another_session_or_client(stage: Any, of: str) -> None:
    message = stage.beside.inbox[VICTIM] if of == "session" else stage.inbox["client-3"]
    match = FOREIGN[stage.phase][of]
    client = stage.clients[VICTIM] = stage.restore(VICTIM, stage.snapshot, guard=MemoryGuard())
    if match is not None:
        stage.refuses(stage.phase, message, match)
    elif (
        stage.phase == "mask"
    ):  # boxes of another session do not open: it masks, and holds its own share only
        # The lowest index made all halves of its mask keys itself, so that its masks are the same.
        assert stage.answer(VICTIM, "mask", message) == stage.answers[VICTIM]
        assert [held.owner for held in client._state.held] == [0]
    else:
        assert message == stage.inbox[VICTIM]


@pytest.mark.parametrize("stage", PHASES, indirect=True)
def test_a_client_is_asked_in_order_and_once(stage: Any) -> None:
    client, inbox = stage.clients[VICTIM], stage.inbox[VICTIM]
    for phase in PHASES:  # it has answered `stage.phase` already
        if client.phase == phase:
            continue
        arguments = (stage.vectors[VICTIM],) if phase == "mask" else ()
        with pytest.raises(LocalProtocolError, match=f"client-1: it is not the turn of '{phase}'"):
            getattr(client, phase)(inbox, *arguments)
    assert client.phase == (*PHASES, "done")[PHASES.index(stage.phase) + 1]


VECTORS: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN": (lambda: np.full(7, np.nan), "must be a uint32 array of ring elements"),
    "floats": (lambda: np.zeros(7, dtype=np.float32), "must be a uint32 array"),
    "signed": (lambda: np.zeros(7, dtype=np.int32), "must be a uint32 array"),
    "64 bits": (lambda: np.zeros(7, dtype=np.uint64), "must be a uint32 array"),
    "other byte order": (
        lambda: np.zeros(7, dtype=np.dtype(np.uint32).newbyteorder()),
        "must be a uint32 array",
    ),
    "a list": (lambda: [0] * 7, "must be a uint32 array"),
    "None": (lambda: None, "must be a uint32 array"),
    "too short": (lambda: np.zeros(6, dtype=np.uint32), r"must have shape \(7,\)"),
    "empty": (lambda: np.zeros(0, dtype=np.uint32), r"must have shape \(7,\)"),
    "two dimensions": (lambda: np.zeros((7, 1), dtype=np.uint32), r"must have shape \(7,\)"),
    "beyond the bound": (lambda: np.full(7, 205, dtype=np.uint32), "beyond the session's bound"),
    "below the bound": (lambda: np.full(7, 2048 - 205, dtype=np.uint32), "beyond the session's bound"),
    "beyond the modulus": (lambda: np.full(7, 2048, dtype=np.uint32), "beyond the session's bound"),
    "outside its group": (lambda: np.ones(7, dtype=np.uint32), "must be zero in the groups"),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_wrong_vector_is_the_callers_fault_and_changes_nothing(make_federation: Any, name: str) -> None:
    make, match = VECTORS[name]
    groups = (CoordinateGroup(0, 6, (0, 1, 2, 3, 4)), CoordinateGroup(6, 7, (1, 2, 3, 4)))
    federation = make_federation(groups=groups, min_contributors=3)
    federation.vectors[VICTIM][6:] = 0
    inbox = federation.drive(until="mask")
    client = federation.clients[VICTIM]
    with pytest.raises(LocalProtocolError, match=f"client-1: .*{match}"):
        client.mask(inbox[VICTIM], make())
    assert client.phase == "mask"
    federation.server.receive(VICTIM, client.mask(inbox[VICTIM], federation.vectors[VICTIM]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_diverged_update_is_not_quantised(value: float) -> None:
    with pytest.raises(QuantisationError, match="NaN or an infinity"):
        Quantiser(1.0, 8, 5).quantise(np.array([0.0, value], dtype=np.float32), SecretStream())


def tiled(*groups: tuple[int, int, tuple[int, ...]]) -> dict[str, Any]:
    """Parameters with these groups."""
    return {"groups": tuple(CoordinateGroup(*group) for group in groups)}


ALL = (0, 1, 2, 3, 4)
PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "two quorums apart": ({"quorum": 3, "min_survivors": 3}, r"2\*quorum > n \+ max_colluders"),
    "a quorum beyond the survivors": ({"quorum": 5}, "quorum <= min_survivors <= n"),
    "more survivors than clients": ({"min_survivors": 6}, "quorum <= min_survivors <= n"),
    "nobody to hide behind": (
        {"max_colluders": 3, "quorum": 5, "min_survivors": 4, "threshold": 4}, "quorum <= min_survivors"
    ),
    "colluders are all but one": (
        {"max_colluders": 4, "quorum": 5, "min_survivors": 5, "threshold": 5}, r"min_survivors >= max_colluders \+ 2"
    ),
    "a threshold of colluders": ({"threshold": 1}, r"max_colluders < threshold <= degree \+ 1"),
    "more shares than holders": ({"threshold": 6}, r"max_colluders < threshold <= degree \+ 1"),
    "an odd ring": ({"degree": 3}, "degree n-1, or even and below"),
    "a ring larger than all": ({"degree": 6}, "degree n-1, or even and below"),
    "a ring without edges": ({"degree": 0, "threshold": 1, "max_colluders": 0}, "degree > max_colluders"),
    "dimension zero": ({"vector_length": 0}, "vector_length >= 1"),
    "half a coordinate": ({"vector_length": 2.5}, "vector_length must be a Python int from 0 .* not 2.5"),
    "a number of numpy's": ({"quorum": np.int64(4)}, r"quorum must be a Python int .* not np.int64\(4\)"),
    "a round before the first": ({"round": -1}, "round must be a Python int from 0 to .* not -1"),
    "a modulus of one bit": ({"modulus_bits": 1}, "modulus_bits 2 to 32"),
    "a modulus of 33 bits": ({"modulus_bits": 33}, "modulus_bits 2 to 32"),
    "a modulus too small for n": ({"modulus_bits": 10}, r"n\*bound < 2\^\(modulus_bits-1\), or sums overflow"),
    "a modulus just too small": ({"bound": 205, "modulus_bits": 11}, "or sums overflow"),
    "bound zero": ({"bound": 0}, "bound >= 1"),
    "a short session id": ({"session_id": bytes(31)}, "session_id and context of 32 bytes"),
    "a short context": ({"context": bytes(31)}, "session_id and context of 32 bytes"),
    "nobody": ({"roster": ()}, "2 to 65535 clients with distinct names"),
    "one client twice": ({"roster": ("client-1",) * 5}, "distinct names"),
    "a nameless client": ({"roster": ("", "b", "c", "d", "e")}, "a client_id is 1 to 64 bytes"),
    "a client called server": ({"roster": ("server", "b", "c", "d", "e")}, "no client may be called 'server'"),
    "a long name": ({"roster": ("x" * 65, "b", "c", "d", "e")}, "a client_id is 1 to 64 bytes"),
    "few contributors wanted": ({"min_contributors": 2}, r"min_contributors >= max_colluders \+ 2"),
    "groups with a gap": (tiled((0, 3, ALL), (4, 7, ALL)), "must tile the vector"),
    "groups that overlap": (tiled((0, 4, ALL), (3, 7, ALL)), "must tile the vector"),
    "groups that end early": (tiled((0, 6, ALL)), "must tile the vector"),
    "an empty group": (tiled((0, 0, ALL), (0, 7, ALL)), "must tile the vector"),
    "a group of few": (tiled((0, 7, (0, 1, 2))), "a group has fewer contributors than 4"),
    "a group out of order": (tiled((0, 7, (1, 0, 2, 3))), "increasing roster indices"),
    "a group of strangers": (tiled((0, 7, (0, 1, 2, 9))), "increasing roster indices"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_that_break_a_rule(federation: Any, name: str) -> None:
    changes, match = PARAMETERS[name]
    bad = replace(federation.parameters, **changes)
    with pytest.raises(LocalProtocolError, match=match):
        bad.validate()
    with pytest.raises(LocalProtocolError, match=match):
        SecAggServer(parameters=bad, roster=federation.roster)
    client = federation.clients[VICTIM]
    try:
        proposal = encode(Proposal(bad))
    except LocalProtocolError:
        return  # not even the codec has words for it
    with pytest.raises((PolicyViolation, RemoteProtocolError)):
        client.advertise(proposal)
    assert client.phase == "refused"


def test_clients_say_which_rule_a_proposal_breaks(federation: Any) -> None:
    bad = replace(federation.parameters, modulus_bits=10)
    with pytest.raises(PolicyViolation, match="or sums overflow"):
        federation.clients[VICTIM].advertise(encode(Proposal(bad)))


def test_an_abort_names_the_phase_the_lost_and_the_count(federation: Any) -> None:
    with pytest.raises(SessionAborted) as caught:
        run_session(
            federation.clients,
            federation.server,
            federation.vectors,
            {"client-2": "share", "client-4": "mask"},
        )
    assert caught.value.phase == "mask"
    assert caught.value.lost == ("client-2", "client-4")
    assert caught.value.reason == "only 3 of at least 4 clients masked"
    assert isinstance(caught.value, ProtocolError)
