"""What allocations ask of clients over a whole run: memory and time by tier, and how thin the thinnest sum is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedlora_priv.allocation import Allocation, Profile
from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.federation import allocating
from fedlora_priv.federation.session import min_contributors
from fedlora_priv.federation.trained import part_size
from fedlora_priv.methods.base import Method
from fedlora_priv.methods.layout import Layout


def asked_of_clients(
    experiment: Experiment, layout: Layout, method: Method, found: Mapping[int, Findings]
) -> dict[str, Any] | None:
    """Return as JSON values what a plan says of its allocations; None where everybody trains everything.

    fewest: the fewest clients that a layer or component has in any round, with the first such place; a sum needs
    `min_contributors` survivors of them, and no allocation of this experiment has fewer than `holders`. tiers: what
    clients that declare the same have, and the most that any round asks of one of them, coordinates being those that
    the method trains; None where nothing was declared. known_rounds: of how many rounds all this is certain; after
    them layers are scored again or, if `pruned`, clients give up components.

    Raises:
        AllocationError: a round has no allocation.
    """
    rounds = allocating.allocations(experiment, layout, found)
    if not rounds:
        return None
    thin = min(rounds, key=lambda dealt: min(dealt.places()).clients)  # the first of several
    return {
        "min_contributors": min_contributors(experiment),
        "holders": allocating.holders(experiment, layout),
        "known_rounds": experiment.allocation.known_rounds(len(rounds)),
        "pruned": experiment.allocation.pruning is not None,
        "fewest": {"round": thin.round, **asdict(min(thin.places()))},
        "tiers": list(_tiers(experiment, layout, method, rounds)),
    }


def _tiers(
    experiment: Experiment, layout: Layout, method: Method, rounds: Sequence[Allocation]
) -> Iterator[dict[str, Any]]:
    """Yield each tier: clients with the same profile."""
    cost = allocating.cost_model(experiment, layout)
    tiers: dict[Profile, list[str]] = {}
    for client_id, profile in allocating.profiles(experiment).items():
        tiers.setdefault(profile, []).append(client_id)
    asked = experiment.allocation.cost
    for profile, clients in tiers.items():
        trained = {
            (one.parts[client_id], method.at(one.round)): (one, client_id)
            for one in rounds
            for client_id in clients
        }
        parts = {part for part, _ in trained}
        sizes = [len(part.layers) for part in parts]
        memory = max(cost.memory_bytes(part.layers, part.rank) for part in parts)
        seconds = max(cost.seconds(profile, part.layers, part.rank) for part in parts)
        yield {
            "clients": clients,
            "layers": [min(sizes), max(sizes)],
            "rank": max(part.rank for part in parts),
            "coordinates": max(
                part_size(phase, layout, one, client_id) for (_, phase), (one, client_id) in trained.items()
            ),
            "memory_bytes": memory if asked.has_memory else None,
            "has_bytes": None if math.isinf(profile.memory_bytes) else profile.memory_bytes,
            "round_s": seconds if asked.has_time or asked.round_s else None,
            "has_s": asked.round_s,
        }
