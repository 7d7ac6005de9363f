"""Supports that are drawn or ranked: who draws them, what they begin with, and that a mean over them is unbiased."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedlora_priv.config import Experiment
from fedlora_priv.federation import wire
from fedlora_priv.federation.exchange import ExchangeSum, Summed
from fedlora_priv.federation.server import FederationServer
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.optimizers import Average
from protocols.prg import SecretStream
from protocols.sparsify import Support

from .moves import D, flat
from .paper import LAYOUT, Paper, initial_state

TOML = '[experiment]\nname = "mix"\n[data]\npublic = true\n[privacy]\nepsilon = 8.0\n'
REFUSED = wire.Message(wire.REFUSED, {"code": "FederationError"})


@pytest.mark.parametrize("support", ["seeded-random-k", "server-topk"])
def test_a_client_draws_random_supports_itself(fedit_on_paper: Callable[..., Paper], support: str) -> None:
    """Another support of the right size is taken where only the server can know better."""
    small = fedit_on_paper(
        support=support, density=0.25, **({"whole_rounds": 0} if support == "server-topk" else {})
    )
    message = small.server.task(small.state).to_message(small.begun.state)
    other = {"support": Support(D, np.arange(-(-D // 4))).to_bytes()}
    edited = replace(message, blobs={**message.blobs, **other})
    answer = wire.decode(small.clients[0].handle(wire.encode(edited)))
    assert (answer == REFUSED) == (support == "seeded-random-k")


@pytest.mark.parametrize(("given", "whole"), [({}, 1), ({"whole_rounds": 0}, 0), ({"whole_rounds": 2}, 2)])
def test_ranked_supports_begin_with_whole_rounds(
    fedit_on_paper: Callable[..., Paper], given: dict[str, int], whole: int
) -> None:
    """Nothing ranks coordinates before the first sum; clients hold the server to how many rounds send everything."""
    small = fedit_on_paper(support="server-topk", density=0.25, **given)
    quarter = -(-D // 4)
    for number in (1, 2, 3):
        task = small.server.task(replace(small.state, round=number - 1))
        assert len(task.first.values.support) == (D if number <= whole else quarter)
    message = small.server.task(small.state).to_message(small.begun.state)
    other = Support(D, np.arange(quarter if whole else D)).to_bytes()
    edited = replace(message, blobs={**message.blobs, "support": other})
    assert wire.decode(small.clients[0].handle(wire.encode(edited))) == REFUSED
    assert wire.decode(small.clients[0].handle(wire.encode(message))).kind == wire.TRAINED


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
