"""The experiment file's reference, from the models themselves: ``python -m fedlora_priv.config_reference``.

Prints `docs/configuration.md`; a test holds the page to it.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fedlora_priv.config import Experiment
from fedlora_priv.errors import exit_codes

_BOUNDS = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}"}
_TYPE_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}

_INTRODUCTION = """\
# The experiment file

One TOML file says everything that affects a result. Unknown keys are errors that name the nearest key, types
are strict (`5.0` is no integer), relative paths start at the folder that `fedlora` runs in. A value can be
replaced for one run with `--set section.key=value`, for example `--set privacy.epsilon=2`. The run folder's
`run.toml` holds every value, resolved.

Everything in the file is public: it goes to every party. The seed governs initialisation, partition and
support only; noise and batches come from the operating system's entropy.

This page is generated: `python -m fedlora_priv.config_reference > docs/configuration.md`.
"""


@dataclass(frozen=True)
class Row:
    """One key of the experiment file, as the reference shows it."""

    section: str
    key: str
    type: str
    default: str
    description: str


def rows() -> list[Row]:
    """Return every key of the experiment file, in the file's order.

    >>> next(row.default for row in rows() if row.key == "delta")
    '1e-05'
    """
    return list(_rows("", Experiment))


def _rows(section: str, model: type[BaseModel]) -> Iterator[Row]:
    """Yield the keys of a table, then of the tables in it."""
    for key, field in model.model_fields.items():
        inner = _table_of(field.annotation)
        if inner is None:
            yield Row(section, key, _type(field), _default(field), field.description or "")
        else:
            yield from _rows(f"{section}.{key}".removeprefix("."), inner)


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a table or of an array of tables, if the field is one."""
    candidates = [annotation, *typing.get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _type(field: FieldInfo) -> str:
    """Return a field's type and bounds in words."""
    annotation: Any = field.annotation
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    origin: Any = typing.get_origin(annotation) or annotation
    if origin is Literal:
        return " or ".join(f"`{value!r}`".replace("'", '"') for value in typing.get_args(annotation))
    bounds = [
        pattern.format(f"{bound:g}" if bound < 2**53 else "2^63")
        for name, pattern in _BOUNDS.items()
        for constraint in field.metadata
        if (bound := getattr(constraint, name, None)) is not None
    ]
    if origin is tuple:
        item = typing.get_args(annotation)[0]
        return f"array of {_TYPE_NAMES[getattr(item, '__origin__', item)]}s"  # Annotated has one
    return " ".join([_TYPE_NAMES[origin], ", ".join(bounds)]).strip()


def _default(field: FieldInfo) -> str:
    """Return a default as TOML would write it; a required key has none, an optional one is described."""
    if field.default is PydanticUndefined:
        return "see text" if "Default:" in (field.description or "") else "**required**"
    value = field.default
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(
        list(value) if isinstance(value, tuple) else value if isinstance(value, float) else repr(value)
    )


def markdown() -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION]
    table = rows()
    for section in dict.fromkeys(row.section for row in table):
        parts.append(f"\n## {_heading(section)}\n\n{_section_doc(section)}\n\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|\n")
        parts.extend(_line(row) for row in table if row.section == section)
    parts.append("\n## Exit codes\n\n| code | meaning |\n|---|---|\n")
    parts.extend(f"| {code} | {meaning} |\n" for code, meaning in exit_codes().items())
    return "".join(parts)


def _line(row: Row) -> str:
    """Return one row of a Markdown table."""
    meaning = row.description.replace("|", "\\|")
    return f"| `{row.key}` | {row.type} | {_code(row.default)} | {meaning} |\n"


def _heading(section: str) -> str:
    """Return a section as its TOML header; dropouts and tiers are arrays of tables."""
    return f"`[[{section}]]`" if section in ("simulate.dropouts", "allocation.tiers") else f"`[{section}]`"


def _section_doc(section: str) -> str:
    """Return the first line of a section's docstring."""
    model: type[BaseModel] = Experiment
    for part in section.split("."):
        model = typing.cast("type[BaseModel]", _table_of(model.model_fields[part].annotation))
    return (model.__doc__ or "").splitlines()[0]


def _code(default: str) -> str:
    """Return a default as inline code, words as they are."""
    return (
        default if default in ("", "see text", "**required**") else f"`{default.replace(chr(39), chr(34))}`"
    )


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]  # a TextIOWrapper
    sys.stdout.write(markdown())
