"""Whatever the counts, the graph, the vectors, the losses, the crashes: the exact sum of the survivors, or an abort."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from protocols.errors import GuardViolation, LocalProtocolError, RemoteProtocolError, SessionAborted
from protocols.secagg.graph import MaskGraph
from protocols.secagg.interface import PHASES
from protocols.secagg.server import SecAggServer
from protocols.secagg.session import recommended

MAX_CLIENTS = 9
FAIR_REFUSALS = (
    "server: too few neighbours advertised",
    "server: U2 has too few neighbours",
    "server: U3 leaves two windows",
)


@dataclass
class Plan:
    """A session and its accidents. Accidents are (phase, index of the client); the server's are at that answer."""

    shape: dict[str, Any]
    order: list[int]
    lost: dict[int, str] = field(default_factory=dict)  # silent from that phase on
    restarts: set[tuple[str, int]] = field(default_factory=set)  # stored and restored before it answers
    rollbacks: set[tuple[str, int]] = field(
        default_factory=set
    )  # restored from before its answer, asked again
    server_restarts: set[tuple[str, int]] = field(default_factory=set)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any safe parameters and any accidents."""
    n = draw(st.integers(2, MAX_CLIENTS))
    colluders = draw(st.integers(0, max(0, (n - 2) // 2)))
    counts = recommended(n, colluders)
    min_survivors = draw(st.integers(counts.min_survivors, n))
    quorum = draw(st.integers(counts.quorum, min_survivors))
    degree = draw(st.sampled_from([n - 1] + [k for k in range(2, n - 1, 2) if k > colluders]))
    threshold = draw(st.integers(colluders + 1, degree + 1))
    bits = draw(st.integers((2 * n).bit_length() + 1, 32))
    shape = {
        "n": n, "max_colluders": colluders, "min_survivors": min_survivors, "quorum": quorum, "degree": None,
        "threshold": threshold, "modulus_bits": bits, "bound": draw(st.integers(1, (2 ** (bits - 1) - 1) // n)),
        "vector_length": draw(st.sampled_from([1, 2, 7, 33, 500])),
    }  # fmt: skip
    if degree < n - 1:
        shape["degree"] = degree
    accident = st.sets(st.tuples(st.sampled_from(PHASES), st.integers(0, n - 1)), max_size=4)
    return Plan(
        shape,
        draw(st.permutations(range(n))),
        draw(st.dictionaries(st.integers(0, n - 1), st.sampled_from(PHASES), max_size=max(1, n // 3))),
        draw(accident),
        draw(accident),
        draw(accident),
    )


def ask(federation: Any, plan: Plan, phase: str, index: int, message: bytes) -> bytes:
    """Return a client's answer, through its crashes."""
    name = federation.names[index]
    if (phase, index) in plan.restarts:
        federation.clients[name] = federation.restore(name, federation.clients[name].snapshot())
    before = federation.clients[name].snapshot()
    answer = bytes(federation.answer(name, phase, message))
    if (phase, index) in plan.rollbacks:
        federation.clients[name] = federation.restore(name, before)
        try:
            assert federation.answer(name, phase, message) == answer
        except GuardViolation:  # it would have said something else, and so it is out
            assert federation.clients[name].phase == "refused"
            assert phase in ("advertise", "share")  # only there is chance in an answer, or a session begun
    return answer


def run(federation: Any, plan: Plan) -> dict[int, str]:
    """Run the session to its end; return who was lost in which phase. Nobody honest is ever blamed."""
    lost: dict[int, str] = {}
    refusals: list[str] = []
    inbox = federation.server.start()
    for phase in PHASES:
        for index in plan.order:
            name = federation.names[index]
            if (phase, index) in plan.server_restarts:
                snapshot = federation.server.snapshot()
                federation.server = SecAggServer.restore(
                    snapshot, parameters=federation.parameters, roster=federation.roster
                )
            if name not in inbox:
                continue
            if plan.lost.get(index) == phase or federation.clients[name].phase == "refused":
                lost[index] = phase
                continue
            try:
                answer = ask(federation, plan, phase, index, inbox[name])
            except RemoteProtocolError as error:
                refusals.append(str(error))
                lost[index] = phase
                continue
            federation.server.receive(name, answer)
        # An honest server is only refused where too few are left for the masks of one client.
        assert not [reason for reason in refusals if not reason.startswith(FAIR_REFUSALS)]
        assert not refusals or plan.shape["degree"] or plan.shape["threshold"] > plan.shape["quorum"]
        inbox = federation.server.advance()
    return lost


@pytest.mark.long
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plans())
def test_the_exact_sum_or_an_abort(make_federation: Any, plan: Plan) -> None:
    federation = make_federation(**plan.shape)
    try:
        lost = run(federation, plan)
    except SessionAborted as aborted:
        event(f"aborted in {aborted.phase}")
        with pytest.raises(LocalProtocolError):
            federation.server.result()
        if plan.shape["degree"] is None:
            phases = {federation.names.index(name): phase for name, phase in federation.server.lost.items()}
            assert too_few(plan, phases)
        return
    result = federation.server.result()
    event("the sum")
    summed = [
        name for i, name in enumerate(federation.names) if lost.get(i) not in ("advertise", "share", "mask")
    ]
    assert list(result.survivors) == summed
    assert dict(result.lost) == {federation.names[index]: phase for index, phase in lost.items()}
    np.testing.assert_array_equal(result.sum, federation.plain_sum(summed))
    if plan.shape["degree"] is None:
        assert not too_few(plan, lost)


def too_few(plan: Plan, lost: dict[int, str]) -> bool:
    """Whether a session with a complete graph must abort, from counts alone."""
    shape = plan.shape
    left = {}
    present = shape["n"]
    for phase in PHASES:
        present -= sum(when == phase for when in lost.values())
        left[phase] = present
    least = max(shape["quorum"], shape["min_survivors"])
    return left["mask"] < least or left["confirm"] < shape["quorum"] or left["reveal"] < shape["threshold"]


def test_a_ring_finishes_exactly_when_the_three_conditions_hold(make_federation: Any) -> None:
    # docs/parameters.md, on real sessions: losses before the masks, so that every condition is met by a client.
    seen = set()
    for number in range(25):
        lost = {f"client-{1 + (number * step) % 10}": "mask" for step in (1, 3, 7)}
        federation = make_federation(n=10, max_colluders=1, degree=4, threshold=3, quorum=6, min_survivors=6)
        inbox = federation.server.start()
        graph: MaskGraph | None = None
        refusals: set[str] = set()
        try:
            for phase in PHASES:
                for name in [name for name in inbox if lost.get(name) != phase]:
                    try:
                        federation.server.receive(name, federation.answer(name, phase, inbox[name]))
                    except RemoteProtocolError as error:
                        refusals.add(str(error)[:30])
                inbox = federation.server.advance()
                graph = federation.server._graph
            finished = True
        except SessionAborted:
            finished = False
        assert graph is not None
        left = {index for index, name in enumerate(federation.names) if name not in lost}
        holders = all(len(left.intersection(graph.holders(index))) >= 3 for index in range(10))
        assert refusals <= {"server: U3 leaves two windows "}
        assert finished == (holders and graph.weakest_cut(left) > 1)
        seen.add(finished)
    assert seen == {True, False}
