"""The first spreads of an array that no sum has told anything of yet: made-up clients act a round out.

Before the first sum nothing is known of the uploads but what the experiment file says, so clients are acted out
whose trained arrays move by Gaussian steps of the planned size, from the public seed. For a later exchange they act
out the earlier ones too, announcements included: an upload that is projected on what the others' sum has shown is
larger than one that is projected on anything else.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.allocation.findings import Findings
from fedlora_priv.communication.scales import channel_shapes
from fedlora_priv.config import Experiment
from fedlora_priv.federation.course import travelling
from fedlora_priv.federation.trained import least_trained
from fedlora_priv.methods.base import Contract, Method, Shared
from fedlora_priv.methods.layout import Layout, State

CROWD = 3
"""So many clients act out the sums of earlier exchanges. Of more, each has less in common with the sum."""


def rehearsed_spreads(
    experiment: Experiment,
    layout: Layout,
    method: Method,
    state: State,
    *,
    round: int,
    findings: Findings,
    exchange: int,
    noise_multiplier: float,
) -> dict[str, NDArray[np.float64]]:
    """Return the spreads of an exchange's arrays by channel, from public values alone.

    Args:
        method: that of the round.
        state: the global state at its start.
        findings: up to that round.
        noise_multiplier: the largest of the clients' plans.
    """
    contract, shared = method.contract(layout), Shared(experiment.experiment.seed, round, rehearsal=True)
    start = method.start(layout, state, shared)
    # The signal of as long a gradient is spread over fewer coordinates where fewer are trained.
    d = least_trained(experiment, layout, method, round, findings)
    if experiment.communication.train == "support":
        d = travelling(experiment, contract, round)
    spread = planned_step(experiment, d, noise_multiplier)
    crowd = [
        made_up(layout, contract, start, spread, shared.seed, k) for k in range(CROWD if exchange else 1)
    ]
    sums: dict[str, NDArray[Any]] = {}
    while shared.exchange < exchange:
        for trained in crowd:
            for name, array in method.upload(layout, state, trained, shared).items():
                sums[name] = sums.get(name, 0.0) + array.astype(np.float64)
        announced = method.announce(layout, state, sums, len(crowd), shared) or {}
        shared = replace(shared, exchange=shared.exchange + 1, announced=announced)
    uploads = [method.upload(layout, state, trained, shared) for trained in crowd]
    by_channel = channel_shapes(layout, contract.exchange(exchange))
    found = {}
    for name, shape in by_channel.items():
        values = np.stack([upload[name] for upload in uploads]).astype(np.float64)
        across = tuple(i for i in range(values.ndim) if i == 0 or shape[i - 1] == 1)
        size = np.sqrt(np.mean(values**2, axis=across)).reshape(shape)
        found[name] = np.where(size > 0, size, spread)
    return found


def made_up(
    layout: Layout, contract: Contract, start: State, spread: float, seed: int, client: int
) -> Mapping[str, NDArray[np.float32]]:
    """Return what a made-up client has trained."""
    trained = dict(start)
    for name, array in start.items():
        if layout.role(name) in contract.trains:
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), client])
            trained[name] = (array + spread * rng.standard_normal(array.shape)).astype(np.float32)
    return trained


def planned_step(experiment: Experiment, d: int, noise_multiplier: float) -> float:
    """Return how far one of `d` trained coordinates is planned to move in a round (root mean square).

    SGD adds, per step, noise of standard deviation z·C/batch and a signal of norm at most about C, spread
    over them; Adam moves every coordinate by about the learning rate.
    """
    training, steps = experiment.training, experiment.federation.local_steps
    if training.optimizer == "adam":
        return training.learning_rate * steps
    noise = math.sqrt(steps) * noise_multiplier / training.batch_size
    return training.learning_rate * training.clip_norm * (noise + steps / math.sqrt(d))
