"""The chain of a ledger's rows, and the rules that every row must keep.

One chain per (client_id, dataset_id). Row 0 opens it; every row carries the SHA-256 of the one before. A
chain is only ever built by replaying rows through `Chain.extend`, so a ledger read from disk, an exported
one, and one being written obey the same rules:

    open ── reserve ── commit ── release ── release ...   (the next exchange, or the same one masked again)
                  └── (never committed: charged in full)
         └─ note                                          (something outside the guarantee)

`reserve` charges the worst case before anything happens; `commit` may lower only the number of steps. A
`release` says in which secure aggregation session, and in which exchange of its round, the committed update went
out; it is never charged, because the update is private by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from .entries import GENESIS, Commit, Entry, Note, Open, Release, Reserve, Row, parse_row
from .errors import LedgerError
from .event_fields import UNITS
from .events import DistributedNoise, NonPrivate, PrivateEvent

_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Charge:
    """One reservation and what became of it."""

    reservation: int
    run: str
    round: int
    attempt: int
    reserved: PrivateEvent
    committed: PrivateEvent | None = None
    private_audit: str | None = None
    releases: tuple[Release, ...] = ()

    @property
    def charged(self) -> PrivateEvent:
        """What counts against the budget: the commit, or the whole reservation while there is none."""
        return self.reserved if self.committed is None else self.committed

    @property
    def remasked(self) -> int:
        """In how many secure aggregation sessions more than exchanges the same update went out."""
        return self._repeated("session")

    @property
    def announced_again(self) -> int:
        """How many announcements more than one an exchange the client has answered."""
        return self._repeated("announced")

    def _repeated(self, name: str) -> int:
        """How many different values of a field the releases have, beyond one an exchange."""
        values = {(release.exchange, getattr(release, name)) for release in self.releases}
        return len(values) - len({release.exchange for release in self.releases})


@dataclass(slots=True)
class Chain:
    """Rows replayed in order, and what they add up to."""

    client_id: str
    dataset_id: str
    rows: list[Row] = field(default_factory=list)
    charges: dict[int, Charge] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    _attempts: Counter[tuple[str, int]] = field(default_factory=Counter, repr=False, compare=False)

    @property
    def head(self) -> str:
        """The digest of the last row; zeros before the first."""
        return self.rows[-1].digest if self.rows else GENESIS

    @property
    def opening(self) -> Open:
        """What row 0 says. Raises LedgerError on an empty chain."""
        if not self.rows or not isinstance(self.rows[0].entry, Open):
            raise LedgerError("the chain is empty or does not begin with its opening row", row=0)
        return self.rows[0].entry

    def spent(self, run: str | None = None) -> tuple[PrivateEvent, ...]:
        """What is charged, uncommitted reservations in full: over the lifetime, or in one run."""
        return tuple(charge.charged for charge in self.charges.values() if run in (None, charge.run))

    def next_row(self, entry: Entry) -> Row:
        """The row that would put this entry at the end of the chain."""
        return Row(self.client_id, self.dataset_id, len(self.rows), self.head, entry)

    def next_attempt(self, run: str, round: int) -> int:
        """The number, from 1, of the next attempt at a round."""
        return 1 + self._attempts[run, round]

    def extend(self, row: Row) -> None:
        """Add a row. Raises LedgerError, naming it, if it does not follow from the rows before."""
        position = len(self.rows)
        if (row.client_id, row.dataset_id) != (self.client_id, self.dataset_id):
            raise LedgerError(f"belongs to the chain of {row.client_id!r}", row=position)
        if row.position != position:
            raise LedgerError(f"is missing or out of place: found row {row.position!r} there", row=position)
        if row.previous != self.head:
            raise LedgerError("does not follow from the row before, which was edited", row=position)
        try:
            self._apply(position, row.entry)
        except (ValueError, TypeError) as error:
            raise LedgerError(str(error), row=position) from error
        self.rows.append(row)

    def _apply(self, position: int, entry: Entry) -> None:
        """Check one entry against the rules and book it. Raises ValueError or TypeError."""
        if isinstance(entry, Open) != (position == 0):
            raise ValueError("a chain has one opening row, its first")
        match entry:
            case Open():
                _check_open(self, entry)
            case Reserve():
                _check_reserve(self, entry)
                self.charges[position] = Charge(position, entry.run, entry.round, entry.attempt, entry.event)
                self._attempts[entry.run, entry.round] += 1
            case Commit():
                charge = self._charge(entry.reservation)
                _check_commit(charge, entry)
                self.charges[charge.reservation] = replace(
                    charge, committed=entry.event, private_audit=entry.private_audit
                )
            case Release():
                charge = self._charge(entry.reservation)
                _check_release(charge, entry)
                self.charges[charge.reservation] = replace(charge, releases=(*charge.releases, entry))
            case Note():
                _check_note(entry)
                self.notes.append(entry)

    def _charge(self, reservation: object) -> Charge:
        """The charge that a commit or release refers to."""
        if type(reservation) is not int or reservation not in self.charges:
            raise ValueError(f"refers to row {reservation!r}, which reserves nothing")
        return self.charges[reservation]


def replay(lines: Iterable[Row | str]) -> dict[tuple[str, str], Chain]:
    """The chains in an exported ledger, by (client_id, dataset_id), every row checked.

    Raises:
        LedgerError: names the first row that is edited, missing, out of place, or against the rules.
    """
    chains: dict[tuple[str, str], Chain] = {}
    for number, line in enumerate(lines):
        row = parse_row(line.rstrip("\n"), position=number) if isinstance(line, str) else line
        chains.setdefault((row.client_id, row.dataset_id), Chain(row.client_id, row.dataset_id)).extend(row)
    return chains


def shares_noise(event: PrivateEvent) -> DistributedNoise | None:
    """The event, or what a search repeats, if several clients' noise together makes it private."""
    inner = getattr(event, "candidate", event)
    return inner if isinstance(inner, DistributedNoise) else None


def _check_open(chain: Chain, entry: Open) -> None:
    """Names that mean something, and a unit that this package can price."""
    for name in ("client_id", "dataset_id"):
        _check_name(name, getattr(chain, name))
    _check_name("partition_id", entry.partition_id)
    if type(entry.public) is not bool or entry.unit not in UNITS:
        raise ValueError(f"public must be true or false, and the unit one of {UNITS}")


def _check_reserve(chain: Chain, entry: Reserve) -> None:
    """A priced event of at least one step, under the next attempt number of its round."""
    _check_hex("run", entry.run)
    _check_round(entry.round)
    if not isinstance(entry.event, PrivateEvent) or entry.event.steps < 1:
        raise ValueError("only an event with a price and at least one step can be reserved")
    if entry.event.unit != chain.opening.unit:
        raise ValueError(
            f"the ledger counts for each {chain.opening.unit}, the event for each {entry.event.unit}"
        )
    expected = chain.next_attempt(entry.run, entry.round)
    if type(entry.attempt) is not int or entry.attempt != expected:
        raise ValueError(f"attempt {entry.attempt!r} of round {entry.round} must be {expected}")
    if not isinstance(entry.versions, Mapping) or not all(
        isinstance(text, str) for pair in entry.versions.items() for text in pair
    ):
        raise TypeError("versions must map names to strings")


def _check_commit(charge: Charge, entry: Commit) -> None:
    """One commit per reservation, and only fewer steps than reserved."""
    if charge.committed is not None:
        raise ValueError(f"row {charge.reservation} is already committed")
    if not isinstance(entry.event, PrivateEvent) or entry.event.steps > charge.reserved.steps:
        raise ValueError(f"cannot commit more steps than row {charge.reservation} reserved")
    if replace(entry.event, steps=charge.reserved.steps) != charge.reserved:
        raise ValueError(f"commits another mechanism than row {charge.reservation} reserved")
    if entry.private_audit is not None:
        _check_hex("private_audit", entry.private_audit)


def _check_release(charge: Charge, entry: Release) -> None:
    """Only a finished update is sent, exchange by exchange, and no session under two transcripts."""
    if charge.committed is None:
        raise ValueError(f"releases row {charge.reservation}, which is not committed")
    for name in ("session", "transcript", "announced"):
        if getattr(entry, name) is not None:
            _check_hex(name, getattr(entry, name))
    if shares_noise(charge.reserved) is not None:
        _check_share_release(charge, entry)
    _check_exchange(charge, entry)
    if any(entry.session == old.session and old.transcript is not None for old in charge.releases):
        raise ValueError(f"session {entry.session} already has its transcript")


def _check_exchange(charge: Charge, entry: Release) -> None:
    """A later exchange answers one announcement, right after the client confirmed the exchange before.

    One that answers none is a band: coordinates of the same update that no other exchange has, which only some clients
    send, of those whose first sum was confirmed.
    """
    where = f"exchange {entry.exchange!r} of row {charge.reservation}"
    if type(entry.exchange) is not int or entry.exchange < 0:
        raise ValueError(f"{where}: exchanges are counted from 0")
    if entry.announced is not None and entry.exchange == 0:
        raise ValueError(f"{where}: nothing is announced before the first exchange")
    begun = [old for old in charge.releases if old.session == entry.session is not None]
    if any((old.exchange, old.announced) != (entry.exchange, entry.announced) for old in begun):
        raise ValueError(f"{where}: session {entry.session} is of another exchange or announcement")
    if entry.exchange == 0 or begun:
        return
    if entry.announced is None:
        _check_band(charge, entry, where)
        return
    # Unmasked, there are no sessions: an exchange that is sent again after a crash leaves no row.
    before = charge.releases if entry.session is None else charge.releases[-1:]
    if not any(old.exchange == entry.exchange - 1 and _is_confirmed(old, entry) for old in before):
        raise ValueError(f"{where} does not follow a confirmed exchange {entry.exchange - 1}")


def _check_band(charge: Charge, entry: Release, where: str) -> None:
    """A band follows the confirmed first exchange; masked ones come in order, each once in a round as it was begun."""
    same = [old for old in charge.releases if (old.session is None) == (entry.session is None)]
    firsts = [place for place, old in enumerate(same) if old.exchange == 0]
    if not firsts or not _is_confirmed(same[firsts[-1]], entry):
        raise ValueError(f"{where} does not follow a confirmed exchange 0")
    if entry.session is not None and any(old.exchange >= entry.exchange for old in same[firsts[-1] + 1 :]):
        raise ValueError(f"{where} follows a later one, or is there already")


def _is_confirmed(old: Release, entry: Release) -> bool:
    """Whether an earlier release ended in a sum, as far as the client can tell: one of the same mode as `entry`."""
    if entry.session is None:
        return old.session is None
    return old.session is not None and old.transcript is not None


def _check_share_release(charge: Charge, entry: Release) -> None:
    """A vector with a share of the noise leaves once, and masked; alone, it is not private."""
    if entry.session is None:
        raise ValueError(f"releases a share of noise, row {charge.reservation}, unmasked")
    if entry.exchange:
        raise ValueError(f"puts a share of noise, row {charge.reservation}, into a second exchange")
    if any(old.session != entry.session for old in charge.releases):
        raise ValueError(
            f"puts a share of noise, row {charge.reservation}, into a second sum: the difference of the two sums "
            "would show a vector under one share only"
        )


def _check_note(entry: Note) -> None:
    """A note names its run and holds nothing that has a price."""
    _check_hex("run", entry.run)
    if entry.round is not None:
        _check_round(entry.round)
    if not isinstance(entry.event, NonPrivate):
        raise TypeError("a note holds a NonPrivate event; anything else must be reserved")


def _check_name(name: str, value: object) -> None:
    """A name that is not empty, and short."""
    if not isinstance(value, str) or not 0 < len(value) <= 256:
        raise ValueError(f"{name} must be a string of 1 to 256 characters, got {value!r}")


def _check_hex(name: str, value: object) -> None:
    """An identifier or a digest."""
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise ValueError(f"{name} must be lower-case hex, got {value!r}")


def _check_round(value: object) -> None:
    """A count."""
    if type(value) is not int or value < 0:
        raise ValueError(f"round must be a whole number, 0 or more, got {value!r}")
