"""Membership scores on released adapters: the statistics against brute force, the attack against a run it can break."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from fedlora_priv.cli import app
from fedlora_priv.empirical.membership import membership
from fedlora_priv.errors import DataError


def test_auc_and_rates_are_what_counting_gives() -> None:
    rng = np.random.default_rng(0)
    members, others = np.round(rng.normal(1, 1, 80), 1), np.round(rng.normal(0, 1, 200), 1)  # with ties
    found = membership(members, others)
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    assert found.auc == pytest.approx(np.mean(pairs))
    assert found.auc_low < found.auc < found.auc_high
    for rate in found.rates:
        passing = [t for t in (*others, *members, 99.0) if (others > t).mean() <= rate.false_positive_rate]
        best = max((members > t).mean() for t in passing)
        assert rate.true_positive_rate == pytest.approx(
            best, abs=0.03
        )  # the threshold is a non-member's score
        interval = binomtest(round(rate.true_positive_rate * 80), 80).proportion_ci(0.95, "exact")
        assert (rate.low, rate.high) == (interval.low, interval.high)


def test_the_interval_of_the_auc_covers_it() -> None:
    """400 experiments with a true AUC of 0.76: at 95 % coverage 350 or fewer covered has odds of 1e-9."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        found = membership(rng.normal(1, 1, 60), rng.normal(0, 1, 60))
        covered += found.auc_low <= 0.7602 <= found.auc_high
    assert covered > 350


def test_perfect_separation_does_not_claim_certainty() -> None:
    found = membership(np.arange(10.0) + 100, np.arange(20.0))
    assert (found.auc, found.auc_high) == (1.0, 1.0)
    assert found.auc_low == pytest.approx(binomtest(10, 10).proportion_ci(0.95, "exact").low)
    assert [rate.true_positive_rate for rate in found.rates] == [1.0, 1.0, 1.0]


def test_scores_that_say_nothing_are_refused() -> None:
    for bad in (np.array([1.0]), np.array([1.0, np.nan]), np.array([])):
        with pytest.raises(DataError):
            membership(bad, np.zeros(5))


def fedlora(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.long
@pytest.mark.usefixtures("without_noise")
def test_members_of_a_run_without_noise_are_recognised_and_others_are_not(
    audit_file: Callable[..., Path], tmp_path: Path, random_data: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    members, others = few / "train.tsv", random_data / "dev.tsv"
    lines = (random_data / "train.tsv").read_text().splitlines()[:61]
    members.write_text("\n".join(lines) + "\n")
    sections: dict[str, dict[str, Any]] = {
        "data": {"source": str(few), "evaluation_examples": 3},
        "training": {"clip_norm": 100.0, "batch_size": 19, "learning_rate": 0.2},
        "federation": {"rounds": 30, "evaluate_every": 30},
        "privacy": {"epsilon": 8.0},
        "communication": {"value_bits": 16},
    }
    ran = fedlora("run", audit_file(**sections))
    assert ran.exit_code == 0, ran.stderr
    found = fedlora("audit", tmp_path / "run", "--members", members, "--non-members", others, "--json")
    assert found.exit_code == 0, found.stderr
    result = json.loads(found.stdout)
    assert (result["members"], result["non_members"]) == (60, 100)
    assert result["auc_low"] > 0.55
    assert [rate["false_positive_rate"] for rate in result["rates"]] == [0.001, 0.01, 0.1]
    same = fedlora("audit", tmp_path / "run", "--members", others, "--non-members", others, "--json")
    assert json.loads(same.stdout)["auc"] == 0.5
    table = fedlora("audit", tmp_path / "run", "--members", members, "--non-members", others)
    assert "AUC" in table.stdout


def test_a_membership_attack_needs_a_public_run_and_both_files(
    tmp_path: Path, audit_file: Callable[..., Path], random_data: Path
) -> None:
    rows = random_data / "dev.tsv"
    alone = fedlora("audit", tmp_path, "--members", rows)
    assert (alone.exit_code, "go together" in alone.stderr) == (2, True)
    nothing = fedlora("audit", tmp_path, "--members", rows, "--non-members", rows)
    assert (nothing.exit_code, "no finished run" in nothing.stderr) == (6, True)
    private: dict[str, Any] = {
        "public": False, "dataset_id": "x", "labels": ["0", "1"], "declared_examples_per_client": 100,
    }  # fmt: skip
    (tmp_path / "adapter").mkdir()
    (tmp_path / "run.toml").write_text(audit_file(data=private).read_text())
    refused = fedlora("audit", tmp_path, "--members", rows, "--non-members", rows)
    assert (refused.exit_code, "not declared public" in refused.stderr) == (2, True)
