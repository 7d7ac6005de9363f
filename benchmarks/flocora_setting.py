"""What one run of FLoCoRA's setting in small depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from benchmarks.flocora_net import build

WAYS = (
    ("full", 32),
    ("lora", 32),
    ("masked", 4),
    ("feedback", 4),
    ("masked", 8),
    ("flocora", 4),
    ("flocora", 8),
)
"""Name and bits of what is compared, most urgent first."""


@dataclass(frozen=True)
class Setting:
    """One run.

    Args:
        way, bits: how clients send; 32 bits are float32.
        rank: of LoRA; everything is trained if the way is "full".
        images: of the training set, its first ones, over all clients.
        skew: of every label's Dirichlet shares; smaller is more skewed.
        full_rate: learning rate where everything is trained.
        learning_rate: of LoRA, and `rest_rate` of what is trained beside it. All rates fall along a cosine.
    """

    way: str
    bits: int
    seed: int
    rank: int = 8
    clients: int = 10
    rounds: int = 24
    epochs: int = 1
    images: int = 10_000
    test_images: int = 10_000
    skew: float = 0.5
    batch: int = 32
    full_rate: float = 0.05
    learning_rate: float = 0.012
    rest_rate: float = 0.06

    def net(self) -> nn.Sequential:
        """Return the net that is trained."""
        return build(None if self.way == "full" else self.rank, self.seed)

    def slowed(self, number: int) -> float:
        """Return what rates are multiplied by in a round, from 0."""
        return (1 + math.cos(math.pi * number / self.rounds)) / 2
