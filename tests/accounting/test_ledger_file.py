"""A ledger's file: shared by processes, durable through a kill, and damage to it is named."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accounting.errors import LedgerError
from accounting.events import PoissonGaussian
from accounting.ledger import Ledger

RUN = "ab" * 16
ROUND = PoissonGaussian(2.0, 0.05, 10, 1.0)
REPOSITORY = Path(__file__).parents[2]

OpenLedger = Callable[..., Ledger]


def tamper(path: Path, statement: str, *values: Any) -> None:
    """What somebody with the file and without the rules could do."""
    with sqlite3.connect(path) as connection:
        connection.execute(statement, values)
    connection.close()


# --- several processes, crashes ---


def test_two_openers_append_to_one_chain(open_ledger: OpenLedger) -> None:
    one, two = open_ledger(), open_ledger()
    one.reserve(ROUND, round=1, run=RUN)
    reservation = two.reserve(ROUND, round=1, run=RUN)
    assert two.charges()[1].attempt == 2
    assert one.commit(reservation).charged == ROUND
    assert one.head() == two.head()
    one.verify()


_WORKER = """
import sys
from accounting.events import PoissonGaussian
from accounting.ledger import Ledger
ledger = Ledger.open(sys.argv[1], client_id="client-1", dataset_id="reviews", partition_id="iid", public=False)
for number in range(int(sys.argv[2])):
    ledger.reserve(PoissonGaussian(2.0, 0.05, 10, 1.0), round=number, run=sys.argv[3])
    print(number, flush=True)
sys.stdin.read()
"""


def start_worker(path: Path, rows: int, run: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(path), str(rows), run],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_processes_that_write_at_once_lose_no_row(tmp_path: Path, open_ledger: OpenLedger) -> None:
    workers = [start_worker(tmp_path / "ledger.sqlite", 20, run) for run in ("aa", "bb")]
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    ledger = open_ledger()
    assert len(ledger.rows()) == 41
    assert len(ledger.spent_events("aa")) == len(ledger.spent_events("bb")) == 20


def test_what_was_reserved_survives_a_kill(tmp_path: Path, open_ledger: OpenLedger) -> None:
    worker = start_worker(tmp_path / "ledger.sqlite", 10_000, RUN)
    assert worker.stdout is not None
    seen = [int(worker.stdout.readline()) for _ in range(5)]
    os.kill(worker.pid, signal.SIGKILL)
    with worker:  # not `communicate`, which would lose what `readline` has read ahead
        seen += [int(line) for line in worker.stdout.read().split()]
    reserved = [charge.round for charge in open_ledger().charges()]
    assert reserved[: len(seen)] == seen
    assert len(reserved) - len(seen) in (0, 1)  # one may have become durable without being told of


# --- damage ---


@pytest.mark.parametrize("row", range(7))
def test_an_edited_row_is_named(filled: Path, open_ledger: OpenLedger, row: int) -> None:
    tamper(
        filled, "UPDATE rows SET line = replace(line, '\"client-1\"', '\"client-9\"') WHERE position = ?", row
    )
    with pytest.raises(LedgerError, match=f"row {row}: was edited") as caught:
        open_ledger()
    assert caught.value.row == row


@pytest.mark.parametrize("row", range(7))
def test_a_missing_row_is_named(filled: Path, open_ledger: OpenLedger, row: int) -> None:
    tamper(filled, "DELETE FROM rows WHERE position = ?", row)
    with pytest.raises(LedgerError, match=f"row {row}: is missing"):
        open_ledger()


def test_a_truncated_ledger_is_refused(filled: Path, open_ledger: OpenLedger) -> None:
    tamper(filled, "DELETE FROM rows WHERE position >= 3")
    with pytest.raises(LedgerError, match="row 3: is missing"):
        open_ledger()


def test_an_emptied_ledger_is_refused(filled: Path, open_ledger: OpenLedger) -> None:
    tamper(filled, "DELETE FROM rows")
    with pytest.raises(LedgerError, match="row 0: is missing"):
        open_ledger()


def test_reordered_rows_are_named(filled: Path, open_ledger: OpenLedger) -> None:
    tamper(filled, "UPDATE rows SET position = 99 WHERE position = 2")
    tamper(filled, "UPDATE rows SET position = 2 WHERE position = 3")
    tamper(filled, "UPDATE rows SET position = 3 WHERE position = 99")
    with pytest.raises(LedgerError, match="row 2: is missing or out of place"):
        open_ledger()


def test_a_row_replaced_under_an_open_ledger_is_noticed(open_ledger: OpenLedger, tmp_path: Path) -> None:
    ledger = open_ledger()
    ledger.reserve(ROUND, round=1, run=RUN)
    tamper(tmp_path / "ledger.sqlite", "DELETE FROM rows WHERE position = 1")
    with pytest.raises(LedgerError, match="row 1"):
        ledger.reserve(ROUND, round=2, run=RUN)


def test_verify_reads_what_opening_had_read(open_ledger: OpenLedger, tmp_path: Path) -> None:
    ledger = open_ledger()
    for number in range(3):
        ledger.reserve(ROUND, round=number, run=RUN)
    ledger.verify()
    tamper(
        tmp_path / "ledger.sqlite", "UPDATE rows SET line = replace(line, '2.0', '4.0') WHERE position = 1"
    )
    with pytest.raises(LedgerError, match="row 1: was edited"):
        ledger.verify()


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, open_ledger: OpenLedger) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError, match="cannot be used as a ledger"):
        open_ledger()
