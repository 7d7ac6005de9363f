"""Server optimisers: what the server makes of a mean change, in place of just adding it.

The mean change is taken as a descent direction, Δ = (what `combine` says) − (the state), as in FedOpt:

    average    θ ← θ + lr·Δ
    momentum   v ← βv + Δ,   θ ← θ + lr·v
    adam       m ← β₁m + (1−β₁)Δ,   v ← β₂v + (1−β₂)Δ²,   θ ← θ·(1 − lr·decay) + lr·m̂/(√v̂ + τ)

with m̂, v̂ corrected for having begun at zero. Sums are all that goes in, so it is post-processing and costs no privacy.

Only for methods that move arrays by their mean change. Behind an SVD (FRA-LoRA, FedSVD, …) the factors of two rounds
are not the same coordinates, and a moment of one means nothing for the other; where the base changes neither: refused.

An array that did not travel in a round (RoLoRA's other factor) keeps value and moments.

Source: Reddi et al., "Adaptive Federated Optimization" (ICLR 2021); decoupled decay from Loshchilov, Hutter (2019).
FLASC uses Adam with lr 1e-3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.base import Method
from fedlora_priv.methods.errors import AssumptionError
from fedlora_priv.methods.layout import Layout, State

Moments = Mapping[str, NDArray[np.float64]]
"""What an optimiser remembers between rounds, public; ``<array>/first``, ``/second`` and ``/steps``."""


class ServerOptimizer(ABC):
    """A step from a state and what `combine` made of it to the next state."""

    @final
    def step(
        self, method: Method, layout: Layout, state: State, combined: State, moments: Moments
    ) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float64]]]:
        """Return the next state and what to remember; `moments` is empty before the first round.

        Raises:
            AssumptionError: the method does not move arrays by their mean change.
        """
        require_mean_moves(method)
        result, memory = dict(combined), dict(moments)
        for name in [name for name in method.contract(layout).uploads if name in state]:  # not a count
            theta = state[name].astype(np.float64)
            moved, new = self._step(theta, combined[name] - theta, _of(moments, name))
            result[name] = moved.astype(np.float32)
            memory |= {f"{name}/{key}": value for key, value in new.items()}
        return result, memory

    @final
    def move(
        self, theta: NDArray[np.float64], delta: NDArray[Any], moments: Moments
    ) -> tuple[NDArray[np.float64], Moments]:
        """Return one array's next value and what to remember of it, under keys of its own."""
        return self._step(theta, delta, moments)

    @abstractmethod
    def _step(
        self, theta: NDArray[np.float64], delta: NDArray[Any], moments: Moments
    ) -> tuple[NDArray[np.float64], Moments]:
        """Return one array's next value and moments."""


@dataclass(frozen=True)
class Average(ServerOptimizer):
    """θ + lr·Δ; with lr = 1 nothing but the mean."""

    learning_rate: float = 1.0

    def _step(
        self, theta: NDArray[np.float64], delta: NDArray[Any], moments: Moments
    ) -> tuple[NDArray[np.float64], Moments]:
        return theta + self.learning_rate * delta, moments


@dataclass(frozen=True)
class Momentum(ServerOptimizer):
    """Heavy-ball momentum."""

    learning_rate: float = 1.0
    beta: float = 0.9

    def _step(
        self, theta: NDArray[np.float64], delta: NDArray[Any], moments: Moments
    ) -> tuple[NDArray[np.float64], Moments]:
        first = self.beta * moments.get("first", np.zeros_like(theta)) + delta
        return theta + self.learning_rate * first, {"first": first}


@dataclass(frozen=True)
class Adam(ServerOptimizer):
    """Adam with decoupled weight decay."""

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    tau: float = 1e-8
    weight_decay: float = 0.0

    def _step(
        self, theta: NDArray[np.float64], delta: NDArray[Any], moments: Moments
    ) -> tuple[NDArray[np.float64], Moments]:
        zero = np.zeros_like(theta)
        first = self.beta1 * moments.get("first", zero) + (1 - self.beta1) * delta
        second = self.beta2 * moments.get("second", zero) + (1 - self.beta2) * delta**2
        steps = moments.get("steps", np.zeros(())) + 1
        step = first / (1 - self.beta1**steps) / (np.sqrt(second / (1 - self.beta2**steps)) + self.tau)
        moved = theta * (1 - self.learning_rate * self.weight_decay) + self.learning_rate * step
        return moved, {"first": first, "second": second, "steps": steps}


def require_mean_moves(method: Method) -> None:
    """Raise AssumptionError unless the method moves arrays by their mean change and does nothing else."""
    if not method.moves_by_mean:
        raise AssumptionError(
            f"{method.name!r} does more than move arrays by their mean change",
            "use the server optimiser 'average'",
        )


def _of(moments: Moments, name: str) -> dict[str, NDArray[np.float64]]:
    """Return one array's moments under their short keys."""
    return {
        key.removeprefix(f"{name}/"): value for key, value in moments.items() if key.startswith(f"{name}/")
    }
