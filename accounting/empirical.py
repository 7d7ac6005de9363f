"""Lower bounds on epsilon from what attacks achieved, and the record that an audit reads.

Three ways from outcomes to a bound, each true with the stated confidence:

    one_run_epsilon          one training, many canaries, each in or out by a fair secret coin; no assumption
    clopper_pearson_epsilon  many independent trainings with and without one canary; no assumption
    gdp_epsilon              the same, if the mechanism's trade-off function is Gaussian; larger, where that holds

A bound above a claim refutes the claim. A bound below it proves nothing: a better attack may exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr
from scipy.stats import beta, binom, norm

from . import canonical
from .errors import EmpiricalError

EMPIRICAL_FILE = "empirical.json"
"""The record's name beside the report of the run that it is about."""

Method = Literal["one-run", "clopper-pearson", "gdp"]
Scores = NDArray[np.float64]

ASSUMPTIONS: Mapping[str, str] = {
    "one-run": "none, beyond independent fair coins",
    "clopper-pearson": "none, beyond independent trials",
    "gdp": "the mechanism's trade-off function is Gaussian",
}
"""What each method's bound rests on besides its confidence."""

_LARGEST_EPSILON = 100.0  # no number of trials that anybody can run gets near it
_BISECTIONS = 60
_MOST_TRIALS = 1_000_000  # an auditor reads records that others wrote: none may take minutes


# --- one run, many canaries -------------------------------------------------------------------------------------


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
    _require_counts(canaries=canaries, guesses=guesses, correct=correct)
    if not correct <= guesses <= canaries:
        raise EmpiricalError(f"{correct} right of {guesses} guesses on {canaries} canaries is impossible")
    _require_probabilities(delta, confidence)
    level = 1 - confidence
    # A training that is epsilon-DP is so at every larger epsilon too, so whatever refutes a larger one refutes it.
    return _largest(lambda e: one_run_p_value(canaries, guesses, correct, delta, e) < level)


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


# --- many runs, one canary --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrialCounts:
    """Independent trainings, half of them with the canary: how often "in" was guessed rightly and wrongly."""

    true_positives: int
    positives: int
    false_positives: int
    negatives: int

    def __post_init__(self) -> None:
        _require_counts(**asdict(self))
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
    _require_probabilities(delta, confidence)
    false_positive, false_negative = counts.rates_at_most(confidence)
    pairs = ((false_positive, false_negative), (false_negative, false_positive))
    bounds = [math.log((1 - delta - b) / a) for a, b in pairs if 1 - delta - b > 0]
    return max(0.0, *bounds)


def gdp_epsilon(counts: TrialCounts, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that the counts refute at `delta` if the trade-off function is Gaussian; 0.0 if none.

    For any other trade-off function the figure may be too large, and refutes nothing.

    Source: Nasr et al., "Tight Auditing of Differentially Private Machine Learning", 2023, section 4.
    """
    _require_probabilities(delta, confidence)
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

    return _largest(lambda epsilon: spent(epsilon) > delta)


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


# --- the record -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmpiricalResult:
    """What an empirical audit found; all of it may be published, for canaries are random rows.

    Attributes:
        run: id (hex) of the run that trained with the canaries.
        client_id: at whom the canaries were, so whose epsilon is tested.
        trained_epsilon: the claim that is tested, at `delta`.
        lower_bound: true with probability `confidence`, under `assumption`.
        method: how the bound follows from the counts.
        attack, attacker: the score that gave it, and what whoever computes that score must see.
        canaries, guesses, correct: the counts. With "clopper-pearson" and "gdp" a canary is a trial.
        tests: attacks and rules that were tried; the bound is corrected for them.
        positives, false_positives: with "clopper-pearson" and "gdp": trials with the canary, and wrong "in"s.
    """

    run: str
    client_id: str
    trained_epsilon: float
    lower_bound: float
    delta: float
    confidence: float
    method: Method
    attack: str
    attacker: str
    canaries: int
    guesses: int
    correct: int
    tests: int
    assumption: str
    positives: int | None = None
    false_positives: int | None = None
    schema_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("run", "client_id", "method", "attack", "attacker", "assumption"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise EmpiricalError(f"{name} must be a text")
        for name in ("trained_epsilon", "lower_bound"):
            value = getattr(self, name)
            if not isinstance(value, float) or not (math.isfinite(value) and value >= 0):
                raise EmpiricalError(f"{name} must be a number, 0 or more, got {value!r}")
        _require_probabilities(self.delta, self.confidence)
        trials = {"positives": self.positives, "false_positives": self.false_positives}
        counts = {name: getattr(self, name) for name in ("canaries", "guesses", "correct", "tests")}
        _require_counts(**counts, **(trials if self.method != "one-run" else {}))
        if ASSUMPTIONS.get(self.method) != self.assumption or self.tests < 1:
            raise EmpiricalError(f"method {self.method!r} does not go with {self.assumption!r}")
        if self.method == "one-run" and any(value is not None for value in trials.values()):
            raise EmpiricalError("positives and false_positives belong to repeated trials")

    @property
    def refutes(self) -> bool:
        """Whether the bound lies above the claim."""
        return self.lower_bound > self.trained_epsilon

    def rederived(self) -> float:
        """The lower bound again, from the counts alone: what an auditor compares `lower_bound` with."""
        confidence = 1 - (1 - self.confidence) / self.tests
        if self.positives is None or self.false_positives is None:
            return one_run_epsilon(
                canaries=self.canaries,
                guesses=self.guesses,
                correct=self.correct,
                delta=self.delta,
                confidence=confidence,
            )
        negatives = self.canaries - self.positives
        hits = self.correct - (negatives - self.false_positives)
        counts = TrialCounts(hits, self.positives, self.false_positives, negatives)
        bound = gdp_epsilon if self.method == "gdp" else clopper_pearson_epsilon
        return bound(counts, self.delta, confidence)

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object; docs/empirical-audit.md lists the fields."""
        return {"schema_version": self.schema_version, **asdict(self)}

    @classmethod
    def from_json(cls, value: object) -> EmpiricalResult:
        """The record in a JSON object.

        Raises:
            EmpiricalError: another schema version, a field too many or too few, or a value out of range.
        """
        names = {field.name for field in fields(cls)}
        version = value.get("schema_version") if isinstance(value, Mapping) else None
        if type(version) is not int or version != cls.schema_version or not isinstance(value, Mapping):
            raise EmpiricalError(f"not an empirical record of version {cls.schema_version}")
        if set(value) != names | {"schema_version"}:
            raise EmpiricalError(f"an empirical record has exactly the fields {sorted(names)}")
        result = cls(**{name: value[name] for name in names})
        result.rederived()  # raises where the counts contradict each other
        return result


def load(path: str | Path) -> EmpiricalResult:
    """The record in a file. Raises EmpiricalError if it cannot be read or is none."""
    try:
        value = canonical.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EmpiricalError(f"{path} cannot be read as an empirical record: {error}") from error
    return EmpiricalResult.from_json(value)


def _largest(refuted: Callable[[float], bool]) -> float:
    """The end of the epsilons that are refuted, by bisection; 0.0 if not even 0 is."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high) and high < _LARGEST_EPSILON:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _upper(events: int, trials: int, tail: float) -> float:
    """The Clopper-Pearson upper end of a rate."""
    return 1.0 if events == trials else float(beta.isf(tail, events + 1, trials - events))


def _require_counts(**counts: object) -> None:
    """Counts are whole numbers, 0 or more, and few enough to compute with."""
    for name, value in counts.items():
        if type(value) is not int or not 0 <= value <= _MOST_TRIALS:
            raise EmpiricalError(f"{name} must be a whole number from 0 to {_MOST_TRIALS}, got {value!r}")


def _require_probabilities(delta: float, confidence: float) -> None:
    """Delta may be 0; a confidence lies strictly between 0 and 1."""
    for name, value in (("delta", delta), ("confidence", confidence)):
        if isinstance(value, bool) or not isinstance(value, float | int) or not 0 <= value < 1:
            raise EmpiricalError(f"{name} must lie between 0 and 1, got {value!r}")
    if confidence == 0:
        raise EmpiricalError("a bound at confidence 0 says nothing")
