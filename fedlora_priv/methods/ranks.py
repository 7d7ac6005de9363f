"""Clients of unequal ranks and scalings, written in the federation's so that they can be summed.

The global state holds the largest rank r, its components in falling order. A client of rank rₖ and scaling sₖ starts
from the first rₖ of them, P_k: A = P_k·A₀, and B = B₀·P_k times s/sₖ. Before it uploads, it writes its factors in the
federation's rank and scaling: B times sₖ/s, zeros beyond rₖ. Its changes are then zero beyond rₖ, and with the notation
of `fedlora_priv.methods.crossterm`

    mean(sₖBₖAₖ) = s·(B̄Ā + C) − s·B₀(I − P̄)A₀,   P̄ = mean of the P_k

where the last term is what the smaller clients never had. P̄ comes from counts, r ones and zeros a module that travel
with the rest: how many survivors hold each component. Ranks are public (the federation assigned them), so are these.
With one rank for all, P̄ = I.

The head must be common to all. A client with a rank above the federation's, or another shape, is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.base import Contract, Method, Shared, Sums
from fedlora_priv.methods.crossterm import CrossTerm, Released
from fedlora_priv.methods.errors import AssumptionError, SumError
from fedlora_priv.methods.fullrank import FullRank
from fedlora_priv.methods.layout import Layout, LoraModule, Shapes, State
from fedlora_priv.methods.thin import Array, Group, Thin, factors, require_rank_fits


@dataclass(frozen=True)
class RaggedReleased(Released):
    """Sums over clients that each held the first components of the state, counted under ``<module>.held_by``."""

    def shares(self) -> Array:
        """Return the diagonal of P̄, (L, 1, r): the fraction of survivors that held each component.

        Raises:
            SumError: nobody trained a module, or the counts are none.
        """
        counts = [read_counts(module, self.sums[count_name(module)], self.n) for module in self.group]
        return np.stack(counts)[:, None, :] / self.n

    def start(self) -> Thin:
        """Return the mean of what the clients started from, B₀P̄·A₀."""
        whole = factors(self.group, self.state)
        return Thin(whole.left * self.shares(), whole.right)

    def linear(self) -> Thin:
        """Return B̄Ā − B₀(I − P̄)A₀."""
        whole = factors(self.group, self.state)
        return super().linear() + Thin(whole.left * (self.shares() - 1.0), whole.right)


class OfOwnRank(Method):
    """Base of methods whose clients may have smaller ranks than the federation, and other scalings.

    Attributes:
        own: the layout of this client's own model; None for the server, or where all ranks are the same.
    """

    own: Layout | None

    def at_client(self, own: Layout) -> Method:
        """Return the method of a client with that model of its own."""
        mine = copy.copy(self)
        mine.own = own
        return mine

    def start(self, layout: Layout, state: State, shared: Shared) -> State:
        """Return this client's first components of the global state, in its own scaling."""
        mine = dict(super().start(layout, state, shared))
        for module, own in pairs(layout, self.own):
            mine |= first_components(module, own, state)
        return mine

    def shapes(self, layout: Layout) -> Shapes:
        """Return the shapes of this client's own arrays."""
        return (self.own or layout).shapes()

    def _accept_module(self, module: LoraModule, own: LoraModule | None) -> None:
        """Raise AssumptionError unless shapes are the same and the rank no larger; scalings may differ."""
        super()._accept_module(module, own and as_if_equal(module, own))

    def _require(self, layout: Layout) -> None:
        """Raise AssumptionError unless ranks fit, and this client's own model does."""
        require_rank_fits(layout)
        if self.own is not None:
            self.accept(layout, self.own)
            require_rank_fits(self.own)


class Ragged(OfOwnRank, FullRank):
    """Base of full-rank methods that take clients of unequal ranks.

    Args:
        own: see `OfOwnRank`.
        cross: how the mean of the products is had.
    """

    def __init__(self, own: Layout | None, cross: CrossTerm) -> None:
        super().__init__(cross)
        self.own = own

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: what `FullRank` uploads, and a count for each component."""
        plain = super().contract(layout)
        counts = {count_name(m): (m.rank,) for m in layout.modules}
        uploads = dict(sorted((dict(plain.uploads) | counts).items()))
        # At a bound of exactly 1 the wire carries ones and zeros without rounding, so counts stay counts.
        return replace(plain, uploads=uploads, limits=dict.fromkeys(counts, 1.0), travels_whole=True)

    def _upload(
        self, layout: Layout, start: State, trained: State, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return what `FullRank` uploads, and in the first exchange which components this client holds."""
        arrays = dict(super()._upload(layout, start, trained, shared))
        if shared.exchange == 0:
            arrays |= {
                count_name(m): (np.arange(m.rank) < own.rank).astype(float)
                for m, own in pairs(layout, self.own)
            }
        return arrays

    def _common(self, layout: Layout, arrays: State) -> Mapping[str, NDArray[Any]]:
        """Return a client's arrays padded to the federation's ranks, B in its scaling."""
        common = dict(arrays)
        for module, own in pairs(layout, self.own):
            common |= padded(module, own, arrays)
        return common

    def _released(self, group: Group, state: State, sums: Sums, n: int) -> Released:
        """Return what is known of one group, with the counts."""
        return RaggedReleased(group, state, sums, n)


def pairs(layout: Layout, own: Layout | None) -> list[tuple[LoraModule, LoraModule]]:
    """Return each of the federation's modules with a client's own of that name; the same where `own` is None."""
    mine = {module.name: module for module in (own or layout).modules}
    return [(module, mine[module.name]) for module in layout.modules]


def first_components(module: LoraModule, own: LoraModule, state: State) -> dict[str, NDArray[np.float32]]:
    """Return a module's first components in a state as a client of its `own` rank and scaling holds them."""
    b = state[module.b_name][:, : own.rank] * (module.scaling / own.scaling)
    return {module.a_name: state[module.a_name][: own.rank], module.b_name: b.astype(np.float32)}


def padded(module: LoraModule, own: LoraModule, arrays: State) -> dict[str, NDArray[Any]]:
    """Return a client's own factors in the federation's rank and scaling, zero beyond its own rank."""
    missing = module.rank - own.rank
    a = np.pad(arrays[module.a_name], ((0, missing), (0, 0)))
    b = np.pad(arrays[module.b_name], ((0, 0), (0, missing)))
    return {module.a_name: a, module.b_name: b * (own.scaling / module.scaling)}


def as_if_equal(module: LoraModule, own: LoraModule) -> LoraModule:
    """Return `own` with the federation's rank and scaling, for what else must be the same.

    Raises:
        AssumptionError: its rank is above the federation's.
    """
    if own.rank > module.rank:
        raise AssumptionError(
            f"{module.name} has rank {own.rank} at a client and at most {module.rank} in the federation",
            "raise the federation's rank or lower the client's",
        )
    return replace(own, rank=module.rank, scaling=module.scaling)


def read_counts(module: LoraModule, sums: NDArray[np.float64], n: int) -> Array:
    """Return how many of `n` survivors hold each component of a module, integers as float64.

    Raises:
        SumError: nobody trained the module, or the sums are no counts of first components.
    """
    counts: Array = np.rint(sums)
    if (np.diff(counts) > 0).any() or counts.min() < 0 or counts.max() > n:
        raise SumError("the counts of who held which component are no counts", "a client has spoilt the sum")
    if counts[0] == 0:
        raise SumError(f"no survivor trained {module.name}", "wait for one")
    return counts


def count_name(module: LoraModule) -> str:
    """Name of a module's counts in an upload."""
    return f"{module.name}.held_by"
