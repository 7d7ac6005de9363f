"""Where a client's secret randomness comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fedlora_priv.config import Experiment
from protocols.prg import SecretStream

StreamFactory = Callable[[str, int], SecretStream]
"""(purpose, round) → fresh secret randomness."""


def stream_factory(experiment: Experiment, client_id: str) -> StreamFactory:
    """Return the client's source of randomness: the operating system, unless a test asked otherwise."""
    if not experiment.training.deterministic_noise:
        return lambda purpose, number: SecretStream()
    seed = experiment.experiment.seed

    def known(purpose: str, number: int) -> SecretStream:
        return SecretStream(hashlib.sha256(f"{seed}/{client_id}/{purpose}/{number}".encode()).digest())

    return known
