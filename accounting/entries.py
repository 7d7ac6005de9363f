"""What a row of a ledger may say, and its one text.

A row is one entry at its place in a chain: canonical JSON that carries the digest of the row before. What may follow
what is the chain's business (`chain`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

from . import canonical
from .errors import EventError, LedgerError
from .events import NonPrivate, PrivateEvent, from_json, to_json

SCHEMA = 1
GENESIS = "0" * 64
_ROW_LABEL = b"fedlora-priv/ledger-row/1\0"


@dataclass(frozen=True, slots=True)
class Open:
    """Whose budget this is; `partition_id` names the split of the data set that made this client's part."""

    partition_id: str
    public: bool
    unit: str = "example"
    kind: ClassVar[str] = "open"


@dataclass(frozen=True, slots=True)
class Reserve:
    """The worst case of what is about to happen, charged from now on."""

    run: str
    round: int
    attempt: int
    event: PrivateEvent
    versions: Mapping[str, str]
    kind: ClassVar[str] = "reserve"


@dataclass(frozen=True, slots=True)
class Commit:
    """What really happened under the reservation in row `reservation`: the same event, or fewer steps.

    `private_audit` is the digest (hex) of what the client's private audit file says of these steps, if it keeps
    one. The digest is salted and tells nothing; a row without it is written without the field.
    """

    reservation: int
    event: PrivateEvent
    private_audit: str | None = None
    kind: ClassVar[str] = "commit"


@dataclass(frozen=True, slots=True)
class Release:
    """The secure aggregation session (and its transcript, once known) that the committed update went into.

    `session` is None where the update left unmasked, in the `insecure` mode that exists for baselines. `exchange`
    counts from 0 the maps of one update that a round sums; `announced` is the digest (hex) of what the server had
    told everybody before that exchange, None before the first and where nothing was: a band, coordinates that only
    some clients send. A row of the first is written without the two.
    """

    reservation: int
    session: str | None
    transcript: str | None
    exchange: int = 0
    announced: str | None = None
    kind: ClassVar[str] = "release"


@dataclass(frozen=True, slots=True)
class Note:
    """Something released outside the guarantee."""

    run: str
    round: int | None
    event: NonPrivate
    kind: ClassVar[str] = "note"


Entry = Open | Reserve | Commit | Release | Note
_ENTRIES: dict[str, type[Any]] = {entry.kind: entry for entry in (Open, Reserve, Commit, Release, Note)}
_FIELDS = {kind: tuple(field.name for field in fields(entry)) for kind, entry in _ENTRIES.items()}
# Fields that came later: a row is written without them where they hold these values.
_OPTIONAL: dict[str, dict[str, Any]] = {
    Commit.kind: {"private_audit": None},
    Release.kind: {"exchange": 0, "announced": None},
}
_ROW_KEYS = {"schema", "client_id", "dataset_id", "position", "previous", "kind", "data", "digest"}


@dataclass(frozen=True)  # without slots, which would leave no room for the cached digest
class Row:
    """One entry at its place in a chain."""

    client_id: str
    dataset_id: str
    position: int
    previous: str
    entry: Entry

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of everything else in the row, hex."""
        return hashlib.sha256(_ROW_LABEL + canonical.dumps(self._body()).encode()).hexdigest()

    def to_line(self) -> str:
        """The row as one line of canonical JSON, without the line break."""
        return canonical.dumps({**self._body(), "digest": self.digest})

    def _body(self) -> dict[str, Any]:
        """What the digest covers."""
        data = {name: getattr(self.entry, name) for name in _FIELDS[self.entry.kind]}
        if isinstance(self.entry, Reserve | Commit | Note):
            data["event"] = to_json(self.entry.event)
        if isinstance(self.entry, Reserve):
            data["versions"] = dict(self.entry.versions)
        for name, absent in _OPTIONAL.get(self.entry.kind, {}).items():
            if data[name] == absent:
                del data[name]
        return {
            "schema": SCHEMA,
            "client_id": self.client_id,
            "dataset_id": self.dataset_id,
            "position": self.position,
            "previous": self.previous,
            "kind": self.entry.kind,
            "data": data,
        }


def parse_row(line: str, *, position: int | None = None) -> Row:
    """The row that a line of an exported ledger states, its digest checked.

    Raises:
        LedgerError: not canonical JSON, an unknown schema or kind, or a digest that does not fit.
    """
    try:
        value = canonical.loads(line)
        if isinstance(value, dict) and value.get("schema", SCHEMA) != SCHEMA:
            raise ValueError(
                f"it is of schema {value['schema']!r}, this version reads schema {SCHEMA}: upgrade"
            )
        if not isinstance(value, dict) or set(value) != _ROW_KEYS:
            raise ValueError(f"a row of schema {SCHEMA} has exactly the fields {sorted(_ROW_KEYS)}")
        row = Row(
            client_id=value["client_id"],
            dataset_id=value["dataset_id"],
            position=value["position"],
            previous=value["previous"],
            entry=_parse_entry(value["kind"], value["data"]),
        )
        matches = row.digest == value["digest"]
        canonical_text = row.to_line() == line if matches else True
    except (ValueError, TypeError, KeyError, RecursionError, EventError) as error:
        raise LedgerError(f"cannot be read: {error}", row=position) from error
    if not matches:
        raise LedgerError("was edited: its digest does not match its content", row=row.position)
    if not canonical_text:
        raise LedgerError("was edited: it is not canonical JSON", row=row.position)
    return row


def _parse_entry(kind: object, data: Mapping[str, Any]) -> Entry:
    """The entry of a row; its field names must be exactly those of its kind."""
    cls = _ENTRIES.get(kind) if isinstance(kind, str) else None
    if cls is None or not isinstance(data, dict):
        raise ValueError(f"unknown entry kind or fields: {kind!r}")
    optional = _OPTIONAL.get(cls.kind, {})
    if set(data) | set(optional) != set(_FIELDS[cls.kind]):
        raise ValueError(f"unknown entry kind or fields: {kind!r}")
    entry: Entry = cls(**{**data, "event": from_json(data["event"])} if "event" in data else data)
    return entry
