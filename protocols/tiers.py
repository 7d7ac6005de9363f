"""Supports for clients of different means: each tier's support is part of the next one's, so that sums stay exact.

    tier        0 (narrow)   1          2 (wide)
    support     S0        ⊂  S1      ⊂  S2
    band        S0           S1 − S0    S2 − S1
    summed of   everybody    tiers 1, 2 tier 2

A coordinate's band says who sends it, so the number of terms in its sum is public and the mean is exact: the sum
divided by that count. Supports that were not nested would split the coordinates into up to 2^tiers sets of senders,
most of them small; and who sends what is told by the sum itself where a set is one client.

*One session a band*, with the clients of that band as its roster, makes a narrow client pay for what it sends and
no more. *One session of all*, with `Tiers.groups`, has one set of keys, but every masked vector is as long as the
widest support. `fedlora_priv.communication.meter` says which is fewer bytes.

Every band is a sum of its own, so each needs `min_contributors` clients: a band that the widest client has for
itself would be its update in the clear.

Source: the density tiers of FLASC (Kuo et al. 2024), which there are each client's own top-k, made nested and shared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import SupportError
from protocols.secagg.session import CoordinateGroup
from protocols.sparsify import Support, public_words, smallest


@dataclass(frozen=True)
class Band:
    """Coordinates that the same clients send: `support`, and those clients in roster order."""

    support: Support
    clients: tuple[str, ...]


@dataclass(frozen=True)
class Tiers:
    """Nested supports, and which client has which.

    Args:
        supports: from the narrowest to the widest, each a proper part of the next.
        tier_of: for every client, in roster order, the index of its support. Public.

    Raises:
        SupportError: the supports are not nested, or a client has none of them, or nobody has the widest.

    Example:
        >>> narrow, wide = Support(4, np.array([1])), Support(4, np.array([1, 3]))
        >>> tiers = Tiers((narrow, wide), {"ada": 0, "bob": 1, "eve": 1})
        >>> [(band.support.indices.tolist(), band.clients) for band in tiers.bands]
        [([1], ('ada', 'bob', 'eve')), ([3], ('bob', 'eve'))]
        >>> parts = [np.array([6.0]), np.array([8.0])]
        >>> tiers.mean(parts, [band.clients for band in tiers.bands])
        array([0., 2., 0., 4.])
    """

    supports: tuple[Support, ...]
    tier_of: Mapping[str, int]

    def __post_init__(self) -> None:
        if not self.supports or not self.tier_of:
            raise SupportError("tiers are at least one support and one client")
        for narrow, wide in itertools.pairwise(self.supports):
            if narrow.dimension != wide.dimension or len(narrow) >= len(wide):
                raise SupportError("tiers go from the narrowest support to the widest, of one dimension")
            if not np.isin(narrow.indices, wide.indices, assume_unique=True).all():
                raise SupportError(
                    "a tier's support must be part of the next wider one's: choose them nested"
                )
        chosen = set(self.tier_of.values())
        if not chosen <= set(range(len(self.supports))):
            raise SupportError(f"a client has no tier of 0 to {len(self.supports) - 1}")
        if len(self.supports) - 1 not in chosen:
            raise SupportError("no client has the widest support: leave it out")

    @property
    def dimension(self) -> int:
        """Coordinates before any are left out."""
        return self.supports[0].dimension

    @property
    def bands(self) -> tuple[Band, ...]:
        """The coordinates that each tier adds to the one before, with the clients that send them."""
        bands, inner = [], np.zeros(0, dtype=np.int64)
        for tier, support in enumerate(self.supports):
            added = np.setdiff1d(support.indices, inner, assume_unique=True)
            clients = tuple(client_id for client_id, its in self.tier_of.items() if its >= tier)
            bands.append(Band(Support(self.dimension, added), clients))
            inner = support.indices
        return tuple(bands)

    def support_of(self, client_id: str) -> Support:
        """Return what that client sends, in all its bands together.

        Raises:
            SupportError: the client has no tier.
        """
        return self.supports[self._tier(client_id)]

    def require_hidden(self, min_contributors: int) -> None:
        """Return if every band has that many clients.

        Raises:
            SupportError: names the first band that has fewer: its sum would say too much of one of them.
        """
        for tier, band in enumerate(self.bands):
            if len(band.clients) < min_contributors:
                raise SupportError(
                    f"only {len(band.clients)} clients send what tier {tier} adds, and a sum needs {min_contributors}: "
                    "put more clients into the wide tiers, or leave the widest out"
                )

    # one session for each band

    def parts(self, client_id: str, vector: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Return what a client sends in each of its bands' sessions, from its vector of shape (dimension,)."""
        return tuple(band.support.take(vector) for band in self.bands[: self._tier(client_id) + 1])

    def join(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the vector of shape (dimension,) of the bands' sums; zero where nothing travelled."""
        bands = self.bands
        if len(parts) != len(bands):
            raise SupportError(f"there are {len(bands)} bands, and not {len(parts)} sums")
        scattered = [band.support.scatter(part) for band, part in zip(bands, parts, strict=True)]
        joined: NDArray[Any] = np.sum(scattered, axis=0)
        return joined

    def counts(self, survivors: Sequence[Collection[str]]) -> NDArray[np.int64]:
        """Return of how many clients each coordinate is a sum, int64 of shape (dimension,); public.

        Args:
            survivors: who is in each band's sum. A band whose sum was lost has nobody.

        Raises:
            SupportError: not one set for each band, or somebody survived where he does not send.
        """
        bands = self.bands
        if len(survivors) != len(bands):
            raise SupportError(f"there are {len(bands)} bands, and not {len(survivors)} sets of survivors")
        counts = np.zeros(self.dimension, dtype=np.int64)
        for band, there in zip(bands, survivors, strict=True):
            if not set(there) <= set(band.clients):
                raise SupportError("a client survived in a band that it does not send")
            counts[band.support.indices] = len(set(there))
        return counts

    def mean(
        self, parts: Sequence[NDArray[np.float64]], survivors: Sequence[Collection[str]]
    ) -> NDArray[np.float64]:
        """Return each coordinate's mean over those who sent it, float64 of shape (dimension,); zero where nobody did.

        Args:
            parts: the sums by band.
        """
        counts = self.counts(survivors)
        return np.where(counts > 0, self.join(parts) / np.maximum(counts, 1), 0.0)

    # one session of all

    def groups(self) -> tuple[CoordinateGroup, ...]:
        """Return who contributes where, in a session over all clients whose vectors are in the order of `line_up`."""
        index_of = {client_id: index for index, client_id in enumerate(self.tier_of)}
        groups, start = [], 0
        for band in self.bands:
            contributors = tuple(index_of[client_id] for client_id in band.clients)
            groups.append(CoordinateGroup(start, start + len(band.support), contributors))
            start += len(band.support)
        return tuple(groups)

    def line_up(self, client_id: str, vector: NDArray[Any]) -> NDArray[Any]:
        """Return a client's vector for a session of all: band by band, zeros in the bands that it does not send."""
        parts = self.parts(client_id, vector)
        missing = [np.zeros(len(band.support), vector.dtype) for band in self.bands[len(parts) :]]
        return np.concatenate([*parts, *missing])

    def cut(self, lined_up: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Return the bands' sums of a session of all."""
        ends = np.cumsum([len(band.support) for band in self.bands])
        if lined_up.shape != (int(ends[-1]),):
            raise SupportError(f"the sum of all bands has {int(ends[-1])} entries, not {lined_up.shape}")
        return tuple(np.split(lined_up, ends[:-1]))

    def _tier(self, client_id: str) -> int:
        """Return the index of a client's support."""
        if client_id not in self.tier_of:
            raise SupportError(f"{client_id!r} has no tier")
        return self.tier_of[client_id]


def nested_topk(
    scores: NDArray[np.floating[Any]], sizes: Iterable[int], exploration_fraction: float, seed: bytes
) -> tuple[Support, ...]:
    """Return one support for each size, each part of the next: the highest public `scores`, and some at random.

    As `server_topk` chooses one, but `server_topk` for two sizes explores two unrelated sets, and takes the lower
    index of equal scores. Here the random order decides between these, and the next support
    takes all of the one before, then what is missing of its own highest scores, then coordinates in one random order:
    what a narrow support explored counts as explored in a wide one. Scores that are all the same and a fraction of 1
    give nested random supports; scores of infinity are in every support.

    Args:
        sizes: how many coordinates each has, increasing.

    Raises:
        SupportError: a NaN score, sizes that do not increase within [1, d], or a fraction not in [0, 1].

    Example:
        >>> two = nested_topk(np.array([5.0, 0.0, 9.0, 1.0]), (1, 3), 0.0, b"round 1")
        >>> [support.indices.tolist() for support in two]
        [[2], [0, 2, 3]]
    """
    wanted = list(sizes)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise SupportError("scores are a vector without NaN")
    if not wanted or wanted[0] < 1 or wanted[-1] > scores.size or sorted(set(wanted)) != wanted:
        raise SupportError(f"the sizes of nested supports increase, from 1 to at most {scores.size}")
    if not 0.0 <= exploration_fraction <= 1.0:
        raise SupportError(f"the exploration fraction must be in [0, 1], not {exploration_fraction}")
    chosen, order = np.zeros(scores.size, dtype=np.bool_), public_words(b"nested/" + seed, scores.size)
    by_order, supports = np.argsort(order, kind="stable"), []
    for k in wanted:
        # At most k are chosen after this: of the last support, no more than it explored are not among these.
        best = smallest(-scores[by_order].astype(np.float64), k - math.ceil(k * exploration_fraction))
        chosen[by_order[best]] = True
        rest = np.flatnonzero(~chosen)
        chosen[rest[smallest(order[rest], k - int(np.count_nonzero(chosen)))]] = True
        supports.append(Support(scores.size, np.flatnonzero(chosen)))
    return tuple(supports)
