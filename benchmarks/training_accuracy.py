"""What the fast pipeline learns without clipping and noise, beside ordinary float32 training on as many examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import ClassVar

import numpy as np

from benchmarks.training_setups import minilm_model, snippets
from benchmarks.training_ways import Setup, adam, dtypes, ordinary_training
from fedlora_priv.adapters import read_state
from fedlora_priv.training import PrivateTrainer, StepSettings, TokenisedExamples
from protocols.prg import SecretStream

STEPS, BATCH, RATE, HELD_OUT = 40, 64, 5e-3, 1000
UNCLIPPED = 1e6

KEY = bytes(32)
"""Of the batches' draws, so that a run can be repeated; no noise is drawn here, and nothing is private."""


@dataclass(frozen=True)
class Learned:
    """The accuracy on held-out snippets after training on so many."""

    HEADER: ClassVar[tuple[str, ...]] = ("what", "examples seen", "accuracy", "± one standard error")

    what: str
    examples: int
    accuracy: float
    held_out: int

    def cells(self) -> tuple[str, ...]:
        """See `common.Line`."""
        error = (self.accuracy * (1 - self.accuracy) / self.held_out) ** 0.5
        return (self.what, f"{self.examples:,}", f"{self.accuracy:.4f}", f"{error:.4f}")


def rows() -> Iterator[Learned]:
    """Yield what MiniLM learns of the movie snippets."""
    examples = snippets()
    held_out = examples.subset(np.arange(HELD_OUT))
    train = examples.subset(np.arange(HELD_OUT, len(examples)))
    yield from accuracies(Setup(minilm_model, train), held_out, STEPS, BATCH)


def accuracies(setup: Setup, held_out: TokenisedExamples, steps: int, batch: int) -> Iterator[Learned]:
    """Yield what ours learns with either base, then what ordinary training does."""
    train = setup.examples
    settings = StepSettings(
        steps=steps,
        sample_rate=batch / len(train),
        planned_batch_size=batch,
        noise_multiplier=0.0,
        clip_norm=UNCLIPPED,
        learning_rate=RATE,
        optimizer="adam",
    )
    for dtype in dtypes(setup.device):
        trainer = PrivateTrainer(setup.model(dtype))
        result = trainer.train(train, read_state(trainer.model), settings, stream=SecretStream(KEY))
        seen = sum(record.batch_size for record in result.private_audit)
        what = f"ours without clipping and noise, {dtype} base"
        yield Learned(what, seen, trainer.evaluate(held_out, result.state).value, len(held_out))
    model = setup.model("float32")
    optimizer = adam(model, RATE)
    epochs = (ordinary_training(setup, model, optimizer, batch) for _ in count())
    seen = sum(islice(chain.from_iterable(epochs), steps))
    accuracy = PrivateTrainer(model).evaluate(held_out).value
    yield Learned("PEFT, shuffled padded batches, float32 base", seen, accuracy, len(held_out))
