"""A federation in plain numpy for tests of methods: random clients, sums over survivors, and the plainest of algebra.

`run` is all that a server does with what its clients have trained. Quantising, where asked for, is that of the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedlora_priv.methods.base import Method, Shared
from fedlora_priv.methods.layout import Layout, LoraModule
from protocols.prg import SecretStream
from protocols.quantise import Quantiser

SEED = 7


def layout_of(*modules: LoraModule, heads: bool = True) -> Layout:
    return Layout(modules, {"classifier.weight": (2, 6), "classifier.bias": (2,)} if heads else {})


TWO_SHAPES = layout_of(
    LoraModule("layer.0.query", 14, 12, 3, 2.0),
    LoraModule("layer.0.value", 14, 12, 3, 2.0),
    LoraModule("layer.1.value", 11, 16, 4, 0.5),
)


def random_state(layout: Layout, rng: np.random.Generator, scale: float = 1.0) -> dict[str, np.ndarray]:
    return {k: (scale * rng.normal(size=s)).astype(np.float32) for k, s in layout.shapes().items()}


def independent(
    layout: Layout, rng: np.random.Generator, clients: int, drift: float
) -> tuple[dict, list[dict]]:
    """A common start, and clients whose every entry has moved by an own Gaussian step."""
    start = random_state(layout, rng)
    return start, [
        {k: v + random_state(layout, rng, drift)[k] for k, v in start.items()} for _ in range(clients)
    ]


def correlated(
    layout: Layout, rng: np.random.Generator, clients: int, drift: float, p: int
) -> tuple[dict, list[dict]]:
    """B_i = B0 + U·C_i and A_i = A0 + C_iᵀ·V: changes of B and A that go together."""
    start, trained = random_state(layout, rng), []
    spans = {
        m: (rng.normal(size=(m.out_features, p)), rng.normal(size=(p, m.in_features))) for m in layout.modules
    }
    for _ in range(clients):
        own = dict(start)
        for m, (u, v) in spans.items():
            c = rng.normal(size=(p, m.rank))
            own[m.b_name] = (start[m.b_name] + drift * u @ c).astype(np.float32)
            own[m.a_name] = (start[m.a_name] + drift * c.T @ v).astype(np.float32)
        trained.append(own)
    return start, trained


@dataclass
class Round:
    """What came of one round: the next state, the sums of all exchanges, what was announced, the last `Shared`."""

    state: dict
    sums: dict
    shared: Shared
    uploaded: int
    method: Method
    n: int
    start: dict
    layout: Layout

    @property
    def certificate(self):
        return self.method.certify(self.layout, self.start, self.sums, self.n, self.shared, self.state)


def run(
    method: Method,
    layout: Layout,
    start: dict,
    clients: list[dict],
    *,
    number: int = 1,
    own: list[Method] | None = None,
    value_bits: int | None = None,
    seed: int = SEED,
) -> Round:
    """Exchange after exchange: upload, sum, announce; at the end combine. `own` are the clients' own methods."""
    method, shared = method.at(number), Shared(seed, number)
    contract, sums, uploaded = method.contract(layout), {}, 0
    while True:
        uploads = [
            (own[k] if own else method).upload(layout, start, trained, shared)
            for k, trained in enumerate(clients)
        ]
        shapes = contract.exchange(shared.exchange)
        assert all({k: v.shape for k, v in up.items()} == dict(shapes) for up in uploads)
        assert all(v.dtype == np.float32 for up in uploads for v in up.values())
        uploaded += sum(v.size for v in uploads[0].values())
        sums |= {k: total([up[k] for up in uploads], value_bits) for k in shapes}
        announced = method.announce(layout, start, sums, len(clients), shared)
        if announced is None:
            break
        shared = replace(shared, exchange=shared.exchange + 1, announced=announced)
    state = method.combine(layout, start, sums, len(clients), shared)
    return Round(state, sums, shared, uploaded, method, len(clients), start, layout)


def total(arrays: list[np.ndarray], value_bits: int | None) -> np.ndarray:
    """The sum over clients, through the integers of the wire if `value_bits` says so."""
    if value_bits is None:
        return np.sum(arrays, axis=0, dtype=np.float64)
    bound = max(1e-8, float(np.abs(np.stack(arrays)).max()))
    quantiser = Quantiser(bound, value_bits, len(arrays))
    stream = SecretStream(b"t" * 32)
    ring = sum(quantiser.quantise(a.ravel(), stream).astype(np.uint64) for a in arrays)
    words = (ring & np.uint64(2**quantiser.modulus_bits - 1)).astype(np.uint32)
    return quantiser.dequantise_sum(words).reshape(arrays[0].shape)


# --- the plainest algebra ------------------------------------------------------------------------------


def product(m: LoraModule, state: dict) -> np.ndarray:
    return m.scaling * state[m.b_name].astype(float) @ state[m.a_name].astype(float)


def mean_product(m: LoraModule, clients: list[dict]) -> np.ndarray:
    return np.mean([product(m, c) for c in clients], axis=0)


def cut(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vt = np.linalg.svd(matrix)
    return u[:, :rank] @ np.diag(s[:rank]) @ vt[:rank]


def optimum(matrix: np.ndarray, rank: int) -> float:
    """The least error of any matrix of that rank (Eckart, Young)."""
    return float(np.linalg.norm(np.linalg.svd(matrix)[1][rank:]))


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def mean(clients: list[dict], name: str) -> np.ndarray:
    return np.mean([c[name].astype(float) for c in clients], axis=0)
