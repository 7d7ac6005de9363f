"""What a client trains: all that its method trains, or with ``communication.train = "support"`` only what it sends.

Which coordinates a client sends in a round is public before it trains: the round's message says it, and its digest is
in the masks. So a client can train those alone, and its noise has as many dimensions as travel instead of as many as
there are. With tiers each client has its own: what its tier sends.

A server chooses supports from what was released before, so each step is an adaptive composition of mechanisms that are
charged in full, whatever it chooses; what hostile choices could do to clipping, `state_check` looks at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.config import Experiment
from fedlora_priv.federation.course import Leg, travelling
from fedlora_priv.federation.task import RoundTask
from fedlora_priv.federation.vectors import unflatten
from fedlora_priv.methods.base import Contract
from protocols.sparsify import seeded_random_k

Marked = Mapping[str, NDArray[np.bool_]]
"""By name, which coordinates of each array are meant."""


def support_of(experiment: Experiment, task: RoundTask, client_id: str) -> Marked | None:
    """Return the coordinates that a client trains in a round, those that it sends; None for all of them."""
    if experiment.communication.train == "all":
        return None
    channels = [exchange.values for exchange in task.known if sends(exchange.leg, client_id)]
    flat = np.zeros(channels[0].dimension, dtype=np.bool_)
    for channel in channels:
        flat[channel.support.indices] = True
    return unflatten(channels[0].shapes, flat)


def sends(leg: Leg, client_id: str) -> bool:
    """Whether a client has a part in an exchange."""
    return leg.senders is None or client_id in leg.senders


def made_up_support(experiment: Experiment, contract: Contract) -> Marked | None:
    """Return coordinates for a rehearsal, as many as travel in a last round, drawn by a public seed; None for all."""
    if experiment.communication.train == "all":
        return None
    k = travelling(experiment, contract, experiment.federation.rounds)
    support = seeded_random_k(contract.dimension, k, b"rehearsal")
    flat = np.zeros(contract.dimension, dtype=np.bool_)
    flat[support.indices] = True
    return unflatten(contract.uploads, flat)


def update_key(task: RoundTask, support: Marked | None) -> bytes:
    """Return 32 bytes that differ whenever the start of a training differs, or what it trains.

    An update of this start is of use for no other support: elsewhere it has not moved.
    """
    if support is None:
        return task.state_digest
    hashed = hashlib.sha256(b"fedlora-priv trained part v1" + task.state_digest)
    for name, marked in support.items():
        hashed.update(
            hashlib.sha256(f"{name} {marked.shape}\n".encode() + np.packbits(marked).tobytes()).digest()
        )
    return hashed.digest()
