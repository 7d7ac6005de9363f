"""Rounds in which clients send different fractions, or vote for what travels, coordinate by coordinate in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import Dropout
from fedlora_priv.engines.base import Step
from fedlora_priv.federation import checkpoint, wire
from fedlora_priv.federation.ballots import BallotChannel
from fedlora_priv.federation.checkpoint import History
from fedlora_priv.federation.exchange import ExchangeSum, Summed
from fedlora_priv.federation.rounds import RoundResult
from fedlora_priv.federation.server import FederationServer
from fedlora_priv.federation.session import client_policy, session_parameters
from fedlora_priv.methods import State
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.optimizers import Average
from protocols.prg import SecretStream
from protocols.secagg.session import SessionParameters, VectorForm
from protocols.sparsify import Support, dense
from protocols.voting import value_exchange, value_policy

from .paper import LAYOUT, Meddling, Paper, crash, initial_state, proposing, step_of, trained

CONTRACT = FedIT().contract(LAYOUT)
NAMES, D = list(CONTRACT.uploads), CONTRACT.dimension
TIERS = (0.25, 1.0, 0.25, 1.0, 1.0)
TOML = '[experiment]\nname = "mix"\n[data]\npublic = true\n[privacy]\nepsilon = 8.0\n'
REFUSED = wire.Message(wire.REFUSED, {"code": "FederationError"})


@pytest.fixture
def paper(on_paper: Callable[..., Paper]) -> Callable[..., Paper]:
    def make(mode: str = "secure", dropouts: Any = (), federation: Any = None, **communication: Any) -> Paper:
        sections = {
            "federation": federation or {},
            "communication": {"density": 1.0, "value_bits": 16} | communication,
            "secure_aggregation": {"mode": mode},
        }
        return on_paper(FedIT(), sections, dropouts=dropouts)

    return make


def flat(arrays: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.asarray(arrays[name], float).ravel() for name in NAMES])


def change(client_id: str, state: State) -> np.ndarray:
    """What a client makes of a state, less that state."""
    after = trained(client_id, {**state}, CONTRACT.trains)
    return flat(after) - flat(state)


def require_means(
    small: Paper, before: State, result: RoundResult, senders: Mapping[tuple[int, ...], list[str]]
) -> None:
    """Each coordinate has moved by the mean change of those who sent it, and no other has moved."""
    assert result.summed is not None
    wanted, step = np.zeros(D), np.zeros(D)
    for part in result.summed.parts:
        if isinstance(part.exchange.channel, BallotChannel):
            continue
        at, quantiser = part.exchange.values.support.indices, part.exchange.values.quantiser
        largest = quantiser.dequantise_sum(np.full(at.size, quantiser.levels, np.uint32), 1)
        clients = senders[tuple(at.tolist())]
        assert part.n == len(clients)
        sent = [np.clip(change(client_id, before)[at], -largest, largest) for client_id in clients]
        wanted[at] = np.mean(sent, axis=0)
        step[at] = quantiser.dequantise_sum(np.ones(at.size, np.uint32), 1)
    assert len(senders) == len(indices(result))
    moved = flat(small.state.state) - flat(before)
    assert (np.abs(moved - wanted) <= step + 1e-7).all()  # each value is rounded by less than a step
    assert step.max() < 1e-3 * np.abs(wanted).max()
    assert_array_equal(moved[step == 0], 0.0)


def indices(result: RoundResult) -> list[tuple[int, ...]]:
    assert result.summed is not None
    return [
        tuple(part.exchange.values.support.indices.tolist())
        for part in result.summed.parts
        if not isinstance(part.exchange.channel, BallotChannel)
    ]


# --- tiers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", ["seeded-random-k", "server-topk"])
def test_a_coordinate_moves_by_the_mean_of_those_who_send_it(
    paper: Callable[..., Paper], support: str
) -> None:
    small = paper(support=support, densities=TIERS)
    everybody, wide = [f"client-{i}" for i in range(1, 6)], ["client-2", "client-4", "client-5"]
    narrow = []
    for number in (1, 2):
        before, result = small.state.state, small.round()
        assert result.record.aborted is None
        first, band = indices(result)
        assert len(first) == -(-D // 4)
        assert sorted(first + band) == list(range(D))
        require_means(small, before, result, {first: everybody, band: wide})
        one, other = result.record.exchanges
        assert (one.number, other.number, one.announced, other.announced) == (0, 1, None, None)
        assert (list(one.survivors), list(other.survivors)) == (everybody, wide)
        narrow.append(first)
        for client in small.clients:
            (charge,) = [c for c in client._setup.ledger.charges() if c.round == number]
            mine = {release.exchange for release in charge.releases}
            assert mine == ({0, 1} if client.client_id in wide else {0})
            assert charge.remasked == charge.announced_again == 0
    assert narrow[0] != narrow[1]


def test_unmasked_bands_give_the_same_integers(paper: Callable[..., Paper]) -> None:
    masked, plain = (
        paper(mode, support="seeded-random-k", densities=TIERS) for mode in ("secure", "insecure")
    )
    one, other = masked.round(), plain.round()
    assert one.summed is not None
    assert other.summed is not None
    for mine, theirs in zip(one.summed.parts, other.summed.parts, strict=True):
        assert mine.ring_sum.any()
        assert_array_equal(mine.ring_sum, theirs.ring_sum)
    for name, array in masked.state.state.items():
        assert_array_equal(array, plain.state.state[name])


SIX = {"clients": 6}
SIX_TIERS = (0.25, 1.0, 1.0, 0.5, 1.0, 1.0)


@pytest.mark.parametrize("phase", ["advertise", "mask", "confirm"])
def test_a_band_loses_a_client_and_is_the_mean_of_the_others(paper: Callable[..., Paper], phase: Any) -> None:
    lost = Dropout(round=1, client_id="client-3", phase=phase, exchange=1)
    small = paper(support="server-topk", densities=SIX_TIERS, federation=SIX, dropouts=[lost])
    before, result = small.state.state, small.round()
    everybody = [f"client-{i}" for i in range(1, 7)]
    assert list(result.record.survivors) == everybody
    left = [c for c in everybody if c != "client-3"]
    first, middle, wide = indices(result)
    in_middle = everybody[1:] if phase == "confirm" else [c for c in left if c != "client-1"]
    in_wide = ["client-2", "client-5", "client-6"]
    require_means(small, before, result, {first: everybody, middle: in_middle, wide: in_wide})
    assert ("client-3", step_of(phase, 1)) in result.record.lost


def test_a_lost_band_costs_its_coordinates_and_the_next_one_goes_on(paper: Callable[..., Paper]) -> None:
    """Of five in the middle band four must be in its sum, and three are; of the wide one three are enough."""
    lost = [Dropout(round=1, client_id=f"client-{i}", phase="mask", exchange=1) for i in (4, 6)]
    small = paper(support="seeded-random-k", densities=SIX_TIERS, federation=SIX, dropouts=lost)
    before, result = small.state.state, small.round()
    assert result.record.aborted is None
    assert [entry.transcript is None for entry in result.record.exchanges] == [False, True, False]
    first, wide = indices(result)
    everybody = [f"client-{i}" for i in range(1, 7)]
    require_means(small, before, result, {first: everybody, wide: ["client-2", "client-3", "client-5"]})
    again = small.round()
    assert again.record.aborted is None
    assert len(again.record.exchanges) == 3


def test_without_the_first_band_there_is_no_round(paper: Callable[..., Paper]) -> None:
    lost = [Dropout(round=1, client_id=f"client-{i}", phase="mask") for i in (1, 3)]
    small = paper(support="seeded-random-k", densities=TIERS, dropouts=lost)
    result = small.round()
    assert result.summed is None
    assert small.state.state is small.begun.state
    assert len(result.record.exchanges) == 1


@pytest.mark.parametrize("at", [7, 19, 28, 36])
def test_a_crash_anywhere_changes_nothing_of_the_result(paper: Callable[..., Paper], at: int) -> None:
    whole = paper(support="seeded-random-k", densities=TIERS)
    broken = paper(support="seeded-random-k", densities=TIERS)
    whole.round()
    crash(broken, at)
    result = broken.round()
    assert result.record.aborted is None
    for name, array in whole.state.state.items():
        assert_array_equal(array, broken.state.state[name])
    assert broken.trainings == 5


# --- a server that plays with bands ----------------------------------------------------------------------


def meddled(
    small: Paper, phase: str, exchange: int, edit: Callable[[wire.Message], wire.Message]
) -> RoundResult:
    """A round in which the messages of one step are edited."""

    def meddle(step: Step, client_id: str, data: bytes) -> bytes:
        if (step.phase, step.exchange) != (phase, exchange):
            return data
        return wire.encode(edit(wire.decode(data)))

    small.use(Meddling(small.clients, meddle))
    return small.round()


def thin(edit: Callable[[Any], Any]) -> Callable[[wire.Message], wire.Message]:
    """Edit the parameters of a session, and make it sound otherwise."""

    def changed(before: SessionParameters) -> SessionParameters:
        parameters: SessionParameters = edit(before)
        everybody = (replace(parameters.groups[0], contributors=tuple(range(parameters.n))),)
        least = min(parameters.min_survivors, parameters.n)
        return replace(parameters, groups=everybody, min_survivors=least, min_contributors=least)

    return proposing(changed)


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: replace(p, min_survivors=2, quorum=2, threshold=2, max_colluders=0),
        lambda p: replace(
            p, roster=p.roster[:2], degree=1, quorum=2, threshold=2, min_survivors=2, max_colluders=0
        ),
        lambda p: replace(p, exchange=0),
        lambda p: replace(p, roster=("client-1", *p.roster), degree=3, quorum=3),
    ],
)
def test_a_thin_band_is_refused(paper: Callable[..., Paper], edit: Callable[[Any], Any]) -> None:
    """Fewer in its sum than hide one, another exchange, or more clients than send it: no word of an upload leaves."""
    small = paper(support="seeded-random-k", densities=TIERS)
    result = meddled(small, "announce", 1, thin(edit))
    assert {code for _, code in result.record.refused} == {"PolicyViolation"}
    assert result.summed is not None
    assert len(result.summed.parts) == 1
    for client in small.clients:
        (charge,) = client._setup.ledger.charges()
        assert {release.exchange for release in charge.releases} == {0}


def test_a_client_is_not_asked_for_what_only_others_send(paper: Callable[..., Paper]) -> None:
    small = paper(support="seeded-random-k", densities=TIERS)
    small.round()
    message = wire.encode(wire.Message(wire.EXCHANGE, {"exchange": 1}))
    assert wire.decode(small.clients[0].handle(message)) == REFUSED


@pytest.mark.parametrize("number", [0, 2, None, True, "1"])
def test_a_band_that_is_not_there_is_refused(paper: Callable[..., Paper], number: Any) -> None:
    small = paper(support="seeded-random-k", densities=TIERS)
    edit: Callable[[wire.Message], wire.Message] = lambda m: replace(m, fields={"exchange": number})  # noqa: E731
    result = meddled(small, "announce", 1, edit)
    assert {code for _, code in result.record.refused} == {"FederationError"}


def test_a_band_before_the_first_sum_is_confirmed_is_refused(paper: Callable[..., Paper]) -> None:
    small = paper(support="seeded-random-k", densities=TIERS)
    message = small.server.task(small.state).to_message(small.begun.state)
    client = small.clients[1]
    assert wire.decode(client.handle(wire.encode(message))).kind == wire.TRAINED
    band = wire.encode(wire.Message(wire.EXCHANGE, {"exchange": 1}))
    assert wire.decode(client.handle(band)) == REFUSED


def other_supports(blobs: Mapping[str, bytes]) -> list[dict[str, bytes]]:
    """Supports that are not those of the seed, or not nested."""
    first, band = (Support.from_bytes(blobs[name], D).indices for name in ("support", "support/1"))
    swapped = Support(D, np.sort(np.append(band[1:], first[0]))).to_bytes()
    short = Support(D, band[1:]).to_bytes()
    return [
        {"support/1": swapped},  # a coordinate of both
        {"support/1": short},
        {"support": Support(D, first[1:]).to_bytes()},
        {"support/2": short},
        {"support": Support(D, np.arange(first.size)).to_bytes()},
        {"support/1": b"\x07"},
    ]


@pytest.mark.parametrize("support", ["seeded-random-k", "server-topk"])
def test_supports_that_the_experiment_does_not_have_are_refused_before_anything_is_charged(
    paper: Callable[..., Paper], support: str
) -> None:
    small = paper(support=support, densities=TIERS)
    message = small.server.task(small.state).to_message(small.begun.state)
    client = small.clients[1]
    edited = [{**message.blobs, **wrong} for wrong in other_supports(message.blobs)]
    lacking = {name: blob for name, blob in message.blobs.items() if name != "support/1"}
    for blobs in (*edited, lacking):
        assert wire.decode(client.handle(wire.encode(replace(message, blobs=blobs)))) == REFUSED
        assert len(client._setup.ledger.rows()) == 1
    assert wire.decode(client.handle(wire.encode(message))).kind == wire.TRAINED


@pytest.mark.parametrize("support", ["seeded-random-k", "server-topk"])
def test_a_client_draws_random_supports_itself(paper: Callable[..., Paper], support: str) -> None:
    """Another support of the right size is taken where only the server can know better."""
    small = paper(support=support, density=0.25, **({"whole_rounds": 0} if support == "server-topk" else {}))
    message = small.server.task(small.state).to_message(small.begun.state)
    other = {"support": Support(D, np.arange(-(-D // 4))).to_bytes()}
    edited = replace(message, blobs={**message.blobs, **other})
    answer = wire.decode(small.clients[0].handle(wire.encode(edited)))
    assert (answer == REFUSED) == (support == "seeded-random-k")


@pytest.mark.parametrize(("given", "whole"), [({}, 1), ({"whole_rounds": 0}, 0), ({"whole_rounds": 2}, 2)])
def test_ranked_supports_begin_with_whole_rounds(
    paper: Callable[..., Paper], given: dict[str, int], whole: int
) -> None:
    """Nothing ranks coordinates before the first sum; clients hold the server to how many rounds send everything."""
    small = paper(support="server-topk", density=0.25, **given)
    quarter = -(-D // 4)
    for number in (1, 2, 3):
        task = small.server.task(replace(small.state, round=number - 1))
        assert len(task.first.values.support) == (D if number <= whole else quarter)
    message = small.server.task(small.state).to_message(small.begun.state)
    other = Support(D, np.arange(quarter if whole else D)).to_bytes()
    edited = replace(message, blobs={**message.blobs, "support": other})
    assert wire.decode(small.clients[0].handle(wire.encode(edited))) == REFUSED
    assert wire.decode(small.clients[0].handle(wire.encode(message))).kind == wire.TRAINED


def test_tiers_begin_with_coordinates_drawn_by_the_seed(paper: Callable[..., Paper]) -> None:
    small = paper(support="server-topk", densities=TIERS, exploration=0.0)
    first = small.server.task(small.state).first.values.support
    assert len(first) == -(-D // 4)
    assert not np.array_equal(first.indices, np.arange(len(first)))  # not the lowest, for want of scores


# --- every mix of densities -------------------------------------------------------------------------------

DENSITIES = (1 / 64, 1 / 16, 0.25, 0.5, 1.0)


@st.composite
def mixes(draw: st.DrawFn) -> tuple[list[float], str, list[list[bool]], int]:
    n = draw(st.integers(3, 8))
    mine = draw(st.lists(st.sampled_from(DENSITIES), min_size=n, max_size=n))
    kind = draw(st.sampled_from(["seeded-random-k", "server-topk"]))
    bands = len(set(mine))
    there = [draw(st.lists(st.booleans(), min_size=n, max_size=n)) for _ in range(bands)]
    return mine, kind, there, draw(st.integers(0, 2**32))


@settings(max_examples=60, deadline=None)
@given(mixes())
def test_sums_are_exact_under_every_mix_of_densities_survivors_and_losses(
    mix: tuple[list[float], str, list[list[bool]], int],
) -> None:
    """What comes out is n times each coordinate's mean of the very integers that its senders sent, else zero."""
    mine, kind, there, seed = mix
    n = len(mine)
    experiment = Experiment.from_toml(
        TOML,
        [
            f"federation.clients={n}", f"communication.support={kind}", f"communication.densities={mine}",
            "communication.value_bits=12", "secure_aggregation.mode=insecure",
        ],
    )  # fmt: skip
    server = FederationServer(experiment, LAYOUT, FedIT(), initial_state(), 1.0)
    task = server.task(server.begin())
    assert [exchange.number for exchange in task.known] == list(range(len(set(mine))))
    rng = np.random.default_rng(seed)
    updates = rng.normal(0, 0.05, (n, D)).astype(np.float32)
    sent, count = np.zeros(D), np.zeros(D)
    parts, reached = [], np.zeros(D, int)
    alive = list(range(n))
    for j, (exchange, survive) in enumerate(zip(task.known, there, strict=True)):
        channel, density = exchange.values, sorted(set(mine))[j]
        senders = [c for c in range(n) if mine[c] >= density]
        if j:
            assert exchange.leg.senders == tuple(f"client-{c + 1}" for c in senders)
        survivors = [c for c in senders if c in alive and (survive[c] or (j == 0 and c == senders[0]))]
        alive = survivors if j == 0 else alive
        reached[channel.support.indices] += 1
        if not survivors:
            continue
        uploads = [channel.encode(updates[c], SecretStream(bytes([c]) * 32)) for c in survivors]
        total = np.sum(uploads, axis=0, dtype=np.uint64) % (1 << channel.quantiser.modulus_bits)
        parts.append(ExchangeSum(exchange, total.astype(np.uint32), len(survivors)))
        half = 1 << (channel.quantiser.modulus_bits - 1)
        signed = [(r.astype(np.int64) + half) % (2 * half) - half for r in uploads]
        step = channel.quantiser.dequantise_sum(np.ones_like(uploads[0]), 1)
        sent[channel.support.indices] = np.sum(signed, axis=0) * step
        count[channel.support.indices] = len(survivors)
    assert (reached <= 1).all()
    assert reached.sum() == max(1, int(np.ceil(max(mine) * D)))
    got = np.concatenate([array.ravel() for array in Summed(tuple(parts)).sums.values()])
    wanted = np.divide(len(alive) * sent, count, out=np.zeros(D), where=count > 0)
    np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=0)
    assert_array_equal(got == 0, wanted == 0)


# --- votes -----------------------------------------------------------------------------------------------

VOTED = {"support": "voted-topk", "density": 0.2}
K = -(-D // 5)


def most_voted(before: State, clients: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """How many of the clients have each coordinate among their K largest."""
    counts = np.zeros(D, int)
    for client_id in clients:
        counts[np.argsort(-np.abs(change(client_id, before).astype(np.float32)), kind="stable")[:K]] += 1
    order = np.sort(counts)[::-1]
    return counts, order[K - 1]


def test_what_most_vote_for_travels_and_moves_by_the_mean(paper: Callable[..., Paper]) -> None:
    small = paper(**VOTED)
    everybody = [f"client-{i}" for i in range(1, 6)]
    for number in (1, 2):
        before, result = small.state.state, small.round()
        assert result.record.aborted is None
        assert result.summed is not None
        (chosen,) = indices(result)
        counts, last = most_voted(before, everybody)
        votes, values = result.summed.parts
        assert_array_equal(votes.ring_sum, counts)
        assert len(chosen) == K
        assert set(np.flatnonzero(counts > last)) <= set(chosen) <= set(np.flatnonzero(counts >= last))
        require_means(small, before, result, {chosen: everybody})
        first, second = result.record.exchanges
        assert first.announced is None
        assert second.announced == values.exchange.recorded
        for client in small.clients:
            (charge,) = [c for c in client._setup.ledger.charges() if c.round == number]
            assert [r.exchange for r in charge.releases] == [0, 0, 1, 1]
            assert {r.announced for r in charge.releases} == {None, second.announced}


def test_who_is_lost_before_it_voted_is_in_neither_sum(paper: Callable[..., Paper]) -> None:
    small = paper(**VOTED, dropouts=[Dropout(round=1, client_id="client-2", phase="mask")])
    before, result = small.state.state, small.round()
    left = ["client-1", "client-3", "client-4", "client-5"]
    assert list(result.record.survivors) == left
    assert result.summed is not None
    assert_array_equal(result.summed.parts[0].ring_sum, most_voted(before, left)[0])
    require_means(small, before, result, {indices(result)[0]: left})


def test_who_has_voted_and_is_lost_loses_the_round(paper: Callable[..., Paper]) -> None:
    small = paper(**VOTED, dropouts=[Dropout(round=1, client_id="client-2", phase="confirm")])
    result = small.round()
    assert result.record.aborted == "exchange 1 needs all 5 clients of the first one, and 4 were ready"
    assert small.state.state is small.begun.state
    assert small.state.voted is None


@pytest.mark.parametrize("at", [7, 19, 28, 40, 48])
def test_a_crash_anywhere_changes_nothing_of_a_vote(paper: Callable[..., Paper], at: int) -> None:
    whole, broken = paper(**VOTED), paper(**VOTED)
    whole.round()
    crash(broken, at)
    assert broken.round().record.aborted is None
    for name, array in whole.state.state.items():
        assert_array_equal(array, broken.state.state[name])
    for client in broken.clients:
        (charge,) = client._setup.ledger.charges()
        assert charge.announced_again == 0  # the same votes elect the same support


def test_a_support_is_kept_for_as_many_rounds_as_asked_for(
    paper: Callable[..., Paper], tmp_path: Path
) -> None:
    """Rounds 1 and 3 vote, also after the server's process has ended in between."""
    small = paper(**VOTED, vote_every=2)
    everybody = [f"client-{i}" for i in range(1, 6)]
    chosen = []
    for number, exchanges in ((1, 2), (2, 1), (3, 2), (4, 1)):
        checkpoint.save(tmp_path / "checkpoints", small.state, History())
        stored = checkpoint.load(tmp_path / "checkpoints")
        assert stored is not None
        small.state = stored[0]
        before, result = small.state.state, small.round()
        assert result.record.aborted is None
        assert len(result.record.exchanges) == exchanges, number
        chosen += indices(result)
        require_means(small, before, result, {chosen[-1]: everybody})
    assert chosen[0] == chosen[1] != chosen[2] == chosen[3]


def test_a_round_after_a_lost_vote_goes_on_with_what_there_is(paper: Callable[..., Paper]) -> None:
    """The first vote is lost, so round 2 has a random support; round 4 has what round 3 voted for."""
    lost = Dropout(round=1, client_id="client-2", phase="confirm")
    small = paper(**VOTED, vote_every=2, dropouts=[lost])
    small.round()
    before, result = small.state.state, small.round()
    (chosen,) = indices(result)
    assert len(chosen) == K
    require_means(small, before, result, {chosen: [f"client-{i}" for i in range(1, 6)]})
    assert small.state.voted is None


@pytest.mark.parametrize("more", [1, -1, 2**4 - 1])
def test_a_spoilt_vote_loses_the_round(paper: Callable[..., Paper], more: int) -> None:
    """A client that votes for one coordinate more or fewer than it may."""
    small = paper(**VOTED)
    real = BallotChannel.votes

    def cheat(channel: BallotChannel, update: Any) -> Any:
        ballot = real(channel, update)
        at = int(np.flatnonzero(ballot == (0 if more > 0 else 1))[0])
        ballot[at] = (int(ballot[at]) + more) % 2**channel.rules.modulus_bits
        return ballot

    client = small.clients[2]
    handle = client.handle

    def spoiling(data: bytes) -> bytes:
        BallotChannel.votes = cheat  # type: ignore[method-assign]
        try:
            return handle(data)
        finally:
            BallotChannel.votes = real  # type: ignore[method-assign]

    client.handle = spoiling  # type: ignore[method-assign]
    result = small.round()
    assert result.summed is None
    assert small.state.state is small.begun.state
    if more == 1:
        assert result.record.aborted is not None
        assert "somebody spoilt the vote" in result.record.aborted


def announced_support(edit: Callable[[Support], bytes]) -> Callable[[wire.Message], wire.Message]:
    def changed(message: wire.Message) -> wire.Message:
        support = Support.from_bytes(message.blobs["support"], D)
        return replace(message, blobs={**message.blobs, "support": edit(support)})

    return changed


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: dense(D).to_bytes(),
        lambda s: Support(D, s.indices[1:]).to_bytes(),
        lambda s: s.to_bytes()[:-1],
        lambda s: b"",
    ],
)
def test_an_announced_support_of_another_size_is_refused(
    paper: Callable[..., Paper], edit: Callable[[Support], bytes]
) -> None:
    small = paper(**VOTED)
    result = meddled(small, "announce", 1, announced_support(edit))
    assert {code for _, code in result.record.refused} == {"FederationError"}
    assert small.state.state is small.begun.state


def test_a_support_that_one_client_alone_was_told_gets_nothing_of_it(paper: Callable[..., Paper]) -> None:
    small = paper(**VOTED)
    other = announced_support(lambda s: Support(D, np.sort(D - 1 - s.indices)).to_bytes())

    def meddle(step: Step, client_id: str, data: bytes) -> bytes:
        if (step.phase, step.exchange, client_id) != ("announce", 1, "client-1"):
            return data
        return wire.encode(other(wire.decode(data)))

    small.use(Meddling(small.clients, meddle))
    result = small.round()
    assert result.record.refused == [("client-1", "PolicyViolation")]
    assert result.summed is None


def test_the_server_does_not_choose_where_clients_vote(paper: Callable[..., Paper]) -> None:
    small = paper(**VOTED)
    task = small.server.task(small.state)
    message = task.to_message(small.begun.state)
    assert not message.blobs
    told = replace(message, blobs={"support": b"\x00"})
    assert wire.decode(small.clients[0].handle(wire.encode(told))) == REFUSED
    upload = wire.encode(wire.Message(wire.UPLOAD))
    assert wire.decode(small.clients[0].handle(wire.encode(message))).kind == wire.TRAINED
    assert wire.decode(small.clients[0].handle(upload)) == REFUSED


# --- bias ------------------------------------------------------------------------------------------------

ROUNDS = 400
SIGMAS = 6.0
"""A normal deviate is beyond six deviations with probability 2e-9; all of the D + 1 figures below, 4e-7 together."""


def test_a_random_support_is_unbiased_at_a_learning_rate_of_d_over_k_and_at_no_other() -> None:
    """The mean move over many rounds from one state with one update: at rate 1 it is k/d of the update."""
    sparse = ["communication.support=seeded-random-k", "communication.density=0.25"]
    everywhere = FederationServer(Experiment.from_toml(TOML), LAYOUT, FedIT(), initial_state(), 1.0)
    begun = everywhere.begin()
    quantiser = everywhere.task(begun).first.values.quantiser
    step = quantiser.dequantise_sum(np.ones(D, np.uint32), 1)
    update = (np.random.default_rng(11).uniform(-0.5, 0.5, D) * step * quantiser.levels).astype(np.float32)
    k, squares = -(-D // 4), update.astype(float) ** 2
    share = k / D
    # A sum over k of D without replacement has a known deviation; each value is rounded by less than a step.
    deviation = np.sqrt(k * (1 - share) * squares.var(ddof=1) / ROUNDS)
    rounding = share * float(np.abs(update) @ (step + 1e-7))
    servers = {
        rate: FederationServer(
            Experiment.from_toml(TOML, sparse), LAYOUT, FedIT(), initial_state(), 1.0, Average(rate)
        )
        for rate in (D / k, 1.0)
    }
    moved, travelled = {rate: np.zeros(D) for rate in servers}, np.zeros(D)
    for number in range(ROUNDS):
        state = replace(begun, round=number)
        task = servers[1.0].task(state)
        total = task.first.values.encode(update, SecretStream(bytes(32)))
        travelled[task.first.values.support.indices] += 1
        for rate, server in servers.items():
            after = server.advance(state, task, Summed((ExchangeSum(task.first, total, 1),)))
            moved[rate] += (flat(after.state) - flat(begun.state)) / ROUNDS
    assert np.abs(travelled - ROUNDS * share).max() < SIGMAS * np.sqrt(ROUNDS * share * (1 - share))
    for rate in servers:
        along = float(update @ moved[rate])
        assert abs(along - rate * share * squares.sum()) < rate * (SIGMAS * deviation + rounding)
    assert abs(along - squares.sum()) > 10 * (SIGMAS * deviation + rounding)  # the last rate is 1


def test_the_exchange_after_a_vote_is_that_of_the_protocols(paper: Callable[..., Paper]) -> None:
    """What a federation proposes and accepts after any first sum is `protocols.voting`'s, to the last field."""
    experiment, form = paper(**VOTED).experiment, VectorForm(K, 19, 32767)
    left = ("client-1", "client-3", "client-4", "client-5")
    common: dict[str, Any] = {
        "session_id": bytes(32), "context": bytes(range(32)), "vector_length": K, "modulus_bits": 19, "bound": 32767,
    }  # fmt: skip
    first = session_parameters(experiment, experiment.client_ids, round=2, **common)
    second = session_parameters(experiment, left, round=2, exchange=1, **common)
    assert second == value_exchange(first, left, **common)
    mine = client_policy(experiment, D, round=2)
    after = client_policy(experiment, D, round=2, exchange=1, cohort=frozenset(left), form=form)
    assert after == value_policy(mine, left, form)
    after.check(second)
