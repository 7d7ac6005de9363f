"""What one run of the communication study depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from benchmarks import methods_runs
from fedlora_priv.communication.choices import SupportKind

Train = Literal["all", "support"]


@dataclass(frozen=True)
class Setting(methods_runs.Setting):
    """A run of the methods study, ten clients of it, and how changes travel.

    Args:
        method: "fedit", "ffa", or "flasc" for FLASC as published.
        value_bits: of one client's value under masks; None for float32 in the clear.
        support, density: which coordinates travel up, and what fraction of them. FLASC's are each client's own.
        whole_rounds: in so many first rounds of `server-topk` everything travels, or nothing would be known to rank.
        vote_every: for how many rounds a voted support is kept.
        feedback: clients keep what was left out and add it to their next change.
        train: "support" trains, clips and noises the coordinates that travel, and no others.
        download_density: what fraction of all that has changed since the beginning travels down.
        server_power: the server adds density^-power times the mean change; 1 makes random-k unbiased.
        server_rate: learning rate of FLASC's server, which is AdamW.
    """

    clients: int = 10
    rounds: int = 24
    steps: int = 1
    rank: int = 32
    alpha: float = 32.0
    targets: tuple[str, ...] = ("intermediate.dense", "output.dense")
    support: SupportKind = "dense"
    density: float = 1.0
    whole_rounds: int = 1
    vote_every: int = 24
    feedback: bool = False
    train: Train = "all"
    download_density: float = 1.0
    server_power: float = 0.0
    server_rate: float = 1.0

    def travelling(self, dimension: int) -> int:
        """Return how many of that many coordinates travel up, as a federation rounds it."""
        return max(1, math.ceil(self.density * dimension))

    @property
    def whole(self) -> int:
        """In how many of the rounds everything travels though the support is sparse."""
        return self.whole_rounds if self.support == "server-topk" and self.density < 1 else 0

    @property
    def votes(self) -> int:
        """In how many of the rounds clients vote."""
        if self.support != "voted-topk" or self.density == 1:
            return 0
        return math.ceil(self.rounds / self.vote_every)
