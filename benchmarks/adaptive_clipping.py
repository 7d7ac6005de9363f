"""Adaptive clipping where the clip norm is right, ten times too small and ten times too large: a tiny model on SST-2.

::

    python -m benchmarks.adaptive_clipping --data DIR

DIR has GLUE's train.tsv and dev.tsv. The model is a logistic regression on hashed words, so that a whole grid takes
a minute; clip norms, counts and noise are those of `fedlora_priv.training`, and every run is one party's at ε = 3,
counts included. It says how the rule behaves, and nothing about a transformer's accuracy.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from accounting.adaptive_clip import AdaptiveClip
from accounting.planning import Plan, plan
from fedlora_priv.data.tables import Columns, read_table
from fedlora_priv.training import StepSettings
from fedlora_priv.training.adaptive import ClipNorm
from fedlora_priv.training.engine import ClipCounts
from fedlora_priv.training.noise import gaussian_noise
from fedlora_priv.training.sampling import poisson_draw
from protocols.prg import SecretStream

EXAMPLES, FEATURES, STEPS, BATCH = 20_000, 512, 80, 256
RIGHT = 1.0  # near the median norm of a gradient here
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One way to clip; `rate` is the learning rate of an adaptive clip norm, None for a constant one."""

    optimizer: str
    clip_norm: float
    rate: float | None

    def __str__(self) -> str:
        how = "constant" if self.rate is None else f"adaptive, rate {self.rate:g}"
        return f"{self.optimizer:5} clip norm {self.clip_norm:<5g} {how}"


def cases() -> Iterator[Case]:
    """Every constant clip norm, and adaptive ones from the two that are far off."""
    for optimizer in ("sgd", "adam"):
        for rate in (None, 0.2, 1.0):
            for factor in (0.1, 1.0, 10.0):
                yield Case(optimizer, factor * RIGHT, rate)


def load(file: Path, limit: int | None) -> tuple[Floats, Floats]:
    """Return hashed words of each row, counted, (n, FEATURES); and labels as -1 and 1."""
    table = read_table(file, Columns("sentence", label="label"))
    texts, labels = table.texts[:limit], (table.labels or [])[:limit]
    inputs = np.zeros((len(texts), FEATURES))
    for row, text in enumerate(texts):
        for word in text.split():
            inputs[row, zlib.crc32(word.encode()) % FEATURES] += 1
    return inputs, 2 * np.array([float(label) for label in labels]) - 1


def planned(case: Case) -> Plan:
    """Return the plan of a case, its counts charged."""
    rule = None
    if case.rate is not None:
        rule = AdaptiveClip(
            target_quantile=0.5,
            learning_rate=case.rate,
            count_noise_stddev=BATCH / 20,
            smallest_clip_norm=case.clip_norm / 1e3,
            largest_clip_norm=case.clip_norm * 1e3,
        )
    return plan(
        client_id="sst2",
        target_epsilon=3.0,
        delta=1e-5,
        declared_examples=EXAMPLES,
        planned_batch_size=BATCH,
        rounds=1,
        steps_per_round=STEPS,
        clip_norm=case.clip_norm,
        adaptive_clip=rule,
    )


def train(case: Case, inputs: Floats, labels: Floats, learning_rate: float) -> tuple[Floats, float]:
    """Return the weights after all steps, and the last clip norm."""
    made, stream = planned(case), SecretStream()
    settings = StepSettings(
        steps=STEPS,
        sample_rate=made.sample_rate,
        planned_batch_size=BATCH,
        noise_multiplier=made.noise_multiplier,
        clip_norm=case.clip_norm,
        learning_rate=learning_rate,
        adaptive=made.adaptive_clip,
    )
    clip, weights = ClipNorm(settings, stream), np.zeros(FEATURES)
    first, second = np.zeros(FEATURES), np.zeros(FEATURES)
    for step in range(1, STEPS + 1):
        drawn = poisson_draw(stream, len(labels), made.sample_rate)
        rows, signs = inputs[drawn], labels[drawn]
        gradients = -(signs / (1 + np.exp(signs * (rows @ weights))))[:, None] * rows
        norms = np.linalg.norm(gradients, axis=1)
        scaled = gradients * np.minimum(1, clip.value / np.maximum(norms, 1e-300))[:, None]
        noise = gaussian_noise(stream, FEATURES, made.noise_multiplier * clip.value)
        gradient = (scaled.sum(axis=0) + noise) / BATCH
        clip.follow([ClipCounts(len(norms), int((norms > clip.value).sum()), 0, 0.0)])
        if case.optimizer == "sgd":
            weights -= learning_rate * gradient
            continue
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        unbiased = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        weights -= learning_rate * first / (1 - 0.9**step) / unbiased
    return weights, clip.value


def main() -> None:
    """Print mean and deviation of the accuracy on dev for every case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    inputs, labels = load(options.data / "train.tsv", EXAMPLES)
    dev, truth = load(options.data / "dev.tsv", None)
    for case in cases():
        learning_rate = {"sgd": 4.0, "adam": 0.05}[case.optimizer]
        ran = [train(case, inputs, labels, learning_rate) for _ in range(options.runs)]
        accuracies = [float((np.sign(dev @ weights) == truth).mean()) for weights, _ in ran]
        last = float(np.mean([clip_norm for _, clip_norm in ran]))
        print(
            f"{case}: {np.mean(accuracies):.3f} ± {np.std(accuracies, ddof=1):.3f}, ends at {last:.3g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
