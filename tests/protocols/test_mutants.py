"""Every check of the protocol has a test that fails without it: the mutation suite, see mutants.py."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RUNNER = Path(__file__).parent / "mutants.py"
SHARDS = 4


@pytest.fixture(scope="module")
def mutants() -> list[Any]:
    """The table, without importing the runner as a package."""
    return list(runpy.run_path(str(RUNNER))["table"]())


def test_every_fragment_occurs_once(mutants: list[Any]) -> None:
    for mutant in mutants:
        assert mutant.source()
        assert mutant.fragment != mutant.replacement


def test_the_table_is_sound(mutants: list[Any]) -> None:
    assert len({mutant.name for mutant in mutants}) == len(mutants) >= 40
    assert len({(mutant.file, mutant.fragment, mutant.replacement) for mutant in mutants}) == len(mutants)
    assert all(mutant.tests for mutant in mutants)


@pytest.mark.long
@pytest.mark.parametrize("shard", range(1, SHARDS + 1))
def test_no_mutant_survives(shard: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "PYTHONWARNINGS": ""}
    done = subprocess.run(
        [sys.executable, str(RUNNER), "--shard", f"{shard}/{SHARDS}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
