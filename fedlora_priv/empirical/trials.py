"""Many single steps with and without one row: the audit for what one run with many canaries cannot show.

A row that changes what *other* rows contribute (a loss that couples examples) hides in a one-run audit, where
every step has many canaries. Here everything but one row and the noise is the same in all trials, so any effect
of the row shows, whichever way it takes. For public or made-up rows only: the trials are not accounted for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accounting.many_runs import TrialCounts, clopper_pearson_epsilon, split_trials
from fedlora_priv.errors import ConfigError
from fedlora_priv.methods.layout import State
from fedlora_priv.training.examples import TokenisedExamples
from fedlora_priv.training.settings import StepSettings
from fedlora_priv.training.trainer import PrivateTrainer
from protocols.prg import SecretStream

_ROUNDING = 1e-4
"""Another batch shape alone moves a sum by about 1e-6 of the clip norm; a canary must do more than that."""


@dataclass(frozen=True)
class StepTrials:
    """Scores of independent steps: 1 on average where the row was in, 0 where it was not.

    Attributes:
        scores_in, scores_out: (trials,) each.
        shift: how far the row moves one step's sum, over the clip norm. At most 1 for a correct trainer.
    """

    scores_in: NDArray[np.float64]
    scores_out: NDArray[np.float64]
    shift: float

    def counts(self, delta: float, confidence: float = 0.95) -> TrialCounts:
        """Return hits and false alarms on half of the trials, at the threshold that the other half chose."""
        return split_trials(
            self.scores_in, self.scores_out, bound=clopper_pearson_epsilon, delta=delta, confidence=confidence
        )


def repeat_step(
    trainer: PrivateTrainer,
    companions: TokenisedExamples,
    canary: TokenisedExamples,
    start: State,
    *,
    trials: int,
    noise_multiplier: float,
    clip_norm: float,
    stream: SecretStream | None = None,
) -> StepTrials:
    """Return scores of `trials` private steps with the canary among its companions and as many without.

    Every row is in every batch (sample rate 1), so one step is a Gaussian mechanism of `noise_multiplier`. The
    attacker knows all rows and the start, sees the step's result, and projects it onto the difference that the
    canary makes to a step without noise.

    Args:
        trainer: the trainer under audit.
        companions: rows that are always there.
        canary: one row.
        start: state before the step.
        trials: steps with the canary, and steps without.
        noise_multiplier, clip_norm: of the mechanism that is claimed.
        stream: source of all noise; by default a fresh one.

    Raises:
        ConfigError: the canary makes no difference at all.
    """
    stream = stream or SecretStream()
    together = companions + canary

    def moved(examples: TokenisedExamples, noise: float) -> NDArray[np.float64]:
        settings = StepSettings(
            steps=1,
            sample_rate=1.0,
            planned_batch_size=1.0,
            noise_multiplier=noise,
            clip_norm=clip_norm,
            learning_rate=1.0,
        )
        result = trainer.train(examples, start, settings, stream=stream)
        return np.concatenate([(start[name] - result.state[name]).ravel() for name in start]).astype(float)

    without = moved(companions, 0.0)
    difference = moved(together, 0.0) - without
    size = float(difference @ difference)
    if size < (_ROUNDING * clip_norm) ** 2:
        raise ConfigError("the canary changes nothing in a step", "choose a row with a gradient")

    def scores(examples: TokenisedExamples) -> NDArray[np.float64]:
        steps = (moved(examples, noise_multiplier) for _ in range(trials))
        return np.array([float((step - without) @ difference) / size for step in steps])

    return StepTrials(scores(together), scores(companions), float(np.sqrt(size)) / clip_norm)
