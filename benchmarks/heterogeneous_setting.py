"""What one run of the study of unequal clients depends on."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import methods_runs


@dataclass(frozen=True)
class Setting(methods_runs.Setting):
    """A run of the methods study with nine clients, all layers of the encoder trained by somebody.

    Args:
        method: the name of a cell; see `heterogeneous_cells`.
        upper_layers: all of MiniLM's: only its embeddings are computed once.
    """

    clients: int = 9
    rounds: int = 8
    steps: int = 2
    batch: int = 16
    rank: int = 6
    alpha: float = 12.0
    upper_layers: int = 6
