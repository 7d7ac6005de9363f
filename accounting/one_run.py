"""A lower bound on epsilon from one training with many canaries, each in or out by a fair secret coin.

Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from .errors import EmpiricalError
from .refuting import Scores, largest_refuted, require_counts, require_probabilities


def one_run_epsilon(
    *, canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95
) -> float:
    """The largest epsilon that `correct` right guesses in one run refute at `delta`; 0.0 if none.

    Args:
        canaries: m, rows that were each included by an independent fair coin, secret from whoever guesses.
        guesses: r, canaries for which in or out was guessed; the others were abstained from.
        correct: v, guesses that were right.
        delta: of the claim that is tested.
        confidence: probability that the bound is true. Guesses may depend on everything but the coins; the
            rule that makes them must be fixed beforehand, or corrected for (`best_one_run`).

    Guarantee: if the training is (epsilon, delta)-DP under add/remove of one canary, the bound is at most
    epsilon with this probability.

    Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023, theorem 5.2 and
    its algorithm for p-values.

    >>> round(one_run_epsilon(canaries=1000, guesses=100, correct=100, delta=1e-5), 6)
    3.465376
    """
    require_counts(canaries=canaries, guesses=guesses, correct=correct)
    if not correct <= guesses <= canaries:
        raise EmpiricalError(f"{correct} right of {guesses} guesses on {canaries} canaries is impossible")
    require_probabilities(delta, confidence)
    level = 1 - confidence
    # A training that is epsilon-DP is so at every larger epsilon too, so whatever refutes a larger one refutes it.
    return largest_refuted(lambda e: one_run_p_value(canaries, guesses, correct, delta, e) < level)


def one_run_p_value(canaries: int, guesses: int, correct: int, delta: float, epsilon: float) -> float:
    """The largest chance of `correct` or more right guesses under any (epsilon, delta)-DP training."""
    if correct == 0:
        return 1.0
    rate = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, rate))
    # P[v > Bin >= v - i] for i = 1, ..., v; beyond v it no longer grows.
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, rate))
    leak = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, tail + 2 * canaries * delta * leak)


@dataclass(frozen=True)
class GuessRule:
    """Guess "in" for the `top` largest scores and "out" for the `bottom` smallest; abstain in between."""

    top: int
    bottom: int

    def correct(self, scores: Scores, included: NDArray[np.bool_]) -> int:
        """How many of the guesses are right; ties go by position, which says nothing of the coins."""
        order = np.argsort(-scores, kind="stable")
        lowest = order[len(order) - self.bottom :]
        return int(included[order[: self.top]].sum() + (~included[lowest]).sum())


def default_rules(canaries: int) -> tuple[GuessRule, ...]:
    """Six rules that cover few sure guesses and many unsure ones, on one side or both."""
    shares = [max(1, canaries // part) for part in (20, 10, 5)]
    one_sided = [GuessRule(top, 0) for top in shares]
    two_sided = [GuessRule(half, half) for half in (shares[1], max(1, canaries // 4), canaries // 2)]
    return tuple(dict.fromkeys(one_sided + two_sided))


@dataclass(frozen=True)
class OneRunOutcome:
    """The best of several attacks and rules in one run: its counts and its corrected bound.

    Attributes:
        tests: attacks times rules; each bound holds at confidence 1 - (1 - confidence) / tests, so all hold at once.
    """

    attack: str
    guesses: int
    correct: int
    tests: int
    lower_bound: float


def best_one_run(
    scores: Mapping[str, Scores],
    included: NDArray[np.bool_],
    *,
    delta: float,
    confidence: float = 0.95,
    rules: Sequence[GuessRule] = (),
) -> OneRunOutcome:
    """The largest one-run bound over attacks and rules, Bonferroni-corrected for having looked at them all.

    Args:
        scores: for each attack one score per canary, (m,); larger means "more likely included".
        included: the coins, bool (m,).
        rules: fixed before the scores were seen; by default `default_rules`.
    """
    included = np.asarray(included, dtype=np.bool_)
    canaries = len(included)
    rules = tuple(rules) or default_rules(canaries)
    _require_scores(scores, canaries, rules)
    tests = len(scores) * len(rules)
    outcomes = []
    for attack, values in scores.items():
        for rule in rules:
            guesses, correct = rule.top + rule.bottom, rule.correct(values, included)
            bound = one_run_epsilon(
                canaries=canaries,
                guesses=guesses,
                correct=correct,
                delta=delta,
                confidence=1 - (1 - confidence) / tests,
            )
            outcomes.append(OneRunOutcome(attack, guesses, correct, tests, bound))
    return max(outcomes, key=lambda outcome: outcome.lower_bound)


def _require_scores(scores: Mapping[str, Scores], canaries: int, rules: Sequence[GuessRule]) -> None:
    """Refuse scores that do not fit the canaries, and rules that guess a canary twice."""
    if not scores or canaries < 2:
        raise EmpiricalError("one-run audits need at least one attack and two canaries")
    for attack, values in scores.items():
        if values.shape != (canaries,) or not np.isfinite(values).all():
            raise EmpiricalError(
                f"attack {attack!r} must give one finite score for each of {canaries} canaries"
            )
    for rule in rules:
        if min(rule.top, rule.bottom) < 0 or not 0 < rule.top + rule.bottom <= canaries:
            raise EmpiricalError(f"{rule} does not fit {canaries} canaries")
