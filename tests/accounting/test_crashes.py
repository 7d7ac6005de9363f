"""kill -9 at random moments while several processes reserve and commit: benchmarks/ledger_crashes.py, shortened.

Runs of thousands are done by hand (docs/decisions/0025); here about two hundred kills.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accounting.chain import Chain
from accounting.entries import Commit, Open, Release, Reserve
from benchmarks.ledger_crashes import Known, event, findings

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.long
def test_two_hundred_kills_lose_nothing() -> None:
    # In a process of its own: it forks, and this one may have threads.
    command = [sys.executable, "-m", "benchmarks.ledger_crashes", "--kills", "200", "--seed", "7"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost" in done.stdout


def written(*, commit: int | None = None, release: bool = False) -> Chain:
    """What a file holds after one worker, run "0a", reserved 9 steps in row 1."""
    chain = Chain("client-1", "reviews")
    entries: list[Any] = [Open("iid", public=False), Reserve("0a", 1, 1, event(9), {})]
    entries += [] if commit is None else [Commit(1, event(commit))]
    entries += [Release(1, "ab", None)] if release else []
    for entry in entries:
        chain.extend(chain.next_row(entry))
    return chain


@pytest.mark.parametrize(
    ("chain", "notes", "wrong"),
    [
        (written(), Known({1: 9}), None),
        (written(), Known({1: 9}, {1: (1, 9)}), None),
        (written(commit=4), Known({1: 9}, {1: (1, 9)}, {1: 4}), None),
        (written(commit=4, release=True), Known({1: 9}, {1: (1, 9)}, {1: 4}, {1: 4}, {1}), None),
        (written(), Known({1: 9, 2: 3}, {1: (1, 9), 2: (2, 3)}), "acknowledged reservation"),
        (written(), Known({1: 9}, {1: (1, 8)}), "acknowledged reservation"),
        (written(), Known({1: 9}, {1: (1, 9)}, {1: 4}, {1: 4}), "acknowledged commit"),
        (written(commit=3), Known({1: 9}, {1: (1, 9)}, {1: 4}, {1: 4}), "acknowledged commit"),
        (written(commit=4), Known({1: 9}, {1: (1, 9)}, {1: 4}, {1: 4}, {1}), "acknowledged release"),
        (written(commit=4), Known({1: 9}, {1: (1, 9)}), "is charged 4 of 9"),
        (written(commit=3), Known({1: 9}, {1: (1, 9)}, {1: 4}), "is charged 3 of 9"),
        (written(), Known(), "nobody began this reservation"),
        (written(commit=9), Known({1: 9}, {1: (1, 9)}), "nobody began this commit"),
    ],
)
def test_the_check_would_see_it(chain: Chain, notes: Known, wrong: str | None) -> None:
    found = list(findings(chain, {"0a": notes}))
    assert not found if wrong is None else any(wrong in line for line in found), found
