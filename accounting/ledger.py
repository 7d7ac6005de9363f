"""The durable ledger of one client's data set.

A row that `reserve` or `commit` returned from survives a crash; `ledger_file` says how the file is kept. Each append
runs in one transaction that first takes in and checks what other processes have appended, so several may hold the same
file open. One file may hold the chains of several clients.

The ledger belongs to (client, data set) and lives outside run folders: a new run is no new budget.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from .anchor import Anchor, Sign, make_anchor
from .chain import Chain, Charge
from .entries import Commit, Entry, Note, Open, Release, Reserve, Row, parse_row
from .errors import LedgerError
from .event_fields import Unit
from .events import NonPrivate, PrivateEvent
from .ledger_file import insert, prepare
from .versions import library_versions


class Ledger:
    """An append-only, hash-chained record of what one client's data set has released.

    Use `Ledger.open`; close it, or use it as a context manager. Not to be shared between threads.
    """

    def __init__(self, connection: sqlite3.Connection, chain: Chain, versions: Mapping[str, str]) -> None:
        self._connection = connection
        self._chain = chain
        self._versions = dict(versions)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        client_id: str,
        dataset_id: str,
        partition_id: str,
        public: bool,
        unit: Unit = "example",
        versions: Mapping[str, str] | None = None,
        expect: Anchor | None = None,
    ) -> Ledger:
        """The ledger of `client_id`'s part of `dataset_id`, created if it is not there, verified row by row.

        `partition_id` names the split of the data set, `public` says whether the data is declared public, and
        `unit` what its events protect; all are fixed when the chain is created. `versions` (default: this
        package's libraries) goes into every reservation. `expect` is an anchor that the client kept elsewhere: the
        ledger must contain it.

        Raises:
            LedgerError: edited, truncated or reordered (names the row); another partition or public flag;
                rolled back behind `expect`; not a ledger at all.
        """
        connection = prepare(Path(path))
        try:
            ledger = cls(connection, Chain(client_id, dataset_id), versions or library_versions())
            ledger._open_chain(Open(partition_id=partition_id, public=public, unit=unit))
            if expect is not None:
                ledger.require_anchor(expect)
        except BaseException:
            connection.close()
            raise
        return ledger

    @property
    def client_id(self) -> str:
        """Whose ledger this is."""
        return self._chain.client_id

    @property
    def dataset_id(self) -> str:
        """Which data set's budget this is."""
        return self._chain.dataset_id

    @property
    def chain(self) -> Chain:
        """Everything the rows add up to, as of the last append or `refresh`."""
        return self._chain

    def reserve(
        self,
        event: PrivateEvent,
        *,
        round: int,
        run: str,
        require: Callable[[Chain], None] | None = None,
        recorded: Mapping[str, str] | None = None,
    ) -> int:
        """Charge the worst case of what is about to happen, durably, as the round's next attempt.

        Returns the reservation: the number of its row, to `commit` and `release` by. `run` is the run's id,
        hex. Act only after this returns. `require` sees the chain up to now, with no other process able to add to
        it before the reservation, and refuses by raising: two that each find room in a budget cannot both take it.
        `recorded` goes into this reservation beside the ledger's `versions`: what only this round knows.
        """
        versions = {**self._versions, **(recorded or {})}
        with self._transaction():
            if require is not None:
                require(self._chain)
            attempt = self._chain.next_attempt(run, round)
            return self._append(Reserve(run, round, attempt, event, versions)).position

    def commit(
        self, reservation: int, event: PrivateEvent | None = None, *, private_audit: str | None = None
    ) -> Charge:
        """Record what really happened (default: all that was reserved), to be called before anything is sent.

        `private_audit` is the digest of the attempt's line in the client's private audit file, if it keeps one.

        Only steps that were not executed are refunded; a stop that depends on the data's outputs keeps the
        whole reservation. Committing the same event again changes nothing.

        Raises:
            LedgerError: another mechanism, more steps, or a different event than committed before.
        """
        with self._transaction():
            charge = self._chain.charges.get(reservation)
            actual = event or (charge.reserved if charge else None)
            if charge is None or actual is None:
                raise LedgerError("reserves nothing that could be committed", row=reservation)
            if charge.committed != actual:
                self._append(Commit(reservation, actual, private_audit))
        return self._chain.charges[reservation]

    def release(
        self,
        reservation: int,
        *,
        session: str | None,
        transcript: str | None = None,
        exchange: int = 0,
        announced: str | None = None,
    ) -> Charge:
        """Record that the committed update goes into a secure aggregation session; never charged.

        Call it before the masked vector is sent, and again with the transcript (hex) if it becomes known.
        `session` is hex, or None where the update leaves unmasked (mode `insecure`). `exchange` says which map of
        the update a round sums, from 0, and `announced` is the digest (hex) of what the server had announced
        before it, None before the first. Further sessions of one exchange are re-maskings of the same update;
        they begin again at exchange 0. Repeating a call changes nothing.

        Raises:
            LedgerError: the charge is not committed; the session already has another transcript, exchange or
                announcement; a later exchange does not follow a confirmed one, or is of a share of noise.
        """
        entry = Release(reservation, session, transcript, exchange, announced)
        with self._transaction():
            charge = self._chain.charges.get(reservation)
            if charge is None or entry not in charge.releases:
                self._append(entry)
        return self._chain.charges[reservation]

    def note(self, event: NonPrivate, *, run: str, round: int | None = None) -> None:
        """Record something released outside the guarantee, before it is."""
        with self._transaction():
            self._append(Note(run, round, event))

    def charges(self, *, run: str | None = None, round: int | None = None) -> tuple[Charge, ...]:
        """The reservations and what became of them, oldest first: all, of one run, or of one round of it."""
        self.refresh()
        return tuple(
            charge
            for charge in self._chain.charges.values()
            if run in (None, charge.run) and round in (None, charge.round)
        )

    def spent_events(self, run: str | None = None) -> tuple[PrivateEvent, ...]:
        """What is charged, uncommitted reservations in full: over the data set's lifetime, or in one run."""
        self.refresh()
        return self._chain.spent(run)

    def notes(self, run: str | None = None) -> tuple[Note, ...]:
        """What was released outside the guarantee: over the lifetime, or in one run."""
        self.refresh()
        return tuple(note for note in self._chain.notes if run in (None, note.run))

    def rows(self) -> tuple[Row, ...]:
        """All rows, oldest first."""
        self.refresh()
        return tuple(self._chain.rows)

    def head(self) -> str:
        """The digest of the last row, hex."""
        self.refresh()
        return self._chain.head

    def export_jsonl(self) -> str:
        """All rows as JSON lines; `audit` reads them, and so may anybody: nothing in them is private."""
        return "".join(row.to_line() + "\n" for row in self.rows())

    def anchor(self, *, sign: Sign, public_key: bytes) -> Anchor:
        """Head and row count, signed by `sign(label, payload)`; `public_key` is its Ed25519 key, 32 bytes."""
        rows = self.rows()
        return make_anchor(
            self.client_id, self.dataset_id, rows[-1].digest, len(rows), sign=sign, public_key=public_key
        )

    def require_anchor(self, anchor: Anchor) -> None:
        """Check that this ledger still contains what `anchor` signed.

        Raises:
            LedgerError: another chain's anchor, a bad signature, or rows it covers are gone or changed.
        """
        anchor.verify()
        anchor.require_in(self.rows())

    def verify(self) -> None:
        """Read every row from disk again. Raises LedgerError naming the first that is wrong."""
        fresh = Chain(self.client_id, self.dataset_id)
        with self._transaction():
            self._read_into(fresh)
            if fresh.rows[: len(self._chain.rows)] != self._chain.rows:
                raise LedgerError("the file holds another history than this process has seen")

    def refresh(self) -> None:
        """Take in rows that other processes have appended."""
        with self._transaction():
            pass

    def close(self) -> None:
        """Close the file. What was reserved and not committed stays charged."""
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({self.client_id!r}, {self.dataset_id!r}, rows={len(self._chain.rows)})"

    def _open_chain(self, opening: Open) -> None:
        """Read the chain, or begin it; what it says about the data must be what the caller says."""
        with self._transaction():
            if not self._chain.rows:
                self._append(opening)
        for name in ("partition_id", "public", "unit"):
            recorded, given = getattr(self._chain.opening, name), getattr(opening, name)
            if recorded != given:
                raise LedgerError(
                    f"{self.client_id}, {self.dataset_id!r}: the ledger has {name} {recorded!r}, not {given!r}; "
                    "a budget belongs to the data as first declared: use that, or another data set"
                )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """One writer at a time, on top of everything written so far; a failure leaves no trace."""
        rows_before = len(self._chain.rows)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._read_into(self._chain)
            rows_before = len(self._chain.rows)
            yield
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._undo(rows_before)
            raise LedgerError(f"the ledger file cannot be used: {error}") from error
        except BaseException:
            self._undo(rows_before)
            raise

    def _undo(self, rows: int) -> None:
        """Roll the file back, and replay memory up to where it was durable."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        if len(self._chain.rows) > rows:
            durable = Chain(self.client_id, self.dataset_id)
            for row in self._chain.rows[:rows]:
                durable.extend(row)
            self._chain = durable

    def _read_into(self, chain: Chain) -> None:
        """Extend a chain by the rows on disk that it lacks, and check that disk still holds those it has."""
        key = (self.client_id, self.dataset_id)
        held = len(chain.rows)
        cursor = self._connection.execute(
            "SELECT position, line FROM rows WHERE client_id = ? AND dataset_id = ? AND position >= ? "
            "ORDER BY position",
            (*key, max(0, held - 1)),
        )
        rows = [parse_row(line, position=position) for position, line in cursor.fetchall()]
        if rows[: bool(held)] != chain.rows[-1:]:
            raise LedgerError("was replaced or removed while the ledger was open", row=held - 1)
        for row in rows[bool(held) :]:
            chain.extend(row)
        recorded = self._connection.execute(
            "SELECT rows, head FROM heads WHERE client_id = ? AND dataset_id = ?", key
        ).fetchone()
        if (recorded or (0, "0" * 64)) != (len(chain.rows), chain.head):
            raise LedgerError("is missing or was replaced: the file records another end", row=len(chain.rows))

    def _append(self, entry: Entry) -> Row:
        """Extend chain and file by one row, within the open transaction."""
        row = self._chain.next_row(entry)
        self._chain.extend(row)
        insert(self._connection, row)
        return row
