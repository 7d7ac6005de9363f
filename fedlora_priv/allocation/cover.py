"""Enough clients for every layer, also when some are lost.

A layer trained by fewer than `min_contributors` survivors is never summed: the session aborts, and the round with
it. So an allocator deals with losses in mind, and where chance or scores leave a layer thin, layers are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.allocation.base import Draw
from fedlora_priv.allocation.errors import AllocationError, ThinLayer
from protocols.secagg.parameters import binomial_tail

MOST_HOLDERS = 2**16
"""No session has more clients."""


def holders_needed(
    min_contributors: int, dropout_rate: float, failure_probability: float, groups: int
) -> int:
    """Return how many clients each of `groups` layers or components must have.

    With that many, the probability that any of them is left with fewer than `min_contributors` survivors is at most
    `failure_probability`, if each client is lost with probability `dropout_rate`, independently of the others (a union
    bound over the groups, so clients may be in several).

    Raises:
        AllocationError: a value out of range, or no number of clients is enough.

    Example:
        >>> holders_needed(3, dropout_rate=0.1, failure_probability=0.01, groups=12)
        7
    """
    if min_contributors < 1 or groups < 1:
        raise AllocationError("min_contributors and groups must be at least 1", "count again")
    if not (0 <= dropout_rate < 1 and 0 < failure_probability < 1):
        raise AllocationError("dropout_rate must be in [0, 1), failure_probability in (0, 1)", "change them")
    for holders in range(min_contributors, MOST_HOLDERS):
        fails = binomial_tail(holders, dropout_rate, holders - min_contributors + 1)
        if groups * fails <= failure_probability:
            return holders
    raise AllocationError(f"a loss of {dropout_rate:.0%} leaves no number of clients enough", "lose fewer")


def covered(
    chosen: Mapping[str, Sequence[int]],
    layers: int,
    needed: int,
    fits: Callable[[str, Sequence[int]], bool],
    draw: Draw,
) -> dict[str, list[int]]:
    """Return the chosen layers with as few exchanged as it takes to give every layer `needed` clients.

    A client gives up a layer that has more than it needs for one that has too few, or several where the one that it
    takes needs the room of several. Those who give up the fewest come first, and among them lots are drawn. Where any
    client may train any layer, each keeps its number of layers, and this succeeds exactly if the clients together train
    at least `needed` times `layers` and there are `needed` of them: while a layer is short another has more than
    `needed`, so somebody holds that one and not the short one. With other limits it may fail where a way exists.

    Args:
        fits: whether a client can train these layers.

    Raises:
        ThinLayer: a layer stays short.
    """
    dealt = {client_id: frozenset(held) for client_id, held in chosen.items()}
    counts, exchanges = _counts(dealt, layers), 0
    while (counts < needed).any():
        short, lots = int(counts.argmin()), draw(f"exchange/{exchanges}", layers + 1)
        spare = sorted(np.flatnonzero(counts > needed).tolist(), key=lambda i: (-counts[i], lots[i]))
        offers = {
            client_id: offer
            for client_id, held in dealt.items()
            if short not in held and (offer := _exchanged(held, short, spare, partial(fits, client_id)))
        }
        if not offers:
            held, wanted = int(counts.sum()), needed * layers
            why = f": together they train {held} layers, and it takes {wanted}" if held < wanted else ""
            raise ThinLayer(
                f"layer {short} is left with {counts[short]} of at least {needed} clients{why}",
                "give more clients room for it, or ask for fewer holders",
            )
        fewest = min(len(dealt[client_id] - offer) for client_id, offer in offers.items())
        willing = [c for c, offer in offers.items() if len(dealt[c] - offer) == fewest]
        client_id = willing[int(np.ceil(lots[-1] * len(willing))) - 1]
        dealt[client_id] = offers[client_id]
        counts, exchanges = _counts(dealt, layers), exchanges + 1
    return {client_id: sorted(held) for client_id, held in dealt.items()}


def _exchanged(
    held: frozenset[int], short: int, spare: Sequence[int], fits: Callable[[Sequence[int]], bool]
) -> frozenset[int] | None:
    """Return what a client would hold that takes the short layer for the fewest spare ones, or None."""
    kept = held | {short}
    for layer in [layer for layer in spare if layer in held]:
        kept -= {layer}
        if fits(sorted(kept)):
            return kept
    return None


def _counts(dealt: Mapping[str, frozenset[int]], layers: int) -> NDArray[np.int64]:
    """Return how many clients hold each layer."""
    every = [layer for held in dealt.values() for layer in held]
    return np.bincount(np.array(every, dtype=np.int64), minlength=layers)
