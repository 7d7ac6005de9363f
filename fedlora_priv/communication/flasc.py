"""INSECURE: FLASC as it was published, the baseline that shared supports are measured against.

Not for use: each client uploads its own top-k, so the server sees where each update is large, and nothing of it can
be summed under masks. It exists so that what masks cost can be measured, and is written over plain vectors.

θ is everything trainable, LoRA and head, flattened. A round:

    download    M = the ⌊d_down·N⌋ entries of θ largest in magnitude;  every client starts from θ⊙M
    train       all of it: sparsity is in what travels, not in what is trained
    upload      Δ = trained - θ⊙M, of which a client sends its own ⌊d_up·N⌋ largest
    private     each sparse Δ scaled to norm at most C; the noise, of standard deviation z·C, is on *every* coordinate
                of the sum, or the zeros would tell the supports of all clients together
    server      θ ← AdamW step with the mean of what was sent as the gradient's opposite
    evaluate    θ⊙M, M still that of the round's beginning

*Tiers*: client i is of tier i mod T, with densities 1/4^(T-1), …, 1/4, 1 down and up. Down, only LoRA entries are
ranked and the head goes whole; up, all are. The mean is over all clients, whoever sent a coordinate or not.

Of the released code: a top-k is of ⌊d·N⌋, and the head is exempt from the download mask with tiers only. There the sum
is divided by C before the noise is added, which Adam does not notice but for its τ; here it keeps its units.

Source: Kuo et al. 2024, "Federated LoRA with Sparse Communication"; github.com/imkevinkuo/flasc.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.methods.optimizers import Adam, Moments
from protocols.sparsify import smallest, support_bytes

Vector = NDArray[np.float32]
Train = Callable[[Vector], Vector]
"""A client's training: from where it starts to where it gets, vectors of shape (N,)."""

ADAMW = Adam(learning_rate=1e-3, weight_decay=0.01)
"""The published server optimiser; with tiers its learning rate was 5e-3."""


@dataclass(frozen=True)
class Density:
    """What fraction of the entries goes down to a client, and up from it."""

    down: float
    up: float

    def __post_init__(self) -> None:
        if not (0.0 < self.down <= 1.0 and 0.0 < self.up <= 1.0):
            raise CommunicationError("densities are above 0 and at most 1")


def tier_density(client: int, tiers: int) -> Density:
    """Return the density of the client of that index: 4^(i mod T) / 4^(T-1).

    Example:
        >>> [tier_density(client, tiers=3).up for client in range(4)]
        [0.0625, 0.25, 1.0, 0.0625]
    """
    density = 4.0 ** (client % tiers - (tiers - 1))
    return Density(density, density)


@dataclass(frozen=True)
class DPSettings:
    """Client-level noise: every sent Δ is clipped to `clip_norm`, the sum noised by `noise_multiplier`·clip_norm."""

    clip_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        if not (0 < self.clip_norm < math.inf and 0 <= self.noise_multiplier < math.inf):
            raise CommunicationError(
                "a clip norm is positive and a noise multiplier not negative, both finite"
            )


@dataclass(frozen=True)
class FlascState:
    """What the server has: θ, all of it, the optimiser's moments, and θ as the last round began.

    Args:
        theta: float32 of shape (N,).
        whole: bool of shape (N,): what every download holds, such as the head with tiers. Nothing unless given.
    """

    theta: Vector
    whole: NDArray[np.bool_] | None = None
    moments: Moments = field(default_factory=dict)
    began: Vector | None = None

    def evaluated(self, density: float) -> Vector:
        """Return the model that FLASC reports for clients of that download density; θ before the first round."""
        if self.began is None:
            return self.theta
        return np.where(download_mask(self.began, density, self.whole), self.theta, np.float32(0))


@dataclass(frozen=True)
class FlascBytes:
    """What one client's round takes: fp32 values, and which entries they are of."""

    down: int
    up: int


def flasc_round(
    state: FlascState,
    clients: Sequence[tuple[Train, Density]],
    *,
    optimizer: Adam = ADAMW,
    private: DPSettings | None = None,
    rng: np.random.Generator | None = None,
) -> FlascState:
    """Return the state after a round with these clients.

    Args:
        clients: each one's training and densities.
        private: clipping and noise, if any. The guarantee is for a client, in the view of whoever sees only θ: the
            server sees every Δ as it is.
        rng: where the noise comes from.

    Raises:
        CommunicationError: no client, noise without a generator, or a client's result of another shape or not finite.
    """
    if not clients:
        raise CommunicationError("a round has at least one client")
    if private is not None and rng is None:
        raise CommunicationError("noise needs a generator")
    total = np.zeros(state.theta.size)
    for train, density in clients:
        mask = download_mask(state.theta, density.down, state.whole)
        sent = upload(np.where(mask, state.theta, np.float32(0)), train, density.up)
        total += sent if private is None else clipped(sent, private.clip_norm)
    if private is not None and rng is not None:
        total += private.noise_multiplier * private.clip_norm * rng.standard_normal(total.size)
    theta, moments = optimizer.move(state.theta.astype(np.float64), total / len(clients), state.moments)
    return FlascState(theta.astype(np.float32), state.whole, moments, state.theta)


def download_mask(theta: Vector, density: float, whole: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Return which entries go down: the ⌊density·n⌋ largest of the n that are not `whole`, and those that are."""
    if whole is None:
        return top(theta, density)
    mask = whole.copy()
    mask[~whole] = top(theta[~whole], density)
    return mask


def upload(start: Vector, train: Train, density: float) -> NDArray[np.float64]:
    """Return what a client sends: its change from `start`, zero but for its own largest entries."""
    trained = np.asarray(train(start.copy()))
    if trained.shape != start.shape or not np.isfinite(trained).all():
        raise CommunicationError(
            "a client trained to something that is no finite vector of the model's length"
        )
    change = trained.astype(np.float64) - start
    return np.where(top(change, density), change, 0.0)


def clipped(change: NDArray[np.float64], clip_norm: float) -> NDArray[np.float64]:
    """Return the change scaled to a norm of at most `clip_norm`."""
    return change / max(float(np.linalg.norm(change)) / clip_norm, 1.0)


def top(values: NDArray[np.floating[Any]], density: float) -> NDArray[np.bool_]:
    """Return a mask of the ⌊density·n⌋ entries largest in magnitude; of equal ones those of lower index."""
    return smallest(-np.abs(values.astype(np.float64)), int(values.size * density))


def published_bytes(dimension: int, density: Density, whole: int = 0) -> FlascBytes:
    """Return the bytes of one client's round: fp32 values, and a `Support`'s encoding where some are left out.

    Args:
        whole: how many entries every download holds.
    """
    down = whole + int((dimension - whole) * density.down)
    up = int(dimension * density.up)
    return FlascBytes(_sparse_bytes(dimension, down), _sparse_bytes(dimension, up))


def _sparse_bytes(dimension: int, k: int) -> int:
    """Return the bytes of k fp32 values and of which they are."""
    return 4 * k + (support_bytes(dimension, k) if 0 < k < dimension else 0)
