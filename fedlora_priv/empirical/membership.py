"""How well a released adapter tells rows it was trained on from rows it was not: AUC, and TPR at low FPR.

The score of a row is by how much the adapter lowered its loss. The rows must be public: what is printed about
private rows would be a release that no ledger covers. A weak attack's failure is no evidence of privacy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from fedlora_priv.adapter_folder import load_adapter
from fedlora_priv.adapters import read_state
from fedlora_priv.config import Experiment
from fedlora_priv.data.sources import columns_of, indexed, load_source
from fedlora_priv.data.tables import read_table
from fedlora_priv.empirical.attacks import losses
from fedlora_priv.errors import ConfigError, DataError, RunFolderError
from fedlora_priv.federation.learner import load_learner
from fedlora_priv.training.examples import TokenisedExamples
from fedlora_priv.training.trainer import PrivateTrainer

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class RateAt:
    """The true positive rate at a false positive rate of at most `false_positive_rate` among the non-members."""

    false_positive_rate: float
    true_positive_rate: float
    low: float
    high: float


@dataclass(frozen=True)
class MembershipResult:
    """How an attack did; intervals at `confidence`, each by itself.

    Attributes:
        auc: chance that a member's score is above a non-member's, ties counting half.
        rates: TPR at each of `FALSE_POSITIVE_RATES`, with the exact interval of the TPR at that threshold.
    """

    members: int
    non_members: int
    auc: float
    auc_low: float
    auc_high: float
    rates: tuple[RateAt, ...]
    confidence: float
    attacker: str = "black-box: queries the released adapter and the base model"

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return asdict(self)


def membership(members: Scores, non_members: Scores, confidence: float = 0.95) -> MembershipResult:
    """Return AUC and TPR at low FPR of scores that are larger for rows that look like members.

    Raises:
        DataError: fewer than two rows on a side, or a score that is not finite.
    """
    for scores in (members, non_members):
        if len(scores) < 2 or not np.isfinite(scores).all():
            raise DataError("membership needs finite scores of at least two members and two non-members")
    auc, low, high = _auc(members, non_members, confidence)
    rates = tuple(_rate_at(share, members, non_members, confidence) for share in FALSE_POSITIVE_RATES)
    return MembershipResult(len(members), len(non_members), auc, low, high, rates, confidence)


def attack_run(folder: Path, members: Path, non_members: Path) -> MembershipResult:
    """Return how well the adapter of a finished run tells two files of public labelled rows apart.

    Args:
        folder: the run folder; its experiment must be declared public.
        members: tsv, csv or jsonl with the experiment's columns: rows that were trained on.
        non_members: rows of the same kind that were not.

    Raises:
        RunFolderError: no finished run.
        ConfigError: the run's data is not declared public.
        DataError: the files cannot be read.
    """
    if not (folder / "adapter").is_dir() or not (folder / "run.toml").is_file():
        raise RunFolderError(
            f"there is no finished run in {folder}", "'fedlora run' resumes an unfinished one"
        )
    experiment = Experiment.load(folder / "run.toml")
    if not experiment.data.public:
        raise ConfigError(
            "the run's data is not declared public, and how well its rows are recognised is a release about them",
            "'fedlora audit --empirical' attacks canaries instead",
        )
    names = load_source(experiment).train.label_names
    learner = load_learner(experiment, names, lambda line: None)
    columns = columns_of(experiment)
    tables = [
        learner.examples(indexed(read_table(path, columns), names, path.name))
        for path in (members, non_members)
    ]
    before = _losses(learner.model, tables)
    after = _losses(load_adapter(learner.model, folder / "adapter"), tables)
    return membership(before[0] - after[0], before[1] - after[1])


def _losses(model: Any, tables: list[TokenisedExamples]) -> list[Scores]:
    """Return the loss of each row of each table at the state that a model is in."""
    trainer = PrivateTrainer(model)
    return [losses(trainer, rows, read_state(model)) for rows in tables]


def _auc(members: Scores, non_members: Scores, confidence: float) -> tuple[float, float, float]:
    """Return the AUC and its interval.

    Source: DeLong, DeLong, Clarke-Pearson 1988. Where no pair contradicts the rest its variance is zero, and
    the interval is the exact one of as many disjoint pairs as there are.
    """
    above = (members[:, None] > non_members) + 0.5 * (members[:, None] == non_members)
    auc = float(above.mean())
    variance = above.mean(axis=1).var(ddof=1) / len(members) + above.mean(axis=0).var(ddof=1) / len(
        non_members
    )
    if variance == 0:
        pairs = min(above.shape)
        exact = binomtest(round(auc * pairs), pairs).proportion_ci(confidence, "exact")
        return auc, float(exact.low), float(exact.high)
    half = float(norm.isf((1 - confidence) / 2) * np.sqrt(variance))
    return auc, max(0.0, auc - half), min(1.0, auc + half)


def _rate_at(share: float, members: Scores, non_members: Scores, confidence: float) -> RateAt:
    """Return the TPR above the threshold that at most this share of the non-members exceeds."""
    threshold = np.sort(non_members)[::-1][int(share * len(non_members))]
    hits = int((members > threshold).sum())
    interval = binomtest(hits, len(members)).proportion_ci(confidence, "exact")
    return RateAt(share, hits / len(members), float(interval.low), float(interval.high))
