"""What a session is said to take is what it takes, to the byte: complete graphs and rings, with losses anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from protocols.errors import LocalProtocolError
from protocols.secagg.client import SecAggClient
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.identity import Identity, Roster
from protocols.secagg.interface import PHASES, Phase
from protocols.secagg.local import SessionLog, run_session
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import ClientPolicy, SessionParameters, recommended
from protocols.secagg.sizes import longest_sizes, session_sizes


def parameters(n: int, degree: int | None, length: int, bits: int) -> SessionParameters:
    """A session of clients whose names differ in length."""
    counts = recommended(n, 1, degree)
    return SessionParameters(
        session_id=bytes(32), round=3, exchange=1, roster=tuple(f"client-{10**(i % 3)}-{i}" for i in range(n)),
        max_colluders=1, quorum=counts.quorum, threshold=3 if degree else counts.threshold,
        min_survivors=counts.min_survivors, degree=counts.degree, vector_length=length, modulus_bits=bits, bound=1,
        context=bytes(32))  # fmt: skip


def counted(
    session: SessionParameters, dropouts: dict[str, Phase], attachment: bytes
) -> tuple[SessionLog, bytes]:
    """What a real session sends, and its T1."""
    identities = {name: Identity.generate() for name in session.roster}
    roster = Roster({name: identity.public_bytes for name, identity in identities.items()})
    policy = ClientPolicy(max_colluders=1, exact_round=(3, 1), exact_form=session.form)
    clients = {
        name: SecAggClient(client_id=name, identity=identities[name], roster=roster, policy=policy,
                           guard=MemoryGuard(), context=bytes(32))
        for name in session.roster
    }  # fmt: skip
    vectors = dict.fromkeys(session.roster, np.zeros(session.vector_length, dtype=np.uint32))
    log, attachments = SessionLog(), dict.fromkeys(session.roster, attachment)
    server = SecAggServer(parameters=session, roster=roster)
    result = run_session(clients, server, vectors, dropouts, attachments=attachments, log=log)
    return log, result.transcript


def answering(session: SessionParameters, dropouts: dict[str, Phase]) -> dict[Phase, set[str]]:
    """Who answers in each phase."""
    return {
        phase: {name for name in session.roster if PHASES.index(dropouts.get(name, "reveal")) > at
                or name not in dropouts}
        for at, phase in enumerate(PHASES)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("n", "degree", "lost"),
    [
        (5, None, {}),
        (7, None, {0: "advertise"}),
        (8, None, {0: "share", 7: "mask"}),
        (9, None, {0: "advertise", 3: "share", 8: "confirm"}),
        (7, None, {6: "reveal"}),
        (12, 6, {}),
        (12, 6, {4: "mask"}),
    ],
)
def test_every_message_has_the_length_it_is_said_to_have(
    n: int, degree: int | None, lost: dict[int, Phase]
) -> None:
    session = parameters(n, degree, length=1001, bits=11)
    dropouts = {session.roster[index]: phase for index, phase in lost.items()}
    log, t1 = counted(session, dropouts, b"anchor")
    sizes = session_sizes(session, answered=answering(session, dropouts), t1=t1, attachment_bytes=6)
    sent = {key: size for key, size in sizes.items() if key[::2] not in dropouts.items()}
    assert sent == dict(log.traffic)  # which does not count the request that found a client gone
    assert all(sizes[client_id, "down", phase] > 0 for client_id, phase in dropouts.items())


def test_totals_on_a_ring_do_not_depend_on_its_order() -> None:
    session = parameters(12, 6, length=10, bits=5)
    totals = {sum(session_sizes(session, t1=bytes([i]) * 32).values()) for i in range(5)}
    assert len(totals) == 1


def test_no_order_of_a_ring_makes_a_message_longer_and_some_order_makes_each_so_long() -> None:
    session = parameters(7, 4, length=10, bits=5)
    drawn = [session_sizes(session, t1=bytes([i, j]) * 16) for i in range(20) for j in range(20)]
    longest = longest_sizes(session)
    assert {key: max(sizes[key] for sizes in drawn) for key in longest} == longest
    assert sum(longest.values()) > sum(drawn[0].values()), "not all at once"
    complete = parameters(7, None, length=10, bits=5)
    assert longest_sizes(complete, attachment_bytes=3) == session_sizes(complete, attachment_bytes=3)


def test_who_was_lost_cannot_answer() -> None:
    session = parameters(5, None, length=10, bits=5)
    everybody = set(session.roster)
    with pytest.raises(LocalProtocolError, match="lost before"):
        session_sizes(
            session,
            answered={**dict.fromkeys(PHASES, everybody), "advertise": everybody - {session.roster[0]}},
        )
    with pytest.raises(LocalProtocolError, match="not on the roster"):
        session_sizes(session, answered={phase: {"mallory"} for phase in PHASES})
