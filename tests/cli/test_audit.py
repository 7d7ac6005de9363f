"""`fedlora audit` as an auditor runs it: on copied files, without the libraries that train."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]

# What trains must not be needed, and what trained must not be there.
WITHOUT_TRAINING = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'opacus', 'peft', 'transformers', 'datasets', 'tokenizers'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
from fedlora_priv.cli import main
main()
"""


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, tiny_data: Path, silent: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run of 48 steps a client, enough for statistics."""
    import tomli_w

    from fedlora_priv.config import Experiment
    from fedlora_priv.federation.run import run

    folder = tmp_path_factory.mktemp("audited")
    values: dict[str, Any] = {
        "experiment": {"name": "tiny", "seed": 3, "output": str(folder / "run")},
        "model": {"source": str(tiny_model), "max_length": 16},
        "lora": {"rank": 2, "alpha": 4.0},
        "data": {"source": str(tiny_data), "public": True},
        "federation": {"clients": 5, "rounds": 2, "local_steps": 24},
        "training": {"batch_size": 8, "learning_rate": 0.5},
        "privacy": {"epsilon": 8.0, "delta": 1e-4},
    }
    (folder / "experiment.toml").write_text(tomli_w.dumps(values))
    run(Experiment.load(folder / "experiment.toml"), progress=silent)
    return folder / "run"


def statuses(ran: Any) -> dict[int, str]:
    return {verdict["check"]: verdict["status"] for verdict in json.loads(ran.out)}


def test_every_check_answers_and_says_what_would_help(fedlora: Callable[..., Any], finished: Path) -> None:
    ran = fedlora("audit", finished, "--json")
    assert ran.code == 0, ran.err
    verdicts = json.loads(ran.out)
    assert [verdict["check"] for verdict in verdicts] == list(range(1, 17))
    assert all(verdict["evidence"] for verdict in verdicts)
    assert all(bool(verdict["remedy"]) == (verdict["status"] != "PASS") for verdict in verdicts)
    found = {verdict["check"] for verdict in verdicts if verdict["status"] == "UNVERIFIABLE"}
    assert found == {1, 6, 7, 12, 15}


def test_with_roster_and_private_files_two_questions_stay_open(
    fedlora: Callable[..., Any], finished: Path
) -> None:
    ran = fedlora(
        "audit", finished, "--roster", finished / "roster.json", "--private", finished / "clients", "--json"
    )
    assert ran.code == 0, ran.err
    found = statuses(ran)
    assert {number for number, status in found.items() if status == "UNVERIFIABLE"} == {12, 15}
    assert "FAIL" not in found.values()


def test_the_terminal_shows_verdict_evidence_and_what_would_help(
    fedlora: Callable[..., Any], finished: Path
) -> None:
    ran = fedlora("audit", finished)
    assert ran.code == 0
    lines = ran.out.splitlines()
    shown = next(i for i, line in enumerate(lines) if " 6 batch sizes plausible" in line)
    assert lines[shown].startswith("UNVERIFIABLE")
    assert "no private audit file of client-1" in lines[shown + 1]
    folded = " ".join(ran.out.split())  # the terminal's width is not the test's
    assert "→ give this client's own auditor its private audit file (--private)" in folded
    assert "11 PASS   0 FAIL   5 UNVERIFIABLE" in ran.out
    assert "what it says of them is private too" not in ran.out


def test_a_clients_private_file_that_does_not_fit_is_a_fail(
    fedlora: Callable[..., Any], finished: Path, tmp_path: Path
) -> None:
    private = next(finished.glob("clients/client-1/private-audit-*.jsonl"))
    lines = private.read_text().splitlines()
    edited = json.loads(lines[0])
    edited["steps"][3]["batch_size"] += 1
    lines[0] = json.dumps(edited, sort_keys=True, separators=(",", ":"))
    (tmp_path / "edited.jsonl").write_text("".join(f"{line}\n" for line in lines))
    ran = fedlora("audit", finished, "--private", tmp_path / "edited.jsonl")
    assert ran.code == 1
    assert "FAIL in check 6 batch sizes plausible, 7 clip norm" in ran.err
    assert "not the one that the ledger committed to" in ran.out
    assert "what it says of them is private too" in ran.out


@pytest.mark.parametrize("content", [None, "", "{}\n", "\x00\xff\n"])
def test_a_private_file_that_is_none(
    fedlora: Callable[..., Any], finished: Path, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "none.jsonl"
    if content is not None:
        path.write_text(content)
    ran = fedlora("audit", finished, "--private", path)
    assert ran.code == 6
    assert ran.err.count("\n") == 1
    assert str(path) in ran.err.replace("\n", "")


def test_a_private_file_that_is_named_twice_counts_once(fedlora: Callable[..., Any], finished: Path) -> None:
    private = next(finished.glob("clients/client-1/private-audit-*.jsonl"))
    ran = fedlora("audit", finished, "--private", private, "--private", private.parent, "--json")
    assert ran.code == 0, ran.out
    evidence = {verdict["check"]: verdict["evidence"] for verdict in json.loads(ran.out)}
    assert "Confirmed: client-1: 48 batch sizes" in evidence[6]


def test_a_folder_without_private_files(fedlora: Callable[..., Any], finished: Path, tmp_path: Path) -> None:
    ran = fedlora("audit", finished, "--private", tmp_path)
    assert ran.code == 6
    assert "no private audit file of this run" in ran.err


@pytest.mark.parametrize("private", [False, True])
def test_two_copied_files_are_enough_without_torch(finished: Path, tmp_path: Path, private: bool) -> None:
    """In a fresh interpreter in which nothing that trains can be imported, far from the run folder."""
    for name in ("report.json", "ledger.jsonl"):
        shutil.copy(finished / name, tmp_path / name)
    extra = ["--private", str(finished / "clients")] if private else []
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRAINING, "audit", "report.json", "--json", *extra],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(REPOSITORY),
            "PATH": os.environ["PATH"],
            "COLUMNS": "200",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = {verdict["check"]: verdict["status"] for verdict in json.loads(result.stdout)}
    passed = {2, 3, 4, 5, 8, 9, 11, 13, 14, 16} | ({6, 7} if private else set())
    assert {number for number, status in found.items() if status == "PASS"} == passed
