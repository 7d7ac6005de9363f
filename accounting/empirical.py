"""The record of an empirical audit: what an attack achieved, and the lower bound on epsilon that follows.

Two ways from outcomes to a bound, each true with the stated confidence:

    one_run    one training, many canaries; no assumption
    many_runs  many independent trainings with and without one canary; no assumption, or a Gaussian trade-off function

A bound above a claim refutes the claim. A bound below it proves nothing: a better attack may exist.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from . import canonical
from .errors import EmpiricalError
from .many_runs import TrialCounts, clopper_pearson_epsilon, gdp_epsilon
from .one_run import one_run_epsilon
from .refuting import require_counts, require_probabilities

EMPIRICAL_FILE = "empirical.json"
"""The record's name beside the report of the run that it is about."""

Method = Literal["one-run", "clopper-pearson", "gdp"]

ASSUMPTIONS: Mapping[str, str] = {
    "one-run": "none, beyond independent fair coins",
    "clopper-pearson": "none, beyond independent trials",
    "gdp": "the mechanism's trade-off function is Gaussian",
}
"""What each method's bound rests on besides its confidence."""


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
        require_probabilities(self.delta, self.confidence)
        trials = {"positives": self.positives, "false_positives": self.false_positives}
        counts = {name: getattr(self, name) for name in ("canaries", "guesses", "correct", "tests")}
        require_counts(**counts, **(trials if self.method != "one-run" else {}))
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
