"""Rows of tsv, csv, jsonl and plain text files, or one line that names the file and the place at fault.

No error quotes a text or a label: a private file's rows stay out of logs.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlora_priv.errors import DataError

RawLabel = str | int
PLAIN_TEXT = ".txt"
Row = tuple[int, dict[str, Any]]
"""A line number (from 1) and that row's values by column."""

_MAX_FIELD_CHARS = 2**31 - 1  # the csv module's own limit, 128 Ki, is shorter than some documents
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


@dataclass(frozen=True)
class Columns:
    """The columns to read; a label or a prompt only where the task has one."""

    text: str
    label: str | None = None
    prompt: str | None = None

    def require_in(self, where: str, columns: Sequence[str]) -> None:
        """Raise unless all are there.

        Raises:
            DataError: names the missing column, its setting and the columns there are.
        """
        for setting in ("text", "label", "prompt"):
            column = getattr(self, setting)
            if column is not None and column not in columns:
                raise DataError(
                    f"{where} has no column {column!r}; the columns are {', '.join(columns)}",
                    f"set data.{setting}_column",
                )


@dataclass(frozen=True)
class Table:
    """Rows by column; labels and prompts are there if they were asked for. Its repr shows no row."""

    texts: list[str] = field(repr=False)
    labels: list[RawLabel] | None = field(default=None, repr=False)
    prompts: list[str] | None = field(default=None, repr=False)


def read_table(path: Path, columns: Columns) -> Table:
    """Return the rows of a file; its suffix says the format.

    Labels are ints where every one of them is a whole number, else texts. The rows of a plain text file are its
    paragraphs.

    Raises:
        DataError: unreadable, not UTF-8, malformed, no such column (names those there are), a missing value,
            or no rows.
    """
    if path.suffix == PLAIN_TEXT:
        return _read_plain_text(path, columns)
    if path.suffix not in READERS:
        raise DataError(f"{path.name} is none of {', '.join(sorted(FORMATS))}", "convert it")
    texts: list[str] = []
    labels: list[RawLabel] = []
    prompts: list[str] = []
    for line, row in READERS[path.suffix](path.name, read_text(path)):
        where = f"{path.name}, line {line}"
        columns.require_in(where, list(row))
        texts.append(_text(row[columns.text], where, columns.text))
        if columns.label is not None:
            labels.append(_label(row[columns.label], where, columns.label))
        if columns.prompt is not None:
            prompts.append(_text(row[columns.prompt], where, columns.prompt))
    if not texts:
        raise DataError(f"{path.name} holds no examples", "it needs a header line and at least one row")
    return Table(
        texts,
        None if columns.label is None else whole_numbers(labels),
        None if columns.prompt is None else prompts,
    )


def _read_plain_text(path: Path, columns: Columns) -> Table:
    """Return the paragraphs of a plain text file, which blank lines part."""
    for setting in ("label", "prompt"):
        if getattr(columns, setting) is not None:
            raise DataError(
                f"{path.name} is plain text, which has no column for data.{setting}_column",
                "use a tsv, csv or jsonl file",
            )
    pieces = _BLANK_LINES.split(read_text(path).replace("\r\n", "\n"))
    paragraphs = [piece.strip("\n") for piece in pieces if piece.strip()]
    if not paragraphs:
        raise DataError(f"{path.name} holds no examples", "it needs at least one paragraph")
    return Table(paragraphs)


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        DataError: unreadable or not UTF-8; names the byte and the line.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name} is not UTF-8: byte {error.start}, line {line}", "convert it, for example with iconv"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def whole_numbers(labels: list[RawLabel]) -> list[RawLabel]:
    """Return the labels as ints if all of them are whole numbers, else as texts."""
    try:
        return [int(label) for label in labels]
    except ValueError:
        return [str(label) for label in labels]


def _tsv(name: str, text: str) -> Iterator[Row]:
    """Yield the rows of tab-separated text as GLUE has it: a header, no quoting, a quote is a character."""
    lines = text.split("\n")  # not splitlines(): it also breaks at U+2028 and friends inside a text
    header = lines[0].rstrip("\r").split("\t")
    for number, line in enumerate(lines[1:], start=2):
        if line.rstrip("\r"):
            yield number, _zipped(name, number, header, line.rstrip("\r").split("\t"))


def _csv(name: str, text: str) -> Iterator[Row]:
    """Yield the rows of comma-separated text with a header and RFC 4180 quoting."""
    csv.field_size_limit(_MAX_FIELD_CHARS)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        for values in reader:
            if values:
                yield reader.line_num, _zipped(name, reader.line_num, header, values)
    except csv.Error as error:
        raise DataError(
            f"{name}, line {reader.line_num}: not valid CSV: {error}", "check its quotes"
        ) from None


def _jsonl(name: str, text: str) -> Iterator[Row]:
    """Yield the objects of a text with one JSON object a line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise DataError(f"{name}, line {number}: not valid JSON", "one object a line is needed") from None
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number}: not a JSON object", "one object a line is needed")
        yield number, row


READERS: dict[str, Callable[[str, str], Iterator[Row]]] = {".tsv": _tsv, ".csv": _csv, ".jsonl": _jsonl}
"""The row reader of every format with columns, by suffix."""

FORMATS = (*READERS, PLAIN_TEXT)
"""The suffixes of all files that `read_table` reads."""


def _zipped(name: str, line: int, header: list[str], values: list[str]) -> dict[str, str]:
    """Return a row by column, or refuse a row that does not have the header's columns."""
    if len(values) != len(header):
        raise DataError(f"{name}, line {line}: {len(values)} columns where the header has {len(header)}")
    return dict(zip(header, values, strict=True))


def _text(value: Any, where: str, column: str) -> str:
    """Return a text, or refuse what is none."""
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r} holds no text", "remove the row or mend it")
    return value


def _label(value: Any, where: str, column: str) -> RawLabel:
    """Return a label, or refuse a missing or fractional one."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    missing = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    if missing or (isinstance(value, str) and value.strip().lower() in ("nan", "null")):
        raise DataError(f"{where}: column {column!r} holds no label", "remove the row or label it")
    if not isinstance(value, str | int):
        raise DataError(f"{where}: column {column!r} holds neither a text nor a whole number as its label")
    return value
