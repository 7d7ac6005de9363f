"""RAC-LoRA: a chain of adapters, each with one fresh random factor that is frozen, merged before the next begins.

Source: Malinovsky et al., "Randomized Asymmetric Chain of LoRA" (RAC-LoRA, 2024); the federated reading is ours.

    a block of `rounds` rounds:  A random from the public seed and frozen; B from 0, trained and averaged
    at its end:                  W0 ← W0 + s·B̄A;   B ← 0;   A ← fresh

Linear and exact as FFA-LoRA is; the chain reaches a rank r higher with every block, where FFA-LoRA never leaves the row
space of its one A. The base changes: the state has a residual (`fedlora_priv.methods.residual`) of rank r a block,
which must be shipped with the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods import public, residual
from fedlora_priv.methods.base import Contract, Shared, Sums
from fedlora_priv.methods.errors import AssumptionError
from fedlora_priv.methods.layout import Layout, State
from fedlora_priv.methods.linear import LinearAverage, moved, of_roles
from fedlora_priv.methods.thin import Thin, factors, groups


class RACLoRA(LinearAverage):
    """Average of B and of the head; every block of rounds merges B̄A and draws a new A.

    Args:
        rounds: the length of a block.

    Raises:
        AssumptionError: a block of no rounds.
    """

    name = "rac-lora"
    title = "RAC-LoRA (a chain of merged adapters, fresh A each)"
    source = "Malinovsky et al. 2024"
    moves_by_mean = False
    changes_base = True

    def __init__(self, rounds: int = 1) -> None:
        if rounds < 1:
            raise AssumptionError(f"a block of the chain cannot have {rounds} rounds", "choose at least 1")
        self.rounds = rounds

    def contract(self, layout: Layout) -> Contract:
        """Return the contract: the changes of B and of the head travel up, a new A down."""
        return Contract(
            uploads=of_roles(layout, "B", "head"),
            trains=frozenset({"B", "head"}),
            exact=True,
            noise="linear: ξ_B·A",
            changes_base=self.changes_base,
        )

    def _combine(
        self, layout: Layout, state: State, sums: Sums, n: int, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return the state with the mean B and head; at the end of a block, merged and begun anew."""
        combined: dict[str, NDArray[Any]] = dict(moved(state, sums, n))
        if shared.round % self.rounds:
            return combined
        for group in groups(layout):
            block = factors(group, combined)
            combined = dict(residual.added(group, combined, Thin(group[0].scaling * block.left, block.right)))
            for module in group:
                label = f"rac-lora/{module.name}"
                combined[module.a_name] = public.fresh_a(shared, label, module.rank, module.in_features)
                combined[module.b_name] = np.zeros((module.out_features, module.rank))
        return combined
