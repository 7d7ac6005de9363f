"""One production run with canaries: a correct trainer is not contradicted, broken ones are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from accounting.chain import replay
from accounting.empirical import EMPIRICAL_FILE, load
from fedlora_priv.cli import app
from fedlora_priv.config import Experiment
from fedlora_priv.empirical import one_run
from fedlora_priv.errors import ConfigError
from fedlora_priv.federation import checkpoint

pytestmark = pytest.mark.long

CANARIES = 200


def fedlora(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_correct_run_is_not_contradicted(audit_file: Callable[..., Path], tmp_path: Path) -> None:
    ran = fedlora("audit", "--empirical", audit_file(), "--canaries", CANARIES, "--json")
    assert ran.exit_code == 0, ran.stderr
    folder = tmp_path / "run-empirical"
    result = load(folder / EMPIRICAL_FILE)
    assert json.loads(ran.stdout) == result.to_json()
    assert result.lower_bound <= result.trained_epsilon <= 1.0
    assert result.rederived() == pytest.approx(result.lower_bound, abs=1e-9)
    report = json.loads((folder / "report.json").read_text())
    assert (result.run, result.client_id, result.canaries) == (report["run"], "client-1", CANARIES)
    claims = {claim["epsilon"] for claim in report["claims"] if claim["who"] == "client-1"}
    assert claims == {result.trained_epsilon}
    # It is a run like any other: three rounds, all clients in every sum, all of it reserved and committed.
    assert [len(entry["survivors"]) for entry in report["rounds"]] == [3, 3, 3]
    chains = replay((folder / "ledger.jsonl").read_text().splitlines())
    assert all(len(chain.charges) == 3 for chain in chains.values())
    assert not (tmp_path / "run").exists()
    assert check_15(folder) == "PASS"


def check_15(folder: Path) -> str:
    """The verdict of `fedlora audit` on what the attack found."""
    verdicts = json.loads(fedlora("audit", folder, "--json").stdout)
    return next(verdict["status"] for verdict in verdicts if verdict["check"] == 15)


@pytest.mark.usefixtures("without_noise")
def test_a_trainer_without_noise_is_caught(audit_file: Callable[..., Path], tmp_path: Path) -> None:
    ran = fedlora("audit", "--empirical", audit_file(), "--canaries", CANARIES)
    assert ran.exit_code == 1
    assert "an attack shows epsilon >" in ran.stderr
    result = load(tmp_path / "run-empirical" / EMPIRICAL_FILE)
    assert result.lower_bound > 1.5 > result.trained_epsilon
    assert result.attack == "update"
    assert check_15(tmp_path / "run-empirical") == "FAIL"


@pytest.mark.usefixtures("without_clipping")
def test_a_trainer_without_clipping_is_caught(
    audit_file: Callable[..., Path], tmp_path: Path, silent: Any
) -> None:
    result, _ = one_run.audit(Experiment.load(audit_file()), progress=silent, canaries=CANARIES)
    assert result.refutes
    assert result.lower_bound > 1.2


def test_an_audit_of_private_rows_is_charged_and_refused_beyond_the_budget(
    audit_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLORA_HOME", str(tmp_path / "home"))
    private = {
        "public": False,
        "dataset_id": "tiny",
        "labels": ["0", "1"],
        "declared_examples_per_client": 100,
    }
    sections: dict[str, dict[str, Any]] = {
        "data": private,
        "federation": {"rounds": 1},
        "privacy": {"retry_rounds": 0},
    }
    file = audit_file(**sections)
    first = fedlora("audit", "--empirical", file, "--canaries", 40, "--client", "client-2")
    assert first.exit_code == 0, first.stderr
    home = tmp_path / "home" / "clients"
    stored = list(home.glob("*/canaries-*.npz"))
    assert [path.parent.name for path in stored] == ["client-2"]
    assert stored[0].stat().st_mode & 0o077 == 0
    # The real ledgers paid: neither another audit nor the run itself fits the lifetime limit any more.
    shutil.rmtree(tmp_path / "run-empirical")
    for command in (("audit", "--empirical"), ("run",)):
        again = fedlora(*command, file)
        assert again.exit_code == 4, again.stderr
        assert "cannot afford this run" in again.stderr
    assert list(home.glob("*/canaries-*.npz")) == stored
    assert not list(tmp_path.glob("run*"))


def test_an_audit_that_was_cut_off_goes_on_with_the_same_coins(
    audit_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: Any
) -> None:
    experiment = Experiment.load(audit_file(training={"deterministic_noise": False}))
    save, calls = checkpoint.save, [0]

    def dying(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:  # after the second round's sum
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save", dying)
    with pytest.raises(KeyboardInterrupt):
        one_run.audit(experiment, progress=silent, canaries=40)
    monkeypatch.setattr(checkpoint, "save", save)
    (path,) = (tmp_path / "run-empirical" / "clients" / "client-1").glob("canaries-*.npz")
    before = dict(np.load(path))
    with pytest.raises(ConfigError, match="has 40 canaries, not 50"):
        one_run.audit(experiment, progress=silent, canaries=50)
    result, folder = one_run.audit(experiment, progress=silent, canaries=40)
    after = dict(np.load(path))
    assert np.array_equal(before["included"], after["included"])
    assert not np.array_equal(before["scores"], after["scores"])
    assert load(folder / EMPIRICAL_FILE) == result
    rows = (folder / "ledger.jsonl").read_text().splitlines()
    assert all(len(chain.charges) == 3 for chain in replay(rows).values())


def test_a_client_that_there_is_not_and_too_few_canaries(
    audit_file: Callable[..., Path], tmp_path: Path
) -> None:
    for options, names in (
        (("--client", "client-9"), "client-9"),
        (("--canaries", 1), "canaries"),
        (("--canaries", 10**7), "GiB"),
    ):
        ran = fedlora("audit", "--empirical", audit_file(), *options)
        assert ran.exit_code == 2
        assert names in ran.stderr
        assert not list(tmp_path.glob("run*"))


def test_options_of_an_empirical_audit_are_refused_without_it(tmp_path: Path) -> None:
    for options in (("--canaries", 10), ("--client", "client-1"), ("--set", "privacy.epsilon=1")):
        ran = fedlora("audit", tmp_path, *options)
        assert (ran.exit_code, "go with --empirical" in ran.stderr) == (2, True)


def test_options_that_a_mode_of_audit_would_ignore_are_refused(tmp_path: Path) -> None:
    for mode, option in (
        (("--empirical",), "--roster"),
        (("--empirical",), "--members"),
        (("--members", tmp_path, "--non-members", tmp_path), "--private"),
        (("--members", tmp_path), "--ledger"),
    ):
        ran = fedlora("audit", tmp_path, *mode, option, tmp_path)
        assert (ran.exit_code, f"{option} and {mode[0]} do not go together" in ran.stderr) == (2, True)
