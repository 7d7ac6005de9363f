"""What the server pays for the mean of products, for layers as of a 7B model: 32 × q and v of 4096², r = 16.

The sums of 10 clients are there already. The sketch does all 64 modules, stacked. Dense sums are measured on one
module and multiplied by 64, because 64 of them would need 8 GB: "dense exact" takes the leading triplets from a Gram
matrix, as `fra` does; "full SVD" is the naive way, every singular value of a mean that is there already. Memory is the
most that numpy arrays took at a time (tracemalloc), inputs apart. An error is relative to ‖ΔW‖, of the first module;
the drifts of B and A go together (8 directions), with a little independent noise on top.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.methods.base import Method, Shared
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fra import FRALoRA
from fedlora_priv.methods.layout import Layout, LoraModule, State

LAYERS, WIDTH, RANK, CLIENTS, DIRECTIONS = 32, 4096, 16, 10, 8
SHARED = Shared(seed=1, round=1)
Sums = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Cost:
    """One way to combine a layer set."""

    HEADER: ClassVar[tuple[str, ...]] = (
        "way", "upload a client", "× LoRA", "server CPU", "× sketch", "server memory", "error", "measured on"
    )  # fmt: skip

    way: str
    uploaded: int
    lora: int
    seconds: float
    sketch_seconds: float
    memory: int
    error: float
    measured: str

    def cells(self) -> tuple[str, ...]:
        """See `Line`."""
        return (
            self.way, f"{4 * self.uploaded / 2**20:,.0f} MiB", f"{self.uploaded / self.lora:.2f}",
            f"{self.seconds:,.1f} s", f"{self.seconds / self.sketch_seconds:,.1f}",
            f"{self.memory / 2**20:,.0f} MiB", f"{self.error:.4f}", self.measured,
        )  # fmt: skip


def rows(layers: int = LAYERS, width: int = WIDTH) -> Iterator[Cost]:
    """FedIT, sketch and two passes on all modules; dense exact and full SVD on one."""
    names = [f"layers.{i}.{which}_proj" for i in range(layers) for which in "qv"]
    layout = Layout(tuple(LoraModule(name, width, width, RANK, 2.0) for name in names), {})
    one = replace(layout, modules=layout.modules[:1])
    lora = layout.dense_fp32_bytes // 4
    federation = Federation(layout)
    sketch = FRALoRA(CrossTerm("sketch"))
    seconds, memory, error = federation.cost(sketch, layout)
    whole = f"{len(names)} modules"
    for name, method in (
        ("FedIT", FedIT()),
        ("sketch", sketch),
        ("two passes", FRALoRA(CrossTerm("two-pass"))),
    ):
        figures = (seconds, memory, error) if method is sketch else federation.cost(method, layout)
        uploaded = method.contract(layout).round_dimension
        yield Cost(name, uploaded, lora, figures[0], seconds, figures[1], figures[2], whole)
    dense = FRALoRA(CrossTerm("exact"))
    uploaded = dense.contract(layout).round_dimension
    part = f"1 module, × {len(names)}"
    took, held, error = federation.cost(dense, one)
    yield Cost("dense exact", uploaded, lora, took * len(names), seconds, held, error, part)
    took, held, error = federation.full_svd(one.modules[0])
    yield Cost("full SVD of every module", uploaded, lora, took * len(names), seconds, held, error, part)


class Federation:
    """A start and clients drawn from a seed, one at a time, so that only sums are held."""

    def __init__(self, layout: Layout) -> None:
        self.start = _random(layout, np.random.default_rng(0))

    def client(self, layout: Layout, k: int) -> State:
        """Return what client k has trained."""
        trained = {}
        for i, m in enumerate(layout.modules):
            spans, own = np.random.default_rng([1, i]), np.random.default_rng([2, i, k])
            u = spans.normal(size=(m.out_features, DIRECTIONS))
            v = spans.normal(size=(DIRECTIONS, m.in_features))
            c = own.normal(size=(DIRECTIONS, m.rank))
            noise = [0.1 * own.standard_normal(self.start[name].shape) for name in (m.b_name, m.a_name)]
            trained[m.b_name] = (self.start[m.b_name] + 0.5 * u @ c / 3 + 0.5 * noise[0]).astype(np.float32)
            trained[m.a_name] = (self.start[m.a_name] + 0.5 * c.T @ v / 3 + 0.5 * noise[1]).astype(np.float32)
        return trained

    def cost(self, method: Method, layout: Layout) -> tuple[float, int, float]:
        """Return CPU seconds and bytes of the server's part of a round, and the relative error on one module."""
        start = {name: self.start[name] for m in layout.modules for name in (m.b_name, m.a_name)}
        sums, shared, seconds, peak = Sums(), SHARED, 0.0, 0
        for exchange in range(method.contract(layout).exchanges):
            if exchange:
                announce = partial(method.announce, layout, start, sums, CLIENTS, shared)
                announced, took, held = measured(announce)
                seconds, peak = seconds + took, max(peak, held)
                shared = replace(shared, exchange=exchange, announced=announced)
            for k in range(CLIENTS):
                for name, array in method.upload(layout, start, self.client(layout, k), shared).items():
                    sums[name] = sums[name] + array if name in sums else array.astype(np.float64)
        state, took, held = measured(lambda: method.combine(layout, start, sums, CLIENTS, shared))
        return seconds + took, max(peak, held), self.error(layout.modules[0], state)

    def full_svd(self, module: LoraModule) -> tuple[float, int, float]:
        """Return the cost and error of the naive way on one module."""
        mean = self.mean(module)

        def naive() -> State:
            u, singular, vt = np.linalg.svd(mean, full_matrices=False)
            root = np.sqrt(singular[:RANK] / module.scaling)
            return {module.b_name: (u[:, :RANK] * root).astype(np.float32),
                    module.a_name: (root[:, None] * vt[:RANK]).astype(np.float32)}  # fmt: skip

        state, took, held = measured(naive)
        return took, held, self.error(module, state)

    def mean(self, module: LoraModule) -> NDArray[np.float64]:
        """Return the mean of one module's products."""
        layout = Layout((module,), {})
        total = np.zeros((module.out_features, module.in_features))
        for k in range(CLIENTS):
            client = self.client(layout, k)
            total += client[module.b_name].astype(np.float64) @ client[module.a_name]
        return module.scaling * total / CLIENTS

    def error(self, module: LoraModule, state: State) -> float:
        """Return how far a module's product is from the mean of the clients'."""
        mean = self.mean(module)
        got = module.scaling * state[module.b_name].astype(np.float64) @ state[module.a_name]
        return float(np.linalg.norm(mean - got) / np.linalg.norm(mean))


def measured(action: Callable[[], Any]) -> tuple[Any, float, int]:
    """Return an action's result, its CPU seconds, and the most bytes of arrays that it held."""
    tracemalloc.start()
    began = time.process_time()
    result = action()
    seconds = time.process_time() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, seconds, peak


def _random(layout: Layout, rng: np.random.Generator) -> State:
    """Return a state whose singular values are about those of trained factors: all alike."""
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in layout.shapes().items()}
