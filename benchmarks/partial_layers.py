"""A client that trains some of the layers beside one that trains all: time and peak memory of a private step.

A 12-layer encoder of random weights (MiniLM's shape: width 384), LoRA r = 8 on query and value and a head, 24 texts
of 16 to 64 tokens, microbatches of 1024 tokens, clipped by the direct engine. Every part runs by turns in one
process, the least CPU time of several rounds; memory is the growth of a fresh process's resident set. "Forward"
trains the head alone: no backward pass through any layer. A third of the layers takes the forward pass and as much
of the rest as it crosses, so where the layers are decides, not only how many they are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from transformers import BertConfig, BertModel

from benchmarks import training_memory
from benchmarks.training import interleaved
from fedlora_priv.adapters import layout, trainable_parameters
from fedlora_priv.allocation import CostModel, Measurement, Profile
from fedlora_priv.allocation.layers import layers_of
from fedlora_priv.modeling import LoraSettings, attach_lora
from fedlora_priv.pooling import MeanPoolingClassifier
from fedlora_priv.training import TokenisedExamples
from fedlora_priv.training.batching import microbatches
from fedlora_priv.training.clipping import per_example_clipping
from fedlora_priv.training.losses import model_losses

LAYERS, WIDTH, RANK, TEXTS, TOKENS = 12, 384, 8, 24, 1024
PARTS: dict[str, tuple[int, ...]] = {
    "all 12 layers": tuple(range(12)),
    "the top third": (8, 9, 10, 11),
    "every third layer": (0, 3, 6, 9),
    "the lowest third": (0, 1, 2, 3),
    "the top layer": (11,),
    "forward, head alone": (),
}
WHOLE = "all 12 layers"
ROUNDS = 3


@dataclass(frozen=True)
class Part:
    """What a part costs, as a share of what the whole does, beside what the cost model says."""

    HEADER: ClassVar[tuple[str, ...]] = (
        "trained", "share of layers", "time of a step", "× whole", "model", "peak memory", "× whole", "model"
    )  # fmt: skip

    name: str
    cpu_s: float
    bytes: int | None
    whole_s: float
    whole_bytes: int | None
    model_s: float
    model_bytes: float | None

    def cells(self) -> tuple[str, ...]:
        """See `common.Line`."""
        layers = len(PARTS[self.name])
        time = (
            f"{self.cpu_s * 1000:,.0f} ms",
            f"{self.cpu_s / self.whole_s:.2f}",
            f"{self.model_s / self.whole_s:.2f}",
        )
        if self.bytes is None or not self.whole_bytes or self.model_bytes is None:
            return (self.name, f"{layers}/{LAYERS}", *time, "not measured", "", "")
        memory = (f"{self.bytes / 2**20:,.0f} MiB", f"{self.bytes / self.whole_bytes:.2f}")
        return (self.name, f"{layers}/{LAYERS}", *time, *memory, f"{self.model_bytes / self.whole_bytes:.2f}")


def rows() -> Iterator[Part]:
    """Yield what each part costs."""
    torch.set_num_threads(1)
    model, examples = encoder(), texts()
    steps = {(name, "float32"): step_of(model, examples, held) for name, held in PARTS.items()}
    # A Way's names are the training benchmark's own; interleaved() only uses them as keys.
    times = {name: timing.cpu_s for (name, _), timing in interleaved(steps, ROUNDS).items()}  # type: ignore[arg-type]  # see above
    peaks = {name: peak(name) for name in PARTS} if training_memory.can_measure() else {}
    measured = [
        Measurement(held, RANK, float(peaks.get(name, 0)), times[name])
        for name, held in PARTS.items()
        if held
    ]
    cost = CostModel.measured(layout(model), measured)
    for name, held in PARTS.items():
        yield Part(
            name, times[name], peaks.get(name), times[WHOLE], peaks.get(WHOLE),
            cost.seconds(Profile(), held, RANK), cost.memory_bytes(held, RANK) if peaks else None,
        )  # fmt: skip


def encoder() -> torch.nn.Module:
    """Return the encoder with a head of two classes, in float32."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=2000, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=12,
        intermediate_size=4 * WIDTH, max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    base = MeanPoolingClassifier(BertModel(config), 2)
    model: torch.nn.Module = attach_lora(base, LoraSettings(("query", "value"), rank=RANK), 0)
    return model


def texts() -> TokenisedExamples:
    """Return texts of random tokens."""
    rng = np.random.default_rng(0)
    ids = tuple(rng.integers(1, 2000, int(n)) for n in rng.integers(16, 65, TEXTS))
    return TokenisedExamples(ids, rng.integers(0, 2, TEXTS), 0)


def step_of(model: torch.nn.Module, examples: TokenisedExamples, held: tuple[int, ...]) -> Callable[[], None]:
    """Return a step that clips every text's gradient by what is trained, and adds up; the noise is left out."""
    layers = layers_of(layout(model))
    modules = {module.name for number in held for module in layers[number].modules}
    heads = layout(model).heads
    trained = {
        name: parameter
        for name, parameter in trainable_parameters(model).items()
        if name in heads or name.rpartition(".")[0] in modules
    }

    def step() -> None:
        with per_example_clipping(model, trained) as engine:
            for indices in microbatches(examples.lengths(), TOKENS):
                batch = examples.subset(indices).collate(torch.device("cpu"))
                engine.add(partial(model_losses, batch=batch), 1.0)
        for parameter in trained.values():
            parameter.__dict__.pop("summed_grad", None)

    return step


def peak(name: str) -> int:
    """Return what a step needs at the most beside its model, in a process of its own."""
    return training_memory.printed_by("benchmarks.partial_layers", name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(training_memory.growth_of(step_of(encoder(), texts(), PARTS[sys.argv[1]]))))
