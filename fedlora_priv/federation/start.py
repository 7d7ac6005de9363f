"""What a round starts from, and how that travels down.

*Which start.* Clients start from the global state, or from what `communication.download_density` below 1 leaves of it,

    start = begun + M ⊙ (state − begun),      M: the coordinates with the largest |state − begun|

where `begun` is the state before the first round, which everybody has. For FFA-LoRA, whose B begins at zero, this is
FLASC's download mask. The server keeps the whole state, and moves it by how clients moved away from the start.

*How it travels.* Only coordinates that differ from `begun` do: which they are, and their values; or, where that is
shorter, all of every array that has any. So what travels is exact, and after few rounds with a sparse support little.

Both are functions of the public state, so they reveal nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.communication.download import Download, changed, download_bytes, largest
from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.errors import FederationError
from fedlora_priv.federation.vectors import flatten, unflatten, zeros
from fedlora_priv.methods import phases
from fedlora_priv.methods.base import Method
from fedlora_priv.methods.layout import Layout, Shapes, State
from protocols.errors import SupportError
from protocols.sparsify import Support, dense

SUPPORT = "state/support"
VALUES = "state/values"


def moving(method: Method, layout: Layout, rounds: int) -> Shapes:
    """Return the arrays of the state whose changes are summed in some round, in sorted order."""
    uploads = {n: s for phase, _ in phases(method, rounds) for n, s in phase.contract(layout).uploads.items()}
    return dict(sorted(uploads.items()))


def masked(state: State, begun: State, moves: Shapes, density: float) -> State:
    """Return what clients start from: `state` where it differs most from `begun`, and `begun` elsewhere.

    Args:
        moves: the arrays that are masked, all together; others stay as they are in `state`.
        density: the fraction of their coordinates, rounded down, that keep their values; at least one does.

    Raises:
        CommunicationError: the state is not finite.
    """
    if density == 1.0:
        return state
    now, before = _flat(state, moves), _flat(begun, moves)
    most = largest(now - before, density).support
    return {**state, **unflatten(moves, Download(most, most.take(now)).onto(before))}


def require_masked(start: State, begun: State, moves: Shapes, density: float) -> None:
    """Raise FederationError if more of a start differs from `begun` than `masked` leaves."""
    shapes = {name: array.shape for name, array in begun.items()}
    allowed = max(1, math.floor(density * sum(begun[name].size for name in moves)))
    differs = changed(_flat(begun, shapes), _flat(start, shapes))
    if differs is not None and len(differs.support) > allowed:
        raise FederationError(
            f"a round starts from a state with {len(differs.support)} coordinates that have moved, where "
            f"communication.download_density = {density:g} sends at most {allowed} down",
            "check that server and clients run the same experiment file",
        )


def packed(state: State, begun: State) -> tuple[dict[str, list[int]], dict[str, bytes]]:
    """Return the shapes of the arrays that are not as in `begun`, and the blobs of what differs.

    An array that is not in `begun` at all is compared with zeros.
    """
    shapes = {name: array.shape for name, array in sorted(state.items()) if not _same(array, begun.get(name))}
    differs = changed(_flat(begun, shapes), _flat(state, shapes)) if shapes else None
    listed = {name: list(shape) for name, shape in shapes.items()}
    if differs is None:
        return listed, {}
    d = differs.support.dimension
    if download_bytes(d, len(differs.support)) >= download_bytes(d, d):
        differs = Download(dense(d), _flat(state, shapes))
    return listed, {SUPPORT: differs.support.to_bytes(), VALUES: differs.values.astype("<f4").tobytes()}


def unpacked(blobs: Mapping[str, bytes], shapes: Shapes, begun: State) -> State:
    """Return the state of a message; what did not travel is as in `begun`.

    Args:
        blobs: what `packed` returned, and nothing else.
        shapes: of the arrays that are not as in `begun`, each one that the state can have.

    Raises:
        FederationError: the blobs are not of these arrays, or a value is not finite.
    """
    shapes = dict(sorted(shapes.items()))
    vector = _flat(begun, shapes)
    if blobs:
        vector = _download(blobs, vector.size).onto(vector)
    return {**begun, **unflatten(shapes, vector)}


def _download(blobs: Mapping[str, bytes], dimension: int) -> Download:
    """Return the support of a message's state and the values on it."""
    if set(blobs) != {SUPPORT, VALUES} or not dimension or len(blobs[VALUES]) % 4:
        raise FederationError("the global state in a message is not one support and its float32 values")
    values = np.frombuffer(blobs[VALUES], "<f4").astype(np.float32)
    try:
        return Download(Support.from_bytes(blobs[SUPPORT], dimension), values)
    except (SupportError, CommunicationError) as error:
        raise FederationError(f"the global state in a message is garbled: {error}") from None


def _flat(state: State, shapes: Shapes) -> NDArray[np.float32]:
    """Return the named arrays as one vector, with zeros for one that is not there."""
    return flatten(shapes, {**zeros(shapes), **state})


def _same(array: NDArray[np.float32], other: NDArray[np.float32] | None) -> bool:
    """Whether two arrays have the same shape and, to the bit, the same values."""
    return other is not None and array.shape == other.shape and array.tobytes() == other.tobytes()
