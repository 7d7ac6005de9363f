"""The masked sum is the plain sum, bit for bit, whoever vanishes whenever; or the session aborts and says so."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import LocalProtocolError, SessionAborted
from protocols.prg import SecretStream
from protocols.quantise import Quantiser
from protocols.secagg.guard import MemoryGuard
from protocols.secagg.interface import PHASES, Phase
from protocols.secagg.local import SessionLog, run_session
from protocols.secagg.session import CoordinateGroup

NAMES = tuple(f"client-{i + 1}" for i in range(5))
SUBSETS = [subset for size in range(6) for subset in itertools.combinations(NAMES, size)]


def expected_abort(federation: Any, dropouts: dict[str, Phase]) -> str | None:
    """The phase in which a session must abort, from counts alone; the oracle of these tests."""
    present = len(federation.names)
    least = {"advertise": 4, "share": 4, "mask": 4, "confirm": 4, "reveal": 4}
    for phase in PHASES:
        present -= sum(when == phase for when in dropouts.values())
        if present < least[phase]:
            return phase
    return None


def check_session(federation: Any, dropouts: dict[str, Phase]) -> None:
    """Run a session and compare it with the oracle."""
    abort = expected_abort(federation, dropouts)
    if abort is not None:
        with pytest.raises(SessionAborted) as caught:
            run_session(federation.clients, federation.server, federation.vectors, dropouts)
        order = PHASES.index(abort)
        lost = {name for name, when in dropouts.items() if PHASES.index(when) <= order}
        assert caught.value.phase == abort
        assert set(caught.value.lost) == lost
        with pytest.raises(LocalProtocolError):
            federation.server.result()
        return
    result = run_session(federation.clients, federation.server, federation.vectors, dropouts)
    gone_before_sum = {name for name, when in dropouts.items() if when in PHASES[:3]}
    survivors = tuple(name for name in federation.names if name not in gone_before_sum)
    assert result.survivors == survivors
    assert dict(result.lost) == dropouts
    np.testing.assert_array_equal(result.sum, federation.plain_sum(survivors))
    assert result.sum.dtype == np.uint32


@pytest.mark.parametrize("phase", PHASES)
def test_every_subset_of_five_in_every_phase(make_federation: Any, phase: Phase) -> None:
    for subset in SUBSETS:
        check_session(make_federation(), dict.fromkeys(subset, phase))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(PHASES), max_size=3))
def test_mixed_phases(make_federation: Any, dropouts: dict[str, Phase]) -> None:
    check_session(make_federation(), dropouts)


@pytest.mark.parametrize("lost", ["client-1", "client-3", "client-5"])
def test_encapsulator_or_decapsulator_of_an_edge_drops(make_federation: Any, lost: str) -> None:
    # client-1 encapsulates on all of its edges, client-5 on none, client-3 on half of them.
    check_session(make_federation(), {lost: "mask"})


def test_two_drop_on_one_edge(make_federation: Any) -> None:
    federation = make_federation(n=7, max_colluders=1)
    dropouts: dict[str, Phase] = {"client-2": "mask", "client-6": "mask"}
    result = run_session(federation.clients, federation.server, federation.vectors, dropouts)
    np.testing.assert_array_equal(result.sum, federation.plain_sum(result.survivors))


@pytest.mark.parametrize("bits", [3, 8, 16, 31, 32])
def test_every_modulus(make_federation: Any, bits: int) -> None:
    n = 3
    bound = (2 ** (bits - 1) - 1) // n
    federation = make_federation(n=n, max_colluders=0, modulus_bits=bits, bound=bound)
    result = run_session(federation.clients, federation.server, federation.vectors)
    np.testing.assert_array_equal(result.sum, federation.plain_sum(federation.names))


def test_a_vector_of_several_cache_blocks(make_federation: Any) -> None:
    federation = make_federation(n=3, max_colluders=0, vector_length=100_003)
    result = run_session(federation.clients, federation.server, federation.vectors)
    np.testing.assert_array_equal(result.sum, federation.plain_sum(federation.names))


def test_a_ring_lattice_with_losses(make_federation: Any) -> None:
    federation = make_federation(n=14, max_colluders=1, degree=8)
    dropouts: dict[str, Phase] = {"client-3": "mask", "client-9": "share", "client-12": "confirm"}
    log = SessionLog()
    result = run_session(federation.clients, federation.server, federation.vectors, dropouts, log=log)
    assert log.refused == {}
    assert len(result.survivors) == 12
    np.testing.assert_array_equal(result.sum, federation.plain_sum(result.survivors))


def test_groups_of_coordinates(make_federation: Any) -> None:
    groups = (CoordinateGroup(0, 3, (0, 1, 2, 3, 4)), CoordinateGroup(3, 7, (0, 1, 2, 3)))
    federation = make_federation(groups=groups, min_contributors=3)
    federation.vectors["client-5"][3:] = 0
    result = run_session(federation.clients, federation.server, federation.vectors, {"client-1": "mask"})
    np.testing.assert_array_equal(result.sum, federation.plain_sum(result.survivors))


def test_a_group_below_its_contributors_aborts(make_federation: Any) -> None:
    groups = (CoordinateGroup(0, 3, (0, 1, 2, 3, 4)), CoordinateGroup(3, 7, (0, 1, 2)))
    federation = make_federation(groups=groups, min_contributors=3)
    federation.vectors["client-4"][3:] = 0
    federation.vectors["client-5"][3:] = 0
    with pytest.raises(SessionAborted, match="contribute to a group"):
        run_session(federation.clients, federation.server, federation.vectors, {"client-1": "mask"})


def test_a_dropped_client_stays_dropped(federation: Any) -> None:
    inbox = federation.drive(until="mask")
    answers = {name: federation.answer(name, "mask", inbox[name]) for name in federation.names}
    for name in federation.names[:4]:
        federation.server.receive(name, answers[name])
    federation.server.advance()
    with pytest.raises(Exception, match="lost in phase mask, for good"):
        federation.server.receive("client-5", answers["client-5"])


def test_attachments_and_traffic(federation: Any) -> None:
    log = SessionLog()
    result = run_session(
        federation.clients,
        federation.server,
        federation.vectors,
        {"client-5": "confirm"},
        attachments={"client-1": b"anchor"},
        log=log,
    )
    assert result.attachments["client-1"] == b"anchor"
    assert set(result.attachments) == set(federation.names[:4])
    up = log.bytes_by_client("up")
    assert up["client-1"] > up["client-5"] > 0
    assert log.traffic["client-5", "up", "confirm"] == 0
    assert log.traffic["client-1", "up", "mask"] == 2 + 4 + 10 + 64  # header, length, 7·11 bits, signature


def test_two_sessions_of_a_round_differ_everywhere(make_federation: Any) -> None:
    first, second = make_federation(), make_federation(session_id=bytes(32))
    transcripts = [run_session(one.clients, one.server, one.vectors).transcript for one in (first, second)]
    assert transcripts[0] != transcripts[1]


def test_quantised_vectors_sum_to_the_sum_of_values(make_federation: Any) -> None:
    quantiser = Quantiser(bounds=2.0, value_bits=16, max_clients=5)
    federation = make_federation(
        modulus_bits=quantiser.modulus_bits, bound=quantiser.levels, vector_length=1000
    )
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(-2, 2, 1000).astype(np.float32) for name in federation.names}
    rings = {name: quantiser.quantise(value, SecretStream()) for name, value in values.items()}
    result = run_session(federation.clients, federation.server, rings, {"client-2": "mask"})
    total = sum(values[name].astype(np.float64) for name in result.survivors)
    step = 2.0 / quantiser.levels
    assert np.abs(quantiser.dequantise_sum(result.sum) - total).max() <= 4 * step


def test_a_second_exchange_with_exactly_the_survivors(make_federation: Any) -> None:
    federation = make_federation()
    first = run_session(federation.clients, federation.server, federation.vectors, {"client-2": "share"})
    assert federation.clients["client-1"].survivors == first.survivors
    names = first.survivors
    policy = replace(federation.policy, exact_roster=frozenset(names))
    second = make_federation(roster=names, min_survivors=4, degree=3, exchange=1, session_id=bytes(32))
    clients = {name: second.client(name, policy=policy, guard=MemoryGuard()) for name in names}
    result = run_session(clients, second.server, second.vectors)
    assert result.survivors == first.survivors
    loose = make_federation(exchange=1, session_id=bytes(32))
    refused = SessionLog()
    clients = {name: loose.client(name, policy=policy, guard=MemoryGuard()) for name in loose.names}
    with pytest.raises(SessionAborted):
        run_session(clients, loose.server, loose.vectors, log=refused)
    assert set(refused.refused) == set(loose.names)
