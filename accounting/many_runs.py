"""Lower bounds on epsilon from many independent trainings, half of them with one canary.

clopper_pearson_epsilon  whatever the mechanism
gdp_epsilon              if its trade-off function is Gaussian; larger, where that holds
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import log_ndtr
from scipy.stats import beta, norm

from .errors import EmpiricalError
from .refuting import Scores, largest_refuted, require_counts, require_probabilities


@dataclass(frozen=True)
class TrialCounts:
    """Independent trainings, half of them with the canary: how often "in" was guessed rightly and wrongly."""

    true_positives: int
    positives: int
    false_positives: int
    negatives: int

    def __post_init__(self) -> None:
        require_counts(**asdict(self))
        if self.true_positives > self.positives or self.false_positives > self.negatives:
            raise EmpiricalError(f"{self} has more guesses than trials")
        if min(self.positives, self.negatives) == 0:
            raise EmpiricalError("trials are needed both with and without the canary")

    def rates_at_most(self, confidence: float) -> tuple[float, float]:
        """Upper ends (false positive rate, false negative rate), jointly true at `confidence`.

        Source: Clopper and Pearson 1934; half of the error on each side.
        """
        tail = (1 - confidence) / 2
        missed = self.positives - self.true_positives
        return _upper(self.false_positives, self.negatives, tail), _upper(missed, self.positives, tail)


def clopper_pearson_epsilon(counts: TrialCounts, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that the counts refute at `delta`, whatever the mechanism; 0.0 if none.

    >>> round(clopper_pearson_epsilon(TrialCounts(400, 500, 20, 500), 1e-5), 6)
    2.523652
    """
    require_probabilities(delta, confidence)
    false_positive, false_negative = counts.rates_at_most(confidence)
    pairs = ((false_positive, false_negative), (false_negative, false_positive))
    bounds = [math.log((1 - delta - b) / a) for a, b in pairs if 1 - delta - b > 0]
    return max(0.0, *bounds)


def gdp_epsilon(counts: TrialCounts, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that the counts refute at `delta` if the trade-off function is Gaussian; 0.0 if none.

    For any other trade-off function the figure may be too large, and refutes nothing.

    Source: Nasr et al., "Tight Auditing of Differentially Private Machine Learning", 2023, section 4.
    """
    require_probabilities(delta, confidence)
    return epsilon_of_mu(gdp_mu(counts, confidence), delta)


def gdp_mu(counts: TrialCounts, confidence: float = 0.95) -> float:
    """The largest mu for which the counts refute mu-GDP; 0.0 if none."""
    false_positive, false_negative = counts.rates_at_most(confidence)
    return max(0.0, float(norm.isf(false_positive) - norm.ppf(false_negative)))


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Epsilon at `delta` of a mu-GDP mechanism.

    Source: Dong, Roth, Su 2022, corollary 1: delta = Phi(mu/2 - e/mu) - exp(e) Phi(-mu/2 - e/mu).
    """
    if mu == 0:
        return 0.0

    def spent(epsilon: float) -> float:
        first, second = log_ndtr(mu / 2 - epsilon / mu), log_ndtr(-mu / 2 - epsilon / mu)
        return math.exp(first) - math.exp(epsilon + second)

    return largest_refuted(lambda epsilon: spent(epsilon) > delta)


def split_trials(
    scores_in: Scores,
    scores_out: Scores,
    *,
    bound: Callable[[TrialCounts, float, float], float] = clopper_pearson_epsilon,
    delta: float,
    confidence: float = 0.95,
) -> TrialCounts:
    """Counts at a threshold that was chosen on the even trials and is tried on the odd ones only.

    Args:
        scores_in: scores of trials with the canary, (n,), in the order of the trials; larger means "in".
        scores_out: scores of trials without it.
        bound: what the threshold should make large on the first half.
    """
    for scores in (scores_in, scores_out):
        if scores.ndim != 1 or len(scores) < 4 or not np.isfinite(scores).all():
            raise EmpiricalError(
                "scores must be finite, for at least four trials with and without the canary"
            )
    chosen = max(
        np.unique(np.concatenate([scores_in[::2], scores_out[::2]])),
        key=lambda threshold: bound(_counted(scores_in[::2], scores_out[::2], threshold), delta, confidence),
    )
    return _counted(scores_in[1::2], scores_out[1::2], chosen)


def _counted(scores_in: Scores, scores_out: Scores, threshold: float) -> TrialCounts:
    """Counts of guessing "in" from a threshold on."""
    hits, alarms = int((scores_in >= threshold).sum()), int((scores_out >= threshold).sum())
    return TrialCounts(hits, len(scores_in), alarms, len(scores_out))


def _upper(events: int, trials: int, tail: float) -> float:
    """The Clopper-Pearson upper end of a rate."""
    return 1.0 if events == trials else float(beta.isf(tail, events + 1, trials - events))
