"""Both guards keep the same rules; the one on disk keeps them across processes."""

from __future__ import annotations

import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from protocols.errors import GuardViolation, LocalProtocolError
from protocols.secagg.guard import Guard, MemoryGuard, SqliteGuard

A, B, C = (bytes([i]) * 32 for i in range(3))


@pytest.fixture(params=["memory", "sqlite"])
def guard(request: pytest.FixtureRequest, tmp_path: Path) -> Guard:
    """Either guard."""
    return MemoryGuard() if request.param == "memory" else SqliteGuard(tmp_path / "guard.db")


def test_a_session_begins_once(guard: Guard) -> None:
    guard.begin_session(A)
    guard.begin_session(B)
    with pytest.raises(GuardViolation):
        guard.begin_session(A)


def test_a_guard_that_cannot_remember_lets_nothing_out(tmp_path: Path) -> None:
    path = tmp_path / "guard.db"
    guard = SqliteGuard(path)
    path.unlink()
    for stray in tmp_path.iterdir():
        stray.unlink()
    with pytest.raises(LocalProtocolError, match=r"guard\.db cannot be used .*restore it"):
        guard.record(A, "mask", b"digest")
    path.write_bytes(b"no database at all, and long enough to be looked at" * 99)
    for use in (lambda: SqliteGuard(path), lambda: guard.begin_session(A)):
        with pytest.raises(LocalProtocolError, match="cannot be used"):
            use()
    with pytest.raises(LocalProtocolError, match="cannot be used"):
        SqliteGuard(":memory:").begin_session(A)  # another one for every call


def test_an_output_is_given_once(guard: Guard) -> None:
    guard.record(A, "mask", b"digest")
    guard.record(A, "mask", b"digest")
    guard.record(A, "confirm", b"other")
    guard.record(B, "mask", b"other")
    with pytest.raises(GuardViolation, match="phase mask"):
        guard.record(A, "mask", b"other")
    guard.record(A, "mask", b"digest")


def test_a_round_is_claimed_once(guard: Guard) -> None:
    guard.claim_round(1, 0, A, False)
    guard.claim_round(1, 0, A, False)
    guard.claim_round(1, 1, B, False)
    guard.claim_round(2, 0, B, False)
    with pytest.raises(GuardViolation, match="round 1, exchange 0"):
        guard.claim_round(1, 0, B, False)
    assert guard.remask_count == 0


def test_remasks_are_counted(guard: Guard) -> None:
    for session in (A, B, A, C):
        guard.claim_round(1, 0, session, True)
    guard.claim_round(11, 0, A, True)
    guard.claim_round(1, 10, A, True)
    assert guard.remask_count == 2
    guard.claim_round(1, 0, B, False)
    with pytest.raises(GuardViolation):
        guard.claim_round(1, 0, bytes(31) + b"x", False)
    assert guard.remask_count == 2


def test_the_file_remembers(tmp_path: Path) -> None:
    path = tmp_path / "guard.db"
    first = SqliteGuard(path)
    first.begin_session(A)
    first.claim_round(1, 0, A, False)
    first.record(A, "mask", b"digest")
    second = SqliteGuard(str(path))
    with pytest.raises(GuardViolation):
        second.begin_session(A)
    with pytest.raises(GuardViolation):
        second.claim_round(1, 0, B, False)
    with pytest.raises(GuardViolation):
        second.record(A, "mask", b"other")


def test_scopes_have_rounds_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "guard.db"
    first, second = SqliteGuard(path, scope="first"), SqliteGuard(path, scope="second")
    first.claim_round(1, 0, A, False)
    second.claim_round(1, 0, B, False)
    second.claim_round(1, 0, C, True)
    assert (first.remask_count, second.remask_count) == (0, 1)
    first.begin_session(A)
    with pytest.raises(GuardViolation):
        second.begin_session(A)  # a session id is accepted once, whatever the scope


def test_every_call_is_durable(tmp_path: Path) -> None:
    guard = SqliteGuard(tmp_path / "guard.db")
    with closing(sqlite3.connect(tmp_path / "guard.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with guard._transaction() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def _claim(path: str, session: bytes, results: multiprocessing.Queue[bool]) -> None:
    """Try to claim a round from another process."""
    try:
        SqliteGuard(path).claim_round(1, 0, session, False)
        results.put(True)
    except GuardViolation:
        results.put(False)


def test_of_two_processes_one_wins(tmp_path: Path) -> None:
    path = str(tmp_path / "guard.db")
    SqliteGuard(path)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_claim, args=(path, bytes([i]) * 32, results)) for i in range(4)]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=30) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(outcomes) == [False, False, False, True]
