"""A ledger's file: SQLite in WAL mode with `synchronous=FULL`, rows of JSON lines, and beside them each chain's end.

What is read here is unchecked, but for being a ledger's: `chain` and `entries` know what rows mean. Whoever writes
holds an open `BEGIN IMMEDIATE` transaction.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .entries import Row
from .errors import LedgerError

_TABLES = (
    """CREATE TABLE IF NOT EXISTS rows (
        client_id TEXT NOT NULL, dataset_id TEXT NOT NULL, position INTEGER NOT NULL, line TEXT NOT NULL,
        PRIMARY KEY (client_id, dataset_id, position)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS heads (
        client_id TEXT NOT NULL, dataset_id TEXT NOT NULL, rows INTEGER NOT NULL, head TEXT NOT NULL,
        PRIMARY KEY (client_id, dataset_id)
    ) WITHOUT ROWID""",
)
_COLUMNS = {
    "rows": ["client_id", "dataset_id", "position", "line"],
    "heads": ["client_id", "dataset_id", "rows", "head"],
}
_BUSY_TIMEOUT_S = 30.0


def insert(connection: sqlite3.Connection, row: Row) -> None:
    """Write a row that follows the last one of its chain, within an open transaction."""
    key = (row.client_id, row.dataset_id)
    connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (*key, row.position, row.to_line()))
    connection.execute(
        "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?)", (*key, row.position + 1, row.digest)
    )


def stored_lines(path: str | Path) -> list[str]:
    """Every row of every chain in a ledger file, as stored and unchecked: what an audit of the file reads.

    Raises:
        LedgerError: the file is no ledger.
    """
    return stored(path)[0]


def stored(path: str | Path) -> tuple[list[str], dict[tuple[str, str], tuple[int, str]]]:
    """As `stored_lines`, and at that same moment how many rows each chain should have, and its last digest.

    The chains' ends are by client and data set.

    Raises:
        LedgerError: the file is no ledger.
    """
    with _reading(Path(path)) as connection:
        connection.execute("BEGIN")  # both queries see one state, whoever writes meanwhile
        rows = connection.execute("SELECT line FROM rows ORDER BY client_id, dataset_id, position").fetchall()
        ends = connection.execute("SELECT client_id, dataset_id, rows, head FROM heads").fetchall()
    return [str(line) for (line,) in rows], {
        (client, dataset): (count, head) for client, dataset, count, head in ends
    }


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write. Raises LedgerError where the file is no database, or another one."""
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro"
        with closing(
            sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        ) as connection:
            yield connection
    except sqlite3.Error as error:
        raise LedgerError(f"{path} cannot be read as a ledger: {error}") from error


def prepare(path: Path) -> sqlite3.Connection:
    """A connection that makes every commit durable, to a ledger file or to a new one.

    Raises:
        LedgerError: the file is something else, and was left as it is; or it cannot be used.
    """
    connection: sqlite3.Connection | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
        _patiently(lambda: _begin(connection, path))
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, sqlite3.Error | OSError):
            raise LedgerError(f"{path} cannot be used as a ledger: {error}") from error
        raise
    return connection


def _begin(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables where there are none. Raises LedgerError where there are others, before any change."""
    found: dict[str, list[str]] = {}
    for table, column in connection.execute(
        "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c ORDER BY m.name, c.cid"
    ):
        found.setdefault(table, []).append(column)
    if found and found != _COLUMNS:
        raise LedgerError(
            f"{path} holds {', '.join(sorted(found))}, no ledger that this version knows: it was left as it is"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    if not found:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _TABLES:
            connection.execute(statement)
        connection.execute("COMMIT")


def _patiently(action: Callable[[], None]) -> None:
    """Try again while another process holds the file: changing the journal's mode waits for nobody by itself."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            busy = (error.sqlite_errorcode & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > deadline:
                raise
        time.sleep(0.005)
