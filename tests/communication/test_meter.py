"""The bytes of a round from its parameters alone are those that go through an engine, to the byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedlora_priv.communication.budget import propose
from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.communication.meter import (
    KINDS,
    Summed,
    band_sessions,
    by_direction,
    most_uploaded,
    one_session,
    sort,
    wire_bytes,
)
from fedlora_priv.communication.scales import relative_error
from fedlora_priv.config import Experiment
from fedlora_priv.engines.base import Metered, Step
from fedlora_priv.engines.local import LocalEngine
from fedlora_priv.federation import wire
from fedlora_priv.federation.rounds import RoundConductor
from fedlora_priv.federation.runfolder import RunFolder
from fedlora_priv.federation.seats import make_clients
from fedlora_priv.federation.server import FederationServer
from fedlora_priv.federation.session import session_parameters
from fedlora_priv.federation.setup import assemble
from protocols.packing import packed_size
from protocols.quantise import Quantiser
from protocols.secagg.interface import PHASES, Phase
from protocols.secagg.session import SessionParameters, recommended
from protocols.sparsify import support_bytes
from protocols.tiers import Tiers, nested_topk


class Answering:
    """An engine whose clients give one answer."""

    client_ids = ("ada",)

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def exchange(self, messages: Mapping[str, bytes], step: Step) -> Mapping[str, bytes]:
        return dict.fromkeys(messages, self.answer)


def session(n: int, length: int = 1, bits: int = 8, degree: int | None = None) -> SessionParameters:
    """A session of n clients."""
    counts = recommended(n, 1, degree)
    return SessionParameters(
        session_id=bytes(32), round=1, exchange=0, roster=tuple(f"client-{i}" for i in range(1, n + 1)),
        max_colluders=1, quorum=counts.quorum, threshold=counts.threshold, min_survivors=counts.min_survivors,
        degree=counts.degree, vector_length=length, modulus_bits=bits, bound=1, context=bytes(32))  # fmt: skip


@pytest.mark.parametrize(
    ("lost", "secure"),
    [(None, {}), ("share", {}), ("mask", {}), ("reveal", {}), ("share", {"neighbours": 2}), ("mask", {"neighbours": 2}),
     ("confirm", {"neighbours": 2})],
)  # fmt: skip
def test_a_real_round_takes_what_it_is_said_to_take(
    experiment_file: Callable[..., Path], lost: Phase | None, secure: dict[str, int]
) -> None:
    """Kind by kind, for every client in both directions, whoever is lost; on a ring by the order that T1 gave."""
    dropouts = () if lost is None else ({"round": 1, "client_id": "client-2", "phase": lost},)
    path = experiment_file(
        communication={"support": "server-topk", "density": 0.05, "value_bits": 5},
        simulate={"dropouts": list(dropouts)},
        secure_aggregation={"max_colluders": 0, **secure} if secure else {},
    )
    experiment = Experiment.load(path)
    parts = assemble(experiment, lambda line: None)
    folder = RunFolder.open(experiment)
    clients, roster = make_clients(parts, folder)
    engine = Metered(LocalEngine(clients, experiment.simulate.dropouts))
    server = FederationServer(experiment, parts.layout, parts.method, parts.initial, 1.0)
    begun = state = server.begin()
    conductor = RoundConductor(experiment, begun.state, roster, folder.run, engine)
    everybody = set(experiment.client_ids)
    for number in (1, 2):  # in the first nothing has moved yet, and nobody is lost in the second
        task = server.task(state)
        result = conductor.conduct(task, partial(server.announce, state, task))
        assert result.summed is not None
        counted = engine.take()
        there = {phase: everybody - {"client-2"} if number == 1 and lost is not None and PHASES.index(lost) <= at
                 else everybody for at, phase in enumerate(PHASES)}  # fmt: skip
        channel = task.first.channel
        parameters = session_parameters(
            experiment, experiment.client_ids, round=number, session_id=bytes(32), context=bytes(32),
            vector_length=len(channel.support), modulus_bits=channel.quantiser.modulus_bits,
            bound=channel.quantiser.levels,
        )  # fmt: skip
        (attachment_bytes,) = {len(anchor.to_bytes()) for anchor in result.anchors.values()}
        begin = task.to_message(begun.state), wire.Message(wire.TRAINED)
        t1 = bytes.fromhex(result.record.exchanges[0].transcript or "")
        session = Summed(parameters, "values", there, t1, attachment_bytes, begun_by=begin)
        table = wire_bytes([session])
        assert +table == +counted.table
        for client_id in everybody:
            assert sum(by_direction(table, client_id)["up"].values()) == counted.uploaded[client_id]
            assert sum(by_direction(table, client_id)["down"].values()) == counted.downloaded[client_id]
        one, d = by_direction(table, "client-1"), channel.support.dimension
        assert one["up"]["values"] == packed_size(len(channel.support), parameters.modulus_bits)
        differs = {name: array != begun.state[name] for name, array in state.state.items()}
        moved, of = (
            sum(int(m.sum()) for m in differs.values()),
            sum(m.size for m in differs.values() if m.any()),
        )
        shortest = min(support_bytes(of, moved) + 4 * moved, 1 + 4 * of) if moved else 0
        assert (
            one["down"]["support"] + one["down"]["values"]
            == support_bytes(d, len(channel.support)) + shortest
        )
        assert (moved > 0) == (number > 1)
        state = server.advance(state, task, result.summed)
    for client in clients:
        client.close()
    folder.close()


def test_messages_that_nobody_can_read_are_framing() -> None:
    closing = wire.encode(wire.Message(wire.STATEMENT, {}, {"ledger": b"x" * 500, "anchor": b"y" * 9}))
    odd = wire.encode(wire.Message(wire.PHASE, {"phase": ["mask"]}, {"body": b"x" * 7}))
    short = wire.encode(wire.Message(wire.PHASE, {"phase": "mask"}, {"body": b"x"}))
    for data in (b"", b"\xff" * 900, closing, odd):
        assert +sort(data, "up") == ({"framing": len(data)} if data else {})
    assert sort(short, "up").total() == len(short)


def test_what_a_masked_vector_carries_makes_no_other_step() -> None:
    step = Step(1, "mask", 0, "votes")
    assert step == Step(1, "mask", 0)
    body = b"x" * (70 + 500)
    traffic = Metered(Answering(wire.encode(wire.Message(wire.PHASE, {"phase": "mask"}, {"body": body}))))
    for carries, other in (("votes", "values"), ("values", "votes")):
        traffic.exchange({"ada": b""}, Step(1, "mask", 0, carries))
        up = traffic.take().by_client()["ada"]["up"]
        assert (up[carries], up[other]) == (500, 0)


def test_a_vote_is_counted_as_votes() -> None:
    table = wire_bytes([Summed(session(5, 1000, 4), carries="votes"), Summed(session(5, 63, 11))])
    up = by_direction(table, "client-1")["up"]
    assert (up["votes"], up["values"]) == (500, packed_size(63, 11))
    assert set(up) == set(KINDS)


def test_a_ring_takes_fewer_bytes_than_a_complete_graph() -> None:
    ring, complete = (wire_bytes([Summed(session(40, 100, 8, degree))]) for degree in (8, None))
    assert 3.5 * ring.total() < complete.total()


def test_tiers_apart_cost_keys_and_save_values() -> None:
    n, d = 6, 60_000
    supports = nested_topk(np.random.default_rng(0).random(d), (d // 16, d), 0.25, b"x")
    tiers = Tiers(supports, {f"client-{i}": int(i > 3) for i in range(1, n + 1)})
    base = replace(session(n, bits=11), min_contributors=3)
    apart = wire_bytes([Summed(each) for each in band_sessions(base, tiers)])
    together = wire_bytes([Summed(one_session(base, tiers))])
    narrow, wide = "client-1", "client-6"
    assert by_direction(apart, narrow)["up"]["values"] == packed_size(d // 16, 11)
    assert by_direction(together, narrow)["up"]["values"] == packed_size(d, 11)
    assert by_direction(apart, wide)["up"]["keys"] == 2 * by_direction(together, wide)["up"]["keys"]
    assert [each.roster for each in band_sessions(base, tiers)] == [band.clients for band in tiers.bands]


def test_tiers_with_too_few_clients_are_refused() -> None:
    supports = nested_topk(np.zeros(50), (5, 50), 1.0, b"x")
    lonely = Tiers(supports, {f"client-{i}": int(i == 6) for i in range(1, 7)})
    for build in (band_sessions, one_session):
        with pytest.raises(CommunicationError):
            build(session(6, bits=11), lonely)
        with pytest.raises(CommunicationError, match="roster"):
            build(session(5, bits=11), lonely)


# a budget of bytes


def uploaded(n: int, k: int, value_bits: int, attachment: int) -> int:
    """What the client that sends the most sends."""
    quantiser = Quantiser(1.0, value_bits, n)
    parameters = replace(session(n, k, quantiser.modulus_bits), bound=quantiser.levels)
    return most_uploaded(wire_bytes([Summed(parameters, attachment_bytes=attachment)]))


@pytest.mark.parametrize("budget", [13_000, 20_000, 40_000, 1_000_000])
def test_a_proposal_is_the_best_that_fits(budget: int) -> None:
    n, d = 4, 10_000
    best = propose(budget, session(n), d, attachment_bytes=400, other_bytes=50)
    assert best.uploaded == uploaded(n, best.coordinates, best.value_bits, 400) + 50 <= budget
    for bits in (2, 3, 4, 5, 8, 16):  # no other pair that fits keeps more
        for k in range(1, d + 1, 333):
            if k / d * (1 - relative_error(bits)) > best.kept:
                assert uploaded(n, k, bits, 400) + 50 > budget


def test_more_bytes_first_buy_coordinates_then_bits() -> None:
    proposals = [
        propose(budget, session(10), 50_000) for budget in (27_000, 40_000, 80_000, 100_000, 200_000)
    ]
    assert [p.coordinates for p in proposals] == sorted(p.coordinates for p in proposals)
    assert proposals[0].value_bits <= 5
    assert proposals[0].density < 0.1
    assert (proposals[-1].density, proposals[-1].value_bits) == (1.0, 16)


def test_density_and_coordinates_go_together_for_any_dimension() -> None:
    fixed = propose(10**6, session(3), 1).fixed
    for d in (7, 49, 997, 10_007):
        for more in range(10, 4000, 171):
            proposal = propose(fixed + more, session(3), d)
            assert int(np.ceil(proposal.density * d)) == proposal.coordinates


def test_a_budget_below_the_keys_is_refused() -> None:
    with pytest.raises(CommunicationError, match="keys, shares and framing alone take"):
        propose(5_000, session(10), 50_000)
    whole = propose(110_000, session(10), 50_000, travels_whole=True)
    assert (whole.density, whole.coordinates) == (1.0, 50_000)
    assert whole.value_bits >= 8
    with pytest.raises(CommunicationError, match="least that can be sent"):
        propose(100_000, session(10), 50_000, travels_whole=True)
    with pytest.raises(CommunicationError):
        propose(60_000, session(10), 0)


def test_the_page_has_the_tables_that_the_script_prints() -> None:
    from benchmarks.session_bytes import fixed_rows, saved_rows

    page = (Path(__file__).parents[2] / "docs" / "communication.md").read_text(encoding="utf-8").splitlines()
    assert set(fixed_rows()) | set(saved_rows()) <= set(page)
