"""What linear methods share: the upload is the change of the trained arrays, the server moves by its mean."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.base import Contract, Layout, Shared, State, Sums


class LinearAverage(ABC):
    """Base of methods whose uploads are changes of trainable arrays, summed as they are."""

    @abstractmethod
    def contract(self, layout: Layout) -> Contract:
        """Return the contract; each method states its own."""

    def upload(self, layout: Layout, start: State, trained: State, shared: Shared) -> State:  # noqa: ARG002
        """Return trained − start, float32, for every array that travels."""
        return {name: trained[name] - start[name] for name in self.contract(layout).uploads}

    @staticmethod
    def moved(state: State, sums: Sums, n: int) -> dict[str, NDArray[np.float32]]:
        """Return `state` with sums/n added where there is a sum; float32."""
        moved = dict(state)
        for name, total in sums.items():
            moved[name] = (state[name] + total / n).astype(np.float32)
        return moved
