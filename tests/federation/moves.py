"""How far coordinates move in a round of FedIT on paper, and rounds whose messages are edited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.testing import assert_array_equal

from fedlora_priv.engines.base import Step
from fedlora_priv.federation import wire
from fedlora_priv.federation.ballots import BallotChannel
from fedlora_priv.federation.rounds import RoundResult
from fedlora_priv.methods import State
from fedlora_priv.methods.fedit import FedIT

from .paper import LAYOUT, Meddling, Paper, trained

CONTRACT = FedIT().contract(LAYOUT)
NAMES, D = list(CONTRACT.uploads), CONTRACT.dimension


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
