"""Rounds in which clients send different fractions: band by band, coordinate by coordinate in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import Dropout
from fedlora_priv.federation import wire
from fedlora_priv.federation.exchange import ExchangeSum, Summed
from fedlora_priv.federation.server import FederationServer
from fedlora_priv.methods.fedit import FedIT
from protocols.prg import SecretStream
from protocols.secagg.session import SessionParameters
from protocols.sparsify import Support

from .moves import D, indices, meddled, require_means
from .paper import LAYOUT, Paper, crash, initial_state, proposing, step_of

TIERS = (0.25, 1.0, 0.25, 1.0, 1.0)
TOML = '[experiment]\nname = "mix"\n[data]\npublic = true\n[privacy]\nepsilon = 8.0\n'
REFUSED = wire.Message(wire.REFUSED, {"code": "FederationError"})


# --- tiers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", ["seeded-random-k", "server-topk"])
def test_a_coordinate_moves_by_the_mean_of_those_who_send_it(
    fedit_on_paper: Callable[..., Paper], support: str
) -> None:
    small = fedit_on_paper(support=support, densities=TIERS)
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


def test_unmasked_bands_give_the_same_integers(fedit_on_paper: Callable[..., Paper]) -> None:
    masked, plain = (
        fedit_on_paper(mode, support="seeded-random-k", densities=TIERS) for mode in ("secure", "insecure")
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
def test_a_band_loses_a_client_and_is_the_mean_of_the_others(
    fedit_on_paper: Callable[..., Paper], phase: Any
) -> None:
    lost = Dropout(round=1, client_id="client-3", phase=phase, exchange=1)
    small = fedit_on_paper(support="server-topk", densities=SIX_TIERS, federation=SIX, dropouts=[lost])
    before, result = small.state.state, small.round()
    everybody = [f"client-{i}" for i in range(1, 7)]
    assert list(result.record.survivors) == everybody
    left = [c for c in everybody if c != "client-3"]
    first, middle, wide = indices(result)
    in_middle = everybody[1:] if phase == "confirm" else [c for c in left if c != "client-1"]
    in_wide = ["client-2", "client-5", "client-6"]
    require_means(small, before, result, {first: everybody, middle: in_middle, wide: in_wide})
    assert ("client-3", step_of(phase, 1)) in result.record.lost


def test_a_lost_band_costs_its_coordinates_and_the_next_one_goes_on(
    fedit_on_paper: Callable[..., Paper],
) -> None:
    """Of five in the middle band four must be in its sum, and three are; of the wide one three are enough."""
    lost = [Dropout(round=1, client_id=f"client-{i}", phase="mask", exchange=1) for i in (4, 6)]
    small = fedit_on_paper(support="seeded-random-k", densities=SIX_TIERS, federation=SIX, dropouts=lost)
    before, result = small.state.state, small.round()
    assert result.record.aborted is None
    assert [entry.transcript is None for entry in result.record.exchanges] == [False, True, False]
    first, wide = indices(result)
    everybody = [f"client-{i}" for i in range(1, 7)]
    require_means(small, before, result, {first: everybody, wide: ["client-2", "client-3", "client-5"]})
    again = small.round()
    assert again.record.aborted is None
    assert len(again.record.exchanges) == 3


def test_without_the_first_band_there_is_no_round(fedit_on_paper: Callable[..., Paper]) -> None:
    lost = [Dropout(round=1, client_id=f"client-{i}", phase="mask") for i in (1, 3)]
    small = fedit_on_paper(support="seeded-random-k", densities=TIERS, dropouts=lost)
    result = small.round()
    assert result.summed is None
    assert small.state.state is small.begun.state
    assert len(result.record.exchanges) == 1


@pytest.mark.parametrize("at", [7, 19, 28, 36])
def test_a_crash_anywhere_changes_nothing_of_the_result(
    fedit_on_paper: Callable[..., Paper], at: int
) -> None:
    whole = fedit_on_paper(support="seeded-random-k", densities=TIERS)
    broken = fedit_on_paper(support="seeded-random-k", densities=TIERS)
    whole.round()
    crash(broken, at)
    result = broken.round()
    assert result.record.aborted is None
    for name, array in whole.state.state.items():
        assert_array_equal(array, broken.state.state[name])
    assert broken.trainings == 5


# --- a server that plays with bands ----------------------------------------------------------------------


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
def test_a_thin_band_is_refused(fedit_on_paper: Callable[..., Paper], edit: Callable[[Any], Any]) -> None:
    """Fewer in its sum than hide one, another exchange, or more clients than send it: no word of an upload leaves."""
    small = fedit_on_paper(support="seeded-random-k", densities=TIERS)
    result = meddled(small, "announce", 1, thin(edit))
    assert {code for _, code in result.record.refused} == {"PolicyViolation"}
    assert result.summed is not None
    assert len(result.summed.parts) == 1
    for client in small.clients:
        (charge,) = client._setup.ledger.charges()
        assert {release.exchange for release in charge.releases} == {0}


def test_a_client_is_not_asked_for_what_only_others_send(fedit_on_paper: Callable[..., Paper]) -> None:
    small = fedit_on_paper(support="seeded-random-k", densities=TIERS)
    small.round()
    message = wire.encode(wire.Message(wire.EXCHANGE, {"exchange": 1}))
    assert wire.decode(small.clients[0].handle(message)) == REFUSED


@pytest.mark.parametrize("number", [0, 2, None, True, "1"])
def test_a_band_that_is_not_there_is_refused(fedit_on_paper: Callable[..., Paper], number: Any) -> None:
    small = fedit_on_paper(support="seeded-random-k", densities=TIERS)
    edit: Callable[[wire.Message], wire.Message] = lambda m: replace(m, fields={"exchange": number})  # noqa: E731  # short enough
    result = meddled(small, "announce", 1, edit)
    assert {code for _, code in result.record.refused} == {"FederationError"}


def test_a_band_before_the_first_sum_is_confirmed_is_refused(fedit_on_paper: Callable[..., Paper]) -> None:
    small = fedit_on_paper(support="seeded-random-k", densities=TIERS)
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
    fedit_on_paper: Callable[..., Paper], support: str
) -> None:
    small = fedit_on_paper(support=support, densities=TIERS)
    message = small.server.task(small.state).to_message(small.begun.state)
    client = small.clients[1]
    edited = [{**message.blobs, **wrong} for wrong in other_supports(message.blobs)]
    lacking = {name: blob for name, blob in message.blobs.items() if name != "support/1"}
    for blobs in (*edited, lacking):
        assert wire.decode(client.handle(wire.encode(replace(message, blobs=blobs)))) == REFUSED
        assert len(client._setup.ledger.rows()) == 1
    assert wire.decode(client.handle(wire.encode(message))).kind == wire.TRAINED


def test_tiers_begin_with_coordinates_drawn_by_the_seed(fedit_on_paper: Callable[..., Paper]) -> None:
    small = fedit_on_paper(support="server-topk", densities=TIERS, exploration=0.0)
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
