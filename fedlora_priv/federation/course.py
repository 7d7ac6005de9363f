"""The course of a round: which exchanges it has, who sends what in each, and how many coordinates that is.

    support                     exchanges
    public, one density         the method's own, in the first of which some coordinates may be left out; ranked ones
                                (server-topk) begin with a whole round
    public, densities by tier   one for each band: 0 from everybody, then what each wider tier adds, from that tier on
    voted-topk, a round that    0: ballots, on every coordinate; 1: the values on what won
    votes
    voted-topk, other rounds    one, on the support that was kept

Everything here follows from the experiment file and the method's contract, so clients know it before a server says
anything, and plans and reports state it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass

from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.communication.meter import Carries
from fedlora_priv.config import Experiment
from fedlora_priv.methods import phases
from fedlora_priv.methods.base import Contract, Method
from fedlora_priv.methods.layout import Layout
from protocols.voting import VoteRules


@dataclass(frozen=True)
class Leg:
    """One exchange of a round as it is planned.

    Args:
        carries: what is summed.
        upload: which of the method's uploads it is of, 0-based.
        dimension: coordinates of that upload.
        coordinates: how many of them travel here.
        senders: of what wider tiers add: who sends it, in roster order. None for everything else.
    """

    carries: Carries
    upload: int
    dimension: int
    coordinates: int
    senders: tuple[str, ...] | None = None

    @property
    def is_band(self) -> bool:
        """Whether it is of some clients only, who were in the first sum, on coordinates of its own."""
        return self.senders is not None


def course(experiment: Experiment, contract: Contract, round: int) -> tuple[Leg, ...]:
    """Return the exchanges that a round with this contract has at most, in order.

    Raises:
        CommunicationError: two densities leave as many coordinates.
    """
    d = contract.dimension
    if votes(experiment, round):
        return Leg("votes", 0, d, d), Leg("values", 0, d, travelling(experiment, contract, round))
    sizes = tier_sizes(experiment, contract, round)
    first = Leg("values", 0, d, sizes[0])
    bands = (
        Leg("values", 0, d, wide - narrow, senders)
        for (narrow, wide), senders in zip(
            itertools.pairwise(sizes), band_senders(experiment)[1:], strict=True
        )
    )
    later = (Leg("values", j, contract.size(j), contract.size(j)) for j in range(1, contract.exchanges))
    return (first, *bands, *later)


def courses(
    experiment: Experiment, method: Method, layout: Layout, rounds: Collection[int]
) -> list[tuple[Method, tuple[Leg, ...], list[int]]]:
    """Return what these rounds of a run are, each once: the method and the exchanges, and the numbers of its rounds."""
    found: dict[tuple[int, tuple[Leg, ...]], tuple[Method, tuple[Leg, ...], list[int]]] = {}
    for phase, numbers in phases(method, experiment.federation.rounds):
        contract = phase.contract(layout)
        for number in (number for number in numbers if number in rounds):
            legs = course(experiment, contract, number)
            found.setdefault((id(phase), legs), (phase, legs, []))[2].append(number)
    return list(found.values())


def votes(experiment: Experiment, round: int) -> bool:
    """Whether clients vote in that round."""
    communication = experiment.communication
    return communication.support == "voted-topk" and (round - 1) % communication.vote_every == 0


def vote_rules(experiment: Experiment, contract: Contract, round: int) -> VoteRules:
    """Return the public rules of that round's vote: as many votes each as coordinates win."""
    k = travelling(experiment, contract, round)
    return VoteRules(
        dimension=contract.dimension,
        votes=k,
        size=k,
        max_clients=experiment.federation.clients,
        tie_seed=public_seed(experiment, round),
    )


def public_seed(experiment: Experiment, round: int) -> bytes:
    """Return the seed of everything about supports that is drawn in that round."""
    return f"{experiment.experiment.seed}/{round}".encode()


def travelling(experiment: Experiment, contract: Contract, round: int) -> int:
    """Return how many of a round's first coordinates the widest tier sends: all, where none may be left out."""
    return tier_sizes(experiment, contract, round)[-1]


def whole_rounds(experiment: Experiment) -> int:
    """Return how many rounds at the beginning send everything, for want of sums to rank coordinates by."""
    communication = experiment.communication
    if communication.support != "server-topk" or communication.densities:
        return 0
    if communication.whole_rounds is not None:
        return communication.whole_rounds
    return min(1, experiment.federation.rounds - 1)


def tier_sizes(experiment: Experiment, contract: Contract, round: int) -> tuple[int, ...]:
    """Return how many of a round's first coordinates travel in each tier, the narrowest first.

    Raises:
        CommunicationError: two densities leave as many.
    """
    d = contract.dimension
    if contract.travels_whole or round <= whole_rounds(experiment):
        return (d,)
    densities = experiment.communication.tiers
    sizes = tuple(max(1, math.ceil(density * d)) for density in densities)
    if d and len(set(sizes)) < len(sizes):
        raise CommunicationError(
            f"the densities {', '.join(f'{density:g}' for density in densities)} leave {sizes} of {d} coordinates",
            "choose densities further apart",
        )
    return sizes


def band_senders(experiment: Experiment) -> tuple[tuple[str, ...], ...]:
    """Return who sends each band, in roster order: everybody the first, whoever has that density or more the others."""
    communication, everybody = experiment.communication, experiment.client_ids
    mine = dict(zip(everybody, communication.densities, strict=False))
    return (
        everybody,
        *(
            tuple(client_id for client_id in everybody if mine[client_id] >= density)
            for density in communication.tiers[1:]
        ),
    )
