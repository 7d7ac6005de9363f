"""The durable memory of what was already given away, injected by the application.

A client that is restored from an old snapshot, or started twice, must not mask, confirm or reveal again with
other content: two masked vectors under one mask give their difference away, two confirmations give both
shares of a client away. So before any output leaves, its digest is recorded here.

One guard belongs to one identity. Its `scope` names the federation or experiment within which a round happens
once; it is the client's own name for it, never the server's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from protocols.errors import GuardViolation, LocalProtocolError


class Guard(Protocol):
    """What a client asks of its durable memory. Every method returns only when the fact is durable."""

    def begin_session(self, session_id: bytes) -> None:
        """Remember a session.

        Raises:
            GuardViolation: it was begun before.
        """

    def claim_round(self, round_number: int, exchange: int, session_id: bytes, allow_remask: bool) -> None:
        """Remember that this session sends the masked vector of that round and exchange.

        Raises:
            GuardViolation: another session did, and `allow_remask` is False.
        """

    def record(self, session_id: bytes, phase: str, digest: bytes) -> None:
        """Remember the digest of the output of a phase. The same digest may be recorded again.

        Raises:
            GuardViolation: another digest was recorded.
        """

    @property
    def remask_count(self) -> int:
        """Masked vectors beyond the first of a round and exchange, over the life of this guard's scope."""


class SqliteGuard:
    """A guard in an SQLite file, flushed to disk before any call returns; processes may share it.

    Raises, here and in every method:
        LocalProtocolError: the file cannot be read or written. Nothing was recorded, so nothing may be sent.
    """

    def __init__(self, path: Path | str, scope: str = "") -> None:
        self._path = str(path)
        self._scope = scope
        with self._transaction() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS sessions (id BLOB PRIMARY KEY) WITHOUT ROWID")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS outputs (session BLOB, phase TEXT, digest BLOB NOT NULL,"
                " PRIMARY KEY (session, phase)) WITHOUT ROWID"
            )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS vectors (scope TEXT, round INTEGER, exchange INTEGER,"
                " session BLOB, PRIMARY KEY (scope, round, exchange, session)) WITHOUT ROWID"
            )

    def __repr__(self) -> str:
        return f"SqliteGuard({self._path!r}, scope={self._scope!r})"

    def begin_session(self, session_id: bytes) -> None:
        """See `Guard`."""
        with self._transaction() as connection:
            if connection.execute("SELECT 1 FROM sessions WHERE id = ?", (session_id,)).fetchone():
                raise GuardViolation("this session was begun before: the server must draw a new session id")
            connection.execute("INSERT INTO sessions VALUES (?)", (session_id,))

    def claim_round(self, round_number: int, exchange: int, session_id: bytes, allow_remask: bool) -> None:
        """See `Guard`."""
        key = (self._scope, round_number, exchange)
        with self._transaction() as connection:
            earlier = connection.execute(
                "SELECT session FROM vectors WHERE scope = ? AND round = ? AND exchange = ?", key
            ).fetchall()
            if (session_id,) in earlier:
                return
            if earlier and not allow_remask:
                raise GuardViolation(
                    f"a masked vector was already sent for round {round_number}, exchange {exchange}: "
                    "the difference of two would be one client's vector"
                )
            connection.execute("INSERT INTO vectors VALUES (?, ?, ?, ?)", (*key, session_id))

    def record(self, session_id: bytes, phase: str, digest: bytes) -> None:
        """See `Guard`."""
        with self._transaction() as connection:
            known = connection.execute(
                "SELECT digest FROM outputs WHERE session = ? AND phase = ?", (session_id, phase)
            ).fetchone()
            if known not in (None, (digest,)):
                raise GuardViolation(f"another output was already given in phase {phase} of this session")
            if known is None:
                connection.execute("INSERT INTO outputs VALUES (?, ?, ?)", (session_id, phase, digest))

    @property
    def remask_count(self) -> int:
        """See `Guard`."""
        with self._transaction() as connection:
            (count,) = connection.execute(
                "SELECT COUNT(*) - COUNT(DISTINCT round || '/' || exchange) FROM vectors WHERE scope = ?",
                (self._scope,),
            ).fetchone()
        return int(count)

    def _connect(self) -> sqlite3.Connection:
        """Open the database; a connection lives for one call, so a guard survives forks and threads."""
        return sqlite3.connect(self._path, isolation_level=None, timeout=30.0)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock from the first read, so that two processes cannot both find nothing."""
        try:
            with closing(self._connect()) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise LocalProtocolError(
                f"the guard {self._path} cannot be used ({error}): restore it, or make room; nothing was sent"
            ) from None


class MemoryGuard:
    """A guard that forgets when the process ends: for tests and simulations only."""

    def __init__(self) -> None:
        self._sessions: set[bytes] = set()
        self._vectors: dict[tuple[int, int], set[bytes]] = {}
        self._outputs: dict[tuple[bytes, str], bytes] = {}

    def begin_session(self, session_id: bytes) -> None:
        """See `Guard`."""
        if session_id in self._sessions:
            raise GuardViolation("this session was begun before: the server must draw a new session id")
        self._sessions.add(session_id)

    def claim_round(self, round_number: int, exchange: int, session_id: bytes, allow_remask: bool) -> None:
        """See `Guard`."""
        earlier = self._vectors.setdefault((round_number, exchange), set())
        if earlier and session_id not in earlier and not allow_remask:
            raise GuardViolation(
                f"a masked vector was already sent for round {round_number}, exchange {exchange}: "
                "the difference of two would be one client's vector"
            )
        earlier.add(session_id)

    def record(self, session_id: bytes, phase: str, digest: bytes) -> None:
        """See `Guard`."""
        if self._outputs.setdefault((session_id, phase), digest) != digest:
            raise GuardViolation(f"another output was already given in phase {phase} of this session")

    @property
    def remask_count(self) -> int:
        """See `Guard`."""
        return sum(len(sessions) - 1 for sessions in self._vectors.values())
