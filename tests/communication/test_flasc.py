"""FLASC as published, against the same rounds written once more in plain loops, and AdamW against torch's."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from fedlora_priv.communication.errors import CommunicationError
from fedlora_priv.communication.flasc import (
    ADAMW,
    Density,
    DPSettings,
    FlascState,
    clipped,
    flasc_round,
    published_bytes,
    tier_density,
    top,
)
from fedlora_priv.methods.optimizers import Adam
from protocols.sparsify import support_bytes

N, HEAD = 60, 12
WHOLE = np.arange(N) >= N - HEAD


def training(client: int) -> Callable[[np.ndarray], np.ndarray]:
    """A client that moves a fifth of the way to an optimum of its own, on every coordinate."""
    optimum = np.random.default_rng([7, client]).standard_normal(N)
    return lambda start: (start + 0.2 * (optimum - start)).astype(np.float32)


class PlainFlasc:
    """The reference: lists, sorting and scalar arithmetic, straight from the description."""

    def __init__(self, theta: np.ndarray, lr: float) -> None:
        self.theta = [float(x) for x in theta]
        self.first, self.second, self.steps, self.lr = [0.0] * N, [0.0] * N, 0, lr

    @staticmethod
    def keep(values: list[float], among: list[int], density: float) -> set[int]:
        ranked = sorted(among, key=lambda i: (-abs(values[i]), i))
        return set(ranked[: math.floor(len(among) * density)])

    def round(
        self,
        clients: list[int],
        densities: list[tuple[float, float]],
        head_whole: bool,
        noise: list[float],
        clip: float,
    ) -> None:
        total = [0.0] * N
        for client, (down, up) in zip(clients, densities, strict=True):
            lora = list(range(N - HEAD)) if head_whole else list(range(N))
            mask = self.keep(self.theta, lora, down) | (set(range(N - HEAD, N)) if head_whole else set())
            start = [x if i in mask else 0.0 for i, x in enumerate(self.theta)]
            trained = training(client)(np.array(start, dtype=np.float32))
            delta = [float(t) - s for t, s in zip(trained, start, strict=True)]
            kept = self.keep(delta, list(range(N)), up)
            sparse = [x if i in kept else 0.0 for i, x in enumerate(delta)]
            norm = math.sqrt(sum(x * x for x in sparse))
            factor = min(1.0, clip / norm) if norm else 1.0
            total = [t + x * factor for t, x in zip(total, sparse, strict=True)]
        self.steps += 1
        for i in range(N):
            gradient = -(total[i] + noise[i]) / len(clients)
            self.first[i] = 0.9 * self.first[i] + 0.1 * gradient
            self.second[i] = 0.999 * self.second[i] + 0.001 * gradient**2
            m = self.first[i] / (1 - 0.9**self.steps)
            v = self.second[i] / (1 - 0.999**self.steps)
            decayed = self.theta[i] * (1 - self.lr * 0.01)
            self.theta[i] = float(np.float32(decayed - self.lr * m / (math.sqrt(v) + 1e-8)))


@pytest.mark.parametrize("variant", ["plain", "private", "tiers"])
def test_rounds_agree_with_the_plain_reference(variant: str) -> None:
    theta = np.random.default_rng(1).standard_normal(N).astype(np.float32)
    state = FlascState(theta, WHOLE if variant == "tiers" else None)
    optimizer = Adam(learning_rate=5e-3 if variant == "tiers" else 1e-3, weight_decay=0.01)
    reference = PlainFlasc(theta, optimizer.learning_rate)
    private = DPSettings(0.5, 0.8) if variant == "private" else None
    for number in range(6):
        clients = [(number + i) % 7 for i in range(4)]
        density = [tier_density(c, 3) if variant == "tiers" else Density(0.25, 0.1) for c in clients]
        noise = [0.0] * N
        if private:
            noise = (0.8 * 0.5 * np.random.default_rng(number).standard_normal(N)).tolist()
        state = flasc_round(
            state, [(training(c), d) for c, d in zip(clients, density, strict=True)],
            optimizer=optimizer, private=private, rng=np.random.default_rng(number) if private else None,
        )  # fmt: skip
        reference.round(
            clients,
            [(d.down, d.up) for d in density],
            variant == "tiers",
            noise,
            0.5 if private else math.inf,
        )
        np.testing.assert_allclose(state.theta, reference.theta, rtol=2e-6, atol=2e-7)
    assert np.abs(state.theta - theta).max() > 2e-3


def test_the_server_is_torchs_adamw() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    theta = rng.standard_normal(20)
    parameter = torch.nn.Parameter(torch.tensor(theta))
    adamw = torch.optim.AdamW([parameter], lr=1e-3)
    ours, moments = theta, {}
    for _ in range(20):
        change = rng.standard_normal(20) * 10.0 ** rng.integers(-6, 1, 20)
        parameter.grad = torch.tensor(-change)
        adamw.step()
        ours, moments = ADAMW.move(ours, change, moments)
    np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=1e-12)


def test_dense_flasc_is_federated_averaging_under_adamw() -> None:
    theta = np.zeros(N, np.float32)
    state = flasc_round(FlascState(theta), [(training(c), Density(1.0, 1.0)) for c in range(3)])
    mean = np.mean([training(c)(theta) for c in range(3)], axis=0)
    expected, _ = ADAMW.move(theta.astype(np.float64), mean, {})
    np.testing.assert_allclose(state.theta, expected, rtol=1e-5)


def test_the_noise_is_on_every_coordinate_and_the_signal_is_clipped() -> None:
    still = [(lambda start: start, Density(0.1, 0.1))] * 3
    rng = np.random.default_rng(5)
    noised = flasc_round(FlascState(np.zeros(N, np.float32)), still, private=DPSettings(1.0, 1.0), rng=rng)
    assert np.count_nonzero(noised.theta) == N
    assert np.linalg.norm(clipped(np.full(9, 5.0), 0.3)) == pytest.approx(0.3)
    assert clipped(np.full(9, 0.01), 0.3).tolist() == [0.01] * 9


def test_what_is_evaluated_is_masked_as_the_round_began() -> None:
    theta = np.arange(1, N + 1, dtype=np.float32)
    state = FlascState(theta)
    assert state.evaluated(0.25) is theta
    state = flasc_round(state, [(training(0), Density(0.25, 0.25))])
    evaluated = state.evaluated(0.25)
    assert np.flatnonzero(evaluated).tolist() == list(range(45, 60))
    assert evaluated[45:].tolist() == state.theta[45:].tolist()


def test_the_tenth_of_the_bytes_that_flasc_is_known_for() -> None:
    sparse = published_bytes(1_000_000, Density(1 / 4, 1 / 16))
    dense = published_bytes(1_000_000, Density(1.0, 1.0))
    assert (dense.down, dense.up) == (4_000_000, 4_000_000)
    assert sparse.up == 4 * 62_500 + support_bytes(1_000_000, 62_500)
    assert published_bytes(100, Density(0.1, 0.001), whole=20).down == 4 * 28 + support_bytes(100, 28)
    assert published_bytes(100, Density(0.1, 0.001)).up == 0


def test_top_is_the_floor_and_prefers_low_indices() -> None:
    assert top(np.array([2.0, -2.0, 2.0, 0.0]), 0.74).tolist() == [True, True, False, False]


def test_rounds_that_cannot_be_are_refused() -> None:
    state = FlascState(np.zeros(N, np.float32))
    whole = Density(1.0, 1.0)
    with pytest.raises(CommunicationError, match="at least one client"):
        flasc_round(state, [])
    with pytest.raises(CommunicationError, match="generator"):
        flasc_round(state, [(training(0), whole)], private=DPSettings(1.0, 1.0))
    for broken in (lambda start: start[:-1], lambda start: start * np.nan):
        with pytest.raises(CommunicationError, match="no finite vector"):
            flasc_round(state, [(broken, whole)])
    for bad in (0.0, 1.5, math.nan):
        with pytest.raises(CommunicationError):
            Density(bad, 1.0)
        with pytest.raises(CommunicationError):
            Density(1.0, bad)
    for clip, noise in ((0.0, 1.0), (math.inf, 1.0), (1.0, -1.0), (math.nan, 1.0)):
        with pytest.raises(CommunicationError):
            DPSettings(clip, noise)
