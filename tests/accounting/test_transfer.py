"""Ledgers in files: read, imported, refused, and never changed by it."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accounting import canonical
from accounting.anchor import Anchor
from accounting.entries import parse_row
from accounting.errors import LedgerError
from accounting.events import PoissonGaussian
from accounting.ledger import Ledger
from accounting.transfer import import_ledger, read, read_all

RUN = "ab" * 16
ROUND = PoissonGaussian(2.0, 0.05, 10, 1.0)
OPENING: dict[str, Any] = {
    "client_id": "client-1",
    "dataset_id": "reviews",
    "partition_id": "iid",
    "public": False,
}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A closed ledger of seven rows: opening, then (reserve, commit) three times."""
    with Ledger.open(tmp_path / "ledger.sqlite", **OPENING) as ledger:
        for number in range(3):
            ledger.commit(ledger.reserve(ROUND, round=number, run=RUN))
        (tmp_path / "ledger.jsonl").write_text(ledger.export_jsonl())
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def export(database: Path) -> Path:
    """The same ledger as JSON lines."""
    return database.with_name("ledger.jsonl")


def anchor_of(path: Path, signer: Any) -> Anchor:
    with Ledger.open(path, **OPENING) as ledger:
        return ledger.anchor(sign=signer.sign, public_key=signer.public_key)


# --- what is whole ---


def test_both_files_of_a_ledger_say_the_same(database: Path, export: Path) -> None:
    before = digest(database), digest(export)
    assert read(database) == read(export) == read_all([export, database])
    assert (digest(database), digest(export)) == before


def test_an_import_goes_on_where_the_export_ended(tmp_path: Path, export: Path, signer: Any) -> None:
    anchor = anchor_of(export.with_name("ledger.sqlite"), signer)
    target = tmp_path / "elsewhere.sqlite"
    merged = import_ledger(export, target, anchors=[anchor], keys={"client-1": signer.public_key})
    assert read(target) == merged
    with Ledger.open(target, **OPENING, expect=anchor) as ledger:
        assert ledger.export_jsonl() == export.read_text()
        ledger.reserve(ROUND, round=3, run=RUN)
        assert ledger.spent_events() == (ROUND,) * 4
        ledger.verify()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set()


def test_several_clients_are_imported_at_once(tmp_path: Path, original: Any) -> None:
    source = tmp_path / "all.jsonl"
    source.write_text("".join(line + "\n" for line in original.lines))
    anchors = [Anchor.from_json(value) for value in original.report["anchors"]]
    import_ledger(source, tmp_path / "new.sqlite", anchors=anchors, keys=original.roster)
    assert len(read(tmp_path / "new.sqlite").chains) == 3


# --- what is not ---


def edits() -> list[tuple[str, Callable[[list[str]], list[str]], str]]:
    def other_schema(lines: list[str]) -> list[str]:
        value = canonical.loads(lines[0])
        return [canonical.dumps({**value, "schema": 2}), *lines[1:]]

    return [
        (
            "edited",
            lambda lines: [*lines[:3], lines[3].replace("2.0", "4.0"), *lines[4:]],
            "row 3: was edited",
        ),
        ("missing", lambda lines: [*lines[:3], *lines[4:]], "row 3: is missing or out of place"),
        ("reordered", lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "row 3: is missing or out"),
        ("headless", lambda lines: lines[1:], "row 0: is missing or out of place"),
        ("repeated", lambda lines: [*lines, lines[-1]], "row 7: is missing or out of place"),
        ("another schema", other_schema, "row 0: .*schema 2, this version reads schema 1"),
        ("no JSON", lambda lines: [*lines[:2], "{", *lines[3:]], "row 2: cannot be read"),
        ("spaced", lambda lines: [lines[0].replace(":", ": ", 1), *lines[1:]], "row 0: .*not canonical"),
        ("blank line", lambda lines: [*lines[:2], "", *lines[2:]], "row 2: cannot be read"),
    ]


@pytest.mark.parametrize(("name", "edit", "message"), edits(), ids=[name for name, _, _ in edits()])
def test_a_damaged_export_is_refused_and_left_as_it_is(
    tmp_path: Path, export: Path, name: str, edit: Callable[[list[str]], list[str]], message: str
) -> None:
    export.write_text("".join(line + "\n" for line in edit(export.read_text().splitlines())))
    before = digest(export)
    for act in (lambda: read(export), lambda: import_ledger(export, tmp_path / "new.sqlite")):
        with pytest.raises(LedgerError, match=message):
            act()
    assert digest(export) == before
    assert {path.name for path in tmp_path.iterdir()} == {"ledger.sqlite", "ledger.jsonl"}


@pytest.mark.parametrize("cut", [1, 2, 50, 300])
def test_a_torn_last_row_is_called_so(export: Path, cut: int) -> None:
    export.write_bytes(export.read_bytes()[:-cut])
    before = digest(export)
    with pytest.raises(LedgerError, match="is torn") as caught:
        read(export)
    assert caught.value.row == 6
    assert digest(export) == before


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE rows SET line = replace(line, '2.0', '4.0') WHERE position = 3", "row 3: was edited"),
        (
            "UPDATE rows SET line = replace(line, '\"schema\":1', '\"schema\":7')",
            "schema 7, this version reads",
        ),
        ("UPDATE rows SET line = substr(line, 1, 90) WHERE position = 6", "row 6: cannot be read"),
        ("DELETE FROM rows WHERE position = 6", "row 6: .*another end"),
        ("DELETE FROM rows WHERE position = 2", "row 2: is missing"),
        ("DELETE FROM rows", "row 0"),
        ("DELETE FROM heads", "row 7: .*another end"),
        ("DROP TABLE heads", "holds rows, no ledger that this version knows|no such table"),
        ("ALTER TABLE rows ADD COLUMN note TEXT DEFAULT ''", "no ledger that this version knows"),
    ],
)
def test_a_damaged_database_is_refused_and_left_as_it_is(
    database: Path, statement: str, message: str
) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(statement)
    connection.close()
    before = digest(database)
    with pytest.raises(LedgerError, match=message):
        Ledger.open(database, **OPENING)
    assert digest(database) == before
    if "COLUMN" not in statement:
        with pytest.raises(LedgerError, match=message):
            read(database)
    assert digest(database) == before


@pytest.mark.parametrize(
    "content", [b"", b"not a database" * 100, b"SQLite format 3\0" + b"x" * 600, b"\xff\n"]
)
def test_what_is_no_ledger_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        read(path)
    if content:  # an empty file is where a new ledger may begin
        with pytest.raises(LedgerError):
            Ledger.open(path, **OPENING)
    assert path.read_bytes() == content


def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "diary.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE diary (day TEXT, entry TEXT)")
    connection.close()
    before = digest(path)
    with pytest.raises(LedgerError, match="holds diary, no ledger that this version knows"):
        Ledger.open(path, **OPENING)
    with pytest.raises(LedgerError, match="cannot be read as a ledger"):
        read(path)
    assert digest(path) == before
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file"):
        read(tmp_path / "ledger.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_an_import_never_touches_a_ledger_that_is_there(export: Path, database: Path) -> None:
    before = digest(database)
    with pytest.raises(LedgerError, match="never over or into another"):
        import_ledger(export, database)
    assert digest(database) == before


# --- anchors ---


def test_an_import_into_no_folder_is_refused(tmp_path: Path, export: Path) -> None:
    with pytest.raises(LedgerError, match=r"new\.sqlite cannot be written: No such file"):
        import_ledger(export, tmp_path / "nowhere" / "new.sqlite")


def test_an_import_is_held_against_its_anchors(tmp_path: Path, export: Path, signer: Any) -> None:
    target = tmp_path / "new.sqlite"
    anchor = anchor_of(export.with_name("ledger.sqlite"), signer)
    pinned = {"client-1": signer.public_key}
    lines = export.read_text().splitlines()
    export.write_text("".join(line + "\n" for line in lines[:5]))
    with pytest.raises(LedgerError, match="row 5: is missing: the anchor has 7 rows"):
        import_ledger(export, target, anchors=[anchor])
    export.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(LedgerError, match="not the pinned one"):
        import_ledger(export, target, anchors=[anchor], keys={"client-1": bytes(32)})
    with pytest.raises(LedgerError, match="no key is pinned"):
        import_ledger(export, target, anchors=[anchor], keys={})
    with pytest.raises(LedgerError, match="under no anchor"):
        import_ledger(export, target, keys=pinned)
    assert not target.exists()
    import_ledger(export, target, anchors=[anchor], keys=pinned)


def test_rows_beyond_the_anchor_are_not_imported_as_signed(tmp_path: Path, export: Path, signer: Any) -> None:
    """Whoever holds the file could have added them."""
    database = export.with_name("ledger.sqlite")
    anchor = anchor_of(database, signer)
    with Ledger.open(database, **OPENING) as ledger:
        ledger.reserve(ROUND, round=9, run=RUN)
        export.write_text(ledger.export_jsonl())
    with pytest.raises(LedgerError, match=r"row 7: .*under no anchor"):
        import_ledger(export, tmp_path / "new.sqlite", anchors=[anchor], keys={"client-1": signer.public_key})
    import_ledger(export, tmp_path / "new.sqlite", anchors=[anchor])  # nobody asked for signatures


def test_an_anchor_for_nobody_is_refused(tmp_path: Path, export: Path, original: Any) -> None:
    foreign = Anchor.from_json(original.report["anchors"][1])
    with pytest.raises(LedgerError, match="row 0: is missing"):
        import_ledger(export, tmp_path / "new.sqlite", anchors=[foreign])


def test_a_row_of_another_schema_is_told_from_a_damaged_one(export: Path) -> None:
    value = canonical.loads(export.read_text().splitlines()[0])
    with pytest.raises(LedgerError, match="schema 3, this version reads schema 1: upgrade"):
        parse_row(canonical.dumps({"schema": 3, "anything": value}), position=0)
