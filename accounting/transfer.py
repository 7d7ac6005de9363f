"""Ledgers from files, checked: to look into, to merge, or to go on with elsewhere.

Reading never changes the file that is read, whatever is wrong with it, and says which row that is.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

from .anchor import Anchor
from .chain import Chain, replay
from .errors import LedgerError
from .ledger_file import insert, prepare, stored
from .merge import Key, Merged

_SQLITE = b"SQLite format 3\0"


def read(path: str | Path) -> Merged:
    """The chains in a ledger file, an export (JSON lines) or a database (SQLite), every row checked.

    Raises:
        LedgerError: not a ledger, of another schema, torn, edited, truncated or reordered (names the row).
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path} cannot be read: {error.strerror or error}") from error
    if not data:
        raise LedgerError(f"{path} is empty: it holds no ledger")
    try:
        if data.startswith(_SQLITE):
            return _read_database(path)
        return Merged.of(replay(_lines(path, data)).values())
    except LedgerError as error:  # of several files that are read, it must say which
        error.args = (str(error) if str(path) in str(error) else f"{path}: {error}",)
        raise


def read_all(paths: Iterable[str | Path]) -> Merged:
    """The chains of several files together. Raises LedgerError as `read`, or where two contradict each other."""
    merged = Merged({})
    for path in paths:
        merged |= read(path)
    return merged


def import_ledger(
    source: str | Path,
    target: str | Path,
    *,
    anchors: Iterable[Anchor] = (),
    keys: Mapping[str, bytes] | None = None,
) -> Merged:
    """The chains of `source`, now also in a new database `target`, with which `Ledger.open` goes on.

    `anchors` are signed heads that the source must contain, each under the pinned key of its client if `keys`
    (32 bytes by client_id) are given: then every chain needs one, and none may go beyond it. `target` appears whole
    or not at all.

    Raises:
        LedgerError: as `read`; rows that an anchor covers are missing or changed; a chain without its anchor; or
            `target` exists.
    """
    merged = read(source)
    _require_anchored(merged, list(anchors), keys)
    target = Path(target)
    if target.exists():
        raise LedgerError(
            f"{target} exists: a ledger is imported into a new file, never over or into another"
        )
    try:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise LedgerError(f"{target} cannot be written: {error.strerror}") from error
    try:
        with closing(prepare(folder / "ledger")) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for chain in merged.chains.values():
                for row in chain.rows:
                    insert(connection, row)
            connection.execute("COMMIT")
        os.link(folder / "ledger", target)  # unlike a rename, fails if somebody was faster
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"{target} cannot be written: {error}") from error
    finally:
        for leftover in folder.iterdir():
            leftover.unlink()
        folder.rmdir()
    return merged


def _lines(path: Path, data: bytes) -> Iterable[str]:
    """The lines of an export; a last one without its end is told apart from an edited one."""
    # Bytes that are not text must come out as a broken row, not as a crash.
    lines = data.decode("utf-8", errors="replace").split("\n")
    torn = lines.pop()
    yield from lines
    if torn:
        raise LedgerError(f"is torn: {path} ends within it; export the ledger again", row=len(lines))


def _read_database(path: Path) -> Merged:
    """The chains of a database, which must end where it records that they end."""
    lines, recorded = stored(path)
    chains = replay(lines)
    ends: dict[Key, tuple[int, str]] = {key: (len(chain.rows), chain.head) for key, chain in chains.items()}
    for key in sorted(ends.keys() | recorded.keys()):
        if ends.get(key) != recorded.get(key):
            rows = ends.get(key, (0, ""))[0]
            raise LedgerError(f"of {key[0]!r} is missing or was replaced: another end is recorded", row=rows)
    if not chains:
        raise LedgerError(f"{path} holds no chain")
    return Merged.of(chains.values())


def _require_anchored(merged: Merged, anchors: list[Anchor], keys: Mapping[str, bytes] | None) -> None:
    """Every anchor is about rows that are there; with pinned keys every chain ends where its anchor says."""
    longest: dict[Key, int] = {}
    for anchor in anchors:
        key = (anchor.client_id, anchor.dataset_id)
        if keys is not None and anchor.client_id not in keys:
            raise LedgerError(f"no key is pinned for {anchor.client_id!r}, whose anchor is given")
        anchor.verify(None if keys is None else keys[anchor.client_id])
        anchor.require_in(merged.chains.get(key, Chain(*key)).rows)
        longest[key] = max(anchor.rows, longest.get(key, 0))
    if keys is None:
        return
    for key, chain in merged.chains.items():
        if longest.get(key) != len(chain.rows):
            raise LedgerError(
                f"of {key[0]!r}, {key[1]!r} is under no anchor: ask the client for a signed head of all its rows",
                row=longest.get(key, 0),
            )
