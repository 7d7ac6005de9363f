"""What linear methods share: the upload is the change of the trained arrays, the server moves by its mean.

A method that is just this writes its `contract` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.base import Method, Shared, Sums
from fedlora_priv.methods.layout import Layout, Role, State


class LinearAverage(Method):
    """Base of methods whose uploads are changes of trainable arrays, summed as they are."""

    moves_by_mean = True

    def _upload(
        self, layout: Layout, start: State, trained: State, shared: Shared
    ) -> Mapping[str, NDArray[Any]]:
        """Return trained − start for every array that travels."""
        return {name: trained[name] - start[name] for name in self.contract(layout).exchange(shared.exchange)}

    def _combine(
        self,
        layout: Layout,  # noqa: ARG002 - the interface has it
        state: State,
        sums: Sums,
        n: int,
        shared: Shared,  # noqa: ARG002 - the interface has it
    ) -> Mapping[str, NDArray[Any]]:
        """Return the state moved by the mean change."""
        return moved(state, sums, n)


def moved(state: State, sums: Sums, n: int) -> dict[str, NDArray[np.float32]]:
    """Return `state` with sums/n added where there is a sum of that name; float32."""
    result = dict(state)
    for name in sums.keys() & state.keys():
        result[name] = (state[name] + sums[name] / n).astype(np.float32)
    return result


def of_roles(layout: Layout, *roles: Role) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the layout's arrays of these roles, in sorted order."""
    return {name: shape for name, shape in layout.shapes().items() if layout.role(name) in roles}
