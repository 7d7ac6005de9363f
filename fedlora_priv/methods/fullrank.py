"""What full-rank methods share: they upload what `CrossTerm` needs, and start from the mean of the products."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods import residual
from fedlora_priv.methods.base import Contract, Method, Shared, Sums
from fedlora_priv.methods.certificate import Certificate
from fedlora_priv.methods.crossterm import CrossTerm, Released
from fedlora_priv.methods.layout import Layout, Shapes, State
from fedlora_priv.methods.linear import moved, of_roles
from fedlora_priv.methods.thin import Group, factors, groups, require_rank_fits

_LEAKS = {
    "exact": "the sum of the products over survivors",
    "sketch": "the sums over survivors of the factors and of maps of the products",
    "two-pass": "the sums over survivors of the factors and of maps of the products",
}
NOISE = "quadratic: ξ_B·ξ_A enters before anything is cut off"


class FullRank(Method):
    """Base of methods that make something of ΔW = s·mean(BₖAₖ); `_next` says what."""

    def __init__(self, cross: CrossTerm) -> None:
        self.cross = cross

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: what the cross term needs, the factors' changes if it is not dense, the head's."""
        first, *later = self.cross.exchanges(layout)
        return Contract(
            uploads=dict(sorted({**first, **self._beside(layout)}.items())),
            trains=frozenset({"A", "B", "head"}),
            exact=self.cross.mode == "exact",
            noise=NOISE,
            leaks=_LEAKS[self.cross.mode],
            later=tuple(later),
            announces=self.cross.announces(layout),
            may_stop_early=self.cross.fallback is not None,
            travels_whole=self.cross.mode != "exact",
            changes_base=self.changes_base,
            notes=self._notes(),
        )

    def certify(
        self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared, combined: State
    ) -> Certificate | None:
        """Return how far `combined` is from ΔW: exactly if ΔW travelled dense, else from held-out columns."""
        sizes, errors, columns = {}, {}, None
        for module in layout.modules:
            known = self._released((module,), state, sums, n)
            result, before = residual.whole(module, combined), residual.kept(module, state)
            if known.has("delta_w"):
                mean = self.cross.mean_product(layout, known, shared).dense()
                error = mean - result.dense() + before.dense()
            else:
                held_out, mean = self.cross.held_out(layout, known, shared)
                columns = held_out.shape[2]
                error = mean - result.times(held_out) + before.times(held_out)
            per_column = math.sqrt(columns or 1)
            sizes[module.name] = float(np.linalg.norm(mean)) / per_column
            errors[module.name] = float(np.linalg.norm(error)) / per_column
        return Certificate(sizes, errors, columns)

    def _upload(
        self, layout: Layout, start: State, trained: State, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return the changes of factors and head, if this is the first exchange, and the cross term's arrays."""
        began, own = self._common(layout, self.start(layout, start, shared)), self._common(layout, trained)
        arrays: dict[str, NDArray[Any]] = {}
        if shared.exchange == 0:
            arrays |= {name: own[name] - began[name] for name in self._beside(layout)}
        for group in groups(layout):
            before, after = factors(group, began), factors(group, own)
            arrays |= self.cross.upload(layout, group, before, after, shared)
        return arrays

    def _announce(self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared) -> State | None:
        """Return what the second exchange needs, if there is to be one."""
        released = [self._released(group, state, sums, n) for group in groups(layout)]
        return self.cross.announce(layout, released, shared)

    def _combine(
        self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return the state with the mean head and what the method makes of each group's product."""
        combined: dict[str, NDArray[Any]] = dict(moved(state, {name: sums[name] for name in layout.heads}, n))
        for group in self._groups(layout, sums):
            known = self._released(group, state, sums, n)
            combined = self._next(layout, combined, known, shared)
        return combined

    @abstractmethod
    def _next(
        self, layout: Layout, combined: dict[str, NDArray[Any]], known: Released, shared: Shared
    ) -> dict[str, NDArray[Any]]:
        """Return the next state with one group's modules done."""

    def _notes(self) -> tuple[str, ...]:
        """Return what a reader of the contract should know."""
        return ("uploads m·n coordinates per module",) if self.cross.mode == "exact" else ()

    def _beside(self, layout: Layout) -> Shapes:
        """Return what travels beside the cross term in the first exchange."""
        return of_roles(layout, "A", "B", "head") if self.cross.needs_factors else of_roles(layout, "head")

    def _groups(self, layout: Layout, sums: Sums) -> list[Group]:
        """Return the groups to work on: one module at a time where products are dense."""
        dense = any(name.endswith(".delta_w") for name in sums)
        return [(module,) for module in layout.modules] if dense else groups(layout)

    def _released(self, group: Group, state: State, sums: Sums, n: int) -> Released:
        """Return what is known of one group."""
        return Released(group, state, sums, n)

    def _common(self, layout: Layout, arrays: State) -> Mapping[str, NDArray[Any]]:  # noqa: ARG002 - others do
        """Return a client's arrays in the federation's ranks and scalings."""
        return arrays

    def _require(self, layout: Layout) -> None:
        """Raise AssumptionError unless ranks fit."""
        require_rank_fits(layout)
