"""Which global states a client trains from: a server's word could make clipping void."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from fedlora_priv.errors import FederationError, FedloraError, StateBeyondBounds
from fedlora_priv.federation.trained import Marked
from fedlora_priv.methods import State
from fedlora_priv.training import coupling, coupling_tolerance

LARGEST_ENTRY = 100.0
"""No honest adapter comes near; see `StateCheck`."""


class StateCheck:
    """Refuses states from which training could not be private; looks at no data.

    Clipping bounds an example's part only while its gradient does not depend on its companions. Enormous
    entries amplify float rounding until it does: seen from 10^4 on, never up to 10^3. What a state adds to the base
    weights is held to the same bound, thin factors by the product that they can make.
    """

    def __init__(self, model: Any, *, device: str | torch.device = "cpu") -> None:
        self._model, self._device = model, device
        self._accepted = b""

    def __call__(self, state: State, support: Marked | None = None) -> None:
        """Return if training from this state can be private; clients of one process ask about the same.

        With a `support`, training of that part of the coordinates: rounding that is nothing beside a whole gradient
        could be much of what a server has left of it.

        Raises:
            StateBeyondBounds: an entry is too large, or made-up examples influence each other.
            FederationError: the state does not fit the model.
        """
        digest = _digest(state) + (b"" if support is None else _digest(support))
        if digest == self._accepted:
            return
        largest = max(float(np.abs(array).max(initial=0.0)) for array in state.values())
        if not largest <= LARGEST_ENTRY:
            raise StateBeyondBounds(
                f"the global state has entries up to {largest:.3g}, beyond {LARGEST_ENTRY:g}",
                "if training diverged, lower training.learning_rate",
            )
        change = _largest_change(state)
        if not change <= LARGEST_ENTRY:
            raise StateBeyondBounds(
                f"the global state changes base weights by up to {change:.3g}, beyond {LARGEST_ENTRY:g}",
                "if training diverged, lower training.learning_rate",
            )
        self._require_uncoupled(state, support)
        self._accepted = digest

    def _require_uncoupled(self, state: State, support: Marked | None) -> None:
        """Raise unless made-up examples leave each other's gradients alone at this state."""
        try:
            error = coupling(self._model, state, device=self._device, support=support)
        except FedloraError as refusal:  # other names or shapes than the model has
            raise FederationError(f"the global state does not fit: {refusal}") from refusal
        if not error <= coupling_tolerance(self._model):
            raise StateBeyondBounds(f"at this global state examples depend on each other ({error:.1e})")


def _largest_change(state: State) -> float:
    """Return a bound on the entries of all thin residuals, base_B's longest row times base_A's longest column."""
    bound = 0.0
    for name, b in state.items():
        a = state.get(f"{name.removesuffix('base_B')}base_A")
        if name.endswith(".base_B") and a is not None and a.size and b.size:
            bound = max(bound, float(np.linalg.norm(b, axis=1).max() * np.linalg.norm(a, axis=0).max()))
    return bound


def _digest(state: State | Marked) -> bytes:
    """Return 32 bytes over names, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].shape}\n".encode())
        digest.update(hashlib.sha256(np.ascontiguousarray(state[name]).tobytes()).digest())
    return digest.digest()
