"""Rounds in which clients vote for what travels, coordinate by coordinate in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fedlora_priv.config_federation import Dropout
from fedlora_priv.engines.base import Step
from fedlora_priv.federation import checkpoint, wire
from fedlora_priv.federation.ballots import BallotChannel
from fedlora_priv.federation.checkpoint import History
from fedlora_priv.federation.session import client_policy, session_parameters
from fedlora_priv.methods import State
from protocols.secagg.session import VectorForm
from protocols.sparsify import Support, dense
from protocols.voting import value_exchange, value_policy

from .moves import D, change, indices, meddled, require_means
from .paper import Meddling, Paper, crash

REFUSED = wire.Message(wire.REFUSED, {"code": "FederationError"})

VOTED = {"support": "voted-topk", "density": 0.2}
K = -(-D // 5)


def most_voted(before: State, clients: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """How many of the clients have each coordinate among their K largest."""
    counts = np.zeros(D, int)
    for client_id in clients:
        counts[np.argsort(-np.abs(change(client_id, before).astype(np.float32)), kind="stable")[:K]] += 1
    order = np.sort(counts)[::-1]
    return counts, order[K - 1]


def test_what_most_vote_for_travels_and_moves_by_the_mean(fedit_on_paper: Callable[..., Paper]) -> None:
    small = fedit_on_paper(**VOTED)
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


def test_who_is_lost_before_it_voted_is_in_neither_sum(fedit_on_paper: Callable[..., Paper]) -> None:
    small = fedit_on_paper(**VOTED, dropouts=[Dropout(round=1, client_id="client-2", phase="mask")])
    before, result = small.state.state, small.round()
    left = ["client-1", "client-3", "client-4", "client-5"]
    assert list(result.record.survivors) == left
    assert result.summed is not None
    assert_array_equal(result.summed.parts[0].ring_sum, most_voted(before, left)[0])
    require_means(small, before, result, {indices(result)[0]: left})


def test_who_has_voted_and_is_lost_loses_the_round(fedit_on_paper: Callable[..., Paper]) -> None:
    small = fedit_on_paper(**VOTED, dropouts=[Dropout(round=1, client_id="client-2", phase="confirm")])
    result = small.round()
    assert result.record.aborted == "exchange 1 needs all 5 clients of the first one, and 4 were ready"
    assert small.state.state is small.begun.state
    assert small.state.voted is None


@pytest.mark.parametrize("at", [7, 19, 28, 40, 48])
def test_a_crash_anywhere_changes_nothing_of_a_vote(fedit_on_paper: Callable[..., Paper], at: int) -> None:
    whole, broken = fedit_on_paper(**VOTED), fedit_on_paper(**VOTED)
    whole.round()
    crash(broken, at)
    assert broken.round().record.aborted is None
    for name, array in whole.state.state.items():
        assert_array_equal(array, broken.state.state[name])
    for client in broken.clients:
        (charge,) = client._setup.ledger.charges()
        assert charge.announced_again == 0  # the same votes elect the same support


def test_a_support_is_kept_for_as_many_rounds_as_asked_for(
    fedit_on_paper: Callable[..., Paper], tmp_path: Path
) -> None:
    """Rounds 1 and 3 vote, also after the server's process has ended in between."""
    small = fedit_on_paper(**VOTED, vote_every=2)
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


def test_a_round_after_a_lost_vote_goes_on_with_what_there_is(fedit_on_paper: Callable[..., Paper]) -> None:
    """The first vote is lost, so round 2 has a random support; round 4 has what round 3 voted for."""
    lost = Dropout(round=1, client_id="client-2", phase="confirm")
    small = fedit_on_paper(**VOTED, vote_every=2, dropouts=[lost])
    small.round()
    before, result = small.state.state, small.round()
    (chosen,) = indices(result)
    assert len(chosen) == K
    require_means(small, before, result, {chosen: [f"client-{i}" for i in range(1, 6)]})
    assert small.state.voted is None


@pytest.mark.parametrize("more", [1, -1, 2**4 - 1])
def test_a_spoilt_vote_loses_the_round(fedit_on_paper: Callable[..., Paper], more: int) -> None:
    """A client that votes for one coordinate more or fewer than it may."""
    small = fedit_on_paper(**VOTED)
    real = BallotChannel.votes

    def cheat(channel: BallotChannel, update: Any) -> Any:
        ballot = real(channel, update)
        at = int(np.flatnonzero(ballot == (0 if more > 0 else 1))[0])
        ballot[at] = (int(ballot[at]) + more) % 2**channel.rules.modulus_bits
        return ballot

    client = small.clients[2]
    handle = client.handle

    def spoiling(data: bytes) -> bytes:
        BallotChannel.votes = cheat
        try:
            return handle(data)
        finally:
            BallotChannel.votes = real

    client.handle = spoiling
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
    fedit_on_paper: Callable[..., Paper], edit: Callable[[Support], bytes]
) -> None:
    small = fedit_on_paper(**VOTED)
    result = meddled(small, "announce", 1, announced_support(edit))
    assert {code for _, code in result.record.refused} == {"FederationError"}
    assert small.state.state is small.begun.state


def test_a_support_that_one_client_alone_was_told_gets_nothing_of_it(
    fedit_on_paper: Callable[..., Paper],
) -> None:
    small = fedit_on_paper(**VOTED)
    other = announced_support(lambda s: Support(D, np.sort(D - 1 - s.indices)).to_bytes())

    def meddle(step: Step, client_id: str, data: bytes) -> bytes:
        if (step.phase, step.exchange, client_id) != ("announce", 1, "client-1"):
            return data
        return wire.encode(other(wire.decode(data)))

    small.use(Meddling(small.clients, meddle))
    result = small.round()
    assert result.record.refused == [("client-1", "PolicyViolation")]
    assert result.summed is None


def test_the_server_does_not_choose_where_clients_vote(fedit_on_paper: Callable[..., Paper]) -> None:
    small = fedit_on_paper(**VOTED)
    task = small.server.task(small.state)
    message = task.to_message(small.begun.state)
    assert not message.blobs
    told = replace(message, blobs={"support": b"\x00"})
    assert wire.decode(small.clients[0].handle(wire.encode(told))) == REFUSED
    upload = wire.encode(wire.Message(wire.UPLOAD))
    assert wire.decode(small.clients[0].handle(wire.encode(message))).kind == wire.TRAINED
    assert wire.decode(small.clients[0].handle(upload)) == REFUSED


def test_the_exchange_after_a_vote_is_that_of_the_protocols(fedit_on_paper: Callable[..., Paper]) -> None:
    """What a federation proposes and accepts after any first sum is `protocols.voting`'s, to the last field."""
    experiment, form = fedit_on_paper(**VOTED).experiment, VectorForm(K, 19, 32767)
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
