"""What a client trains: all that its method trains, with ``communication.train = "support"`` only what it sends, and
where layers are dealt out (`allocating`) only its own.

Which coordinates a client sends in a round is public before it trains: the round's message says it, and its digest is
in the masks. So a client can train those alone, and its noise has as many dimensions as travel instead of as many as
there are. With tiers each client has its own: what its tier sends.

A server chooses supports from what was released before, so each step is an adaptive composition of mechanisms that are
charged in full, whatever it chooses; what hostile choices could do to clipping, `state_check` looks at.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.allocation import Allocation
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.federation.allocating import all_rounds, allocation, allocations, presumed
from fedlora_priv.federation.course import Leg, travelling
from fedlora_priv.federation.task import RoundTask
from fedlora_priv.federation.vectors import unflatten
from fedlora_priv.methods.base import Contract, Method
from fedlora_priv.methods.layout import Layout, Role, Shapes
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


def part_of(
    experiment: Experiment, layout: Layout, method: Method, task: RoundTask, client_id: str
) -> Marked | None:
    """Return the coordinates of its own layers, and of the head, for a client that trains some layers; else None.

    Args:
        layout: of the federation.
        method: of that round, as that client has it.
    """
    dealt = allocation(experiment, layout, task.round, task.findings)
    if dealt is None:
        return None
    return marked(method.shapes(layout), layout, method.contract(layout).trains, dealt.trains(client_id))


def extremes(experiment: Experiment, layout: Layout, clients: Sequence[str]) -> list[frozenset[str]]:
    """Return the smallest and the largest part, as names of modules, that one of these clients trains in some round.

    Where layers are scored during the run these are parts that it would train if all were worth the same.

    Returns:
        Both, or one where they are the same; nothing where everybody trains everything.
    """
    found = allocations(experiment, layout, all_rounds(experiment, presumed(experiment, layout)))
    parts = [dealt.trains(client_id) for dealt in found for client_id in clients]
    return list(dict.fromkeys([min(parts, key=len), max(parts, key=len)])) if parts else []


def marked(shapes: Shapes, layout: Layout, roles: frozenset[Role], held: frozenset[str]) -> Marked | None:
    """Return the coordinates of these modules, and of the head, in arrays of some roles; None if that is all of them.

    Args:
        shapes: of the arrays that a client has.
        layout: which modules there are.
    """
    if len(held) == len(layout.modules):
        return None
    return {
        name: np.full(shape, layout.belongs(name, held))
        for name, shape in shapes.items()
        if layout.role(name) in roles
    }


def trained_size(
    method: Method, own: Layout, roles: frozenset[Role], held: frozenset[str] | None = None
) -> int:
    """Return how many coordinates a client trains, clips and noises, whether they travel or not.

    Args:
        own: the layout of its own model.
        held: names of the modules that it trains; None for all.
    """
    shapes = method.at_client(own).shapes(own)
    return sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if own.role(name) in roles and (held is None or own.belongs(name, held))
    )


def least_trained(
    experiment: Experiment, layout: Layout, method: Method, round: int, findings: Findings
) -> int:
    """Return how many coordinates the client trains that trains the fewest in a round."""
    dealt = allocation(experiment, layout, round, findings)
    if dealt is None:
        return trained_size(method, layout, method.contract(layout).trains)
    return min(part_size(method, layout, dealt, client_id) for client_id in dealt.parts)


def part_size(method: Method, layout: Layout, dealt: Allocation, client_id: str) -> int:
    """Return how many coordinates a client of an allocation trains, by the method of its round."""
    roles, own = method.contract(layout).trains, dealt.own(layout, client_id) or layout
    return trained_size(method, own, roles, dealt.trains(client_id))


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
