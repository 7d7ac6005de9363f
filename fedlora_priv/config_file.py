"""From a TOML file and ``--set`` overrides to a validated model, and from any mistake to one line.

Knows nothing of the individual sections; `config.py` does.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedlora_priv.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)
Location = tuple[str | int, ...]

_OVERRIDE_TYPES = (str, int, float, bool, list, dict)  # a TOML date in an override is meant as text

_SAME_WORD = 0.88
"""How alike two words are that differ by a letter; 'fra-lora' and 'rac-lora', two methods, are less."""


def read(path: Path, what: str = "experiment file") -> dict[str, Any]:
    """Return the tables of a TOML file; `what` names it where there is none.

    Raises:
        ConfigError: no such file, not UTF-8, not TOML.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no {what} {path}", "check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder", "name the TOML file in it") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path.name} is not UTF-8: byte {error.start}, line {line}", "save it as UTF-8"
        ) from None
    return parse(text, path.name)


def parse(text: str, origin: str) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        ConfigError: not TOML; names line and column.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{origin} is not valid TOML: {error}", "texts need quotes, tables [brackets]"
        ) from None


def build(model: type[ModelT], values: dict[str, Any], overrides: Sequence[str], origin: str) -> ModelT:
    """Return the validated model of some TOML tables with overrides applied.

    Raises:
        ConfigError: an unknown key (names the nearest), a wrong type, a value out of range.
    """
    overridden = {apply_override(values, override) for override in overrides}
    try:
        return model.model_validate(values)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except ValidationError as error:
        # An unknown key often explains a missing one, so it is told first.
        details = sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
        where = "--set" if dotted(details[0]["loc"]) in overridden else origin
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise ConfigError(f"{where}: {_explain(model, details[0])}{more}") from None


def apply_override(values: dict[str, Any], override: str) -> str:
    """Set one ``section.key=value`` in place and return its dotted key.

    The value is read as TOML (``2``, ``true``, ``["query"]``) and, where it is none, as text.

    >>> tables = {"privacy": {"epsilon": 8.0}}
    >>> apply_override(tables, "privacy.epsilon=2"), tables
    ('privacy.epsilon', {'privacy': {'epsilon': 2}})

    Raises:
        ConfigError: not of that form, or a part of the key is a value already.
    """
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or len(parts) < 2 or not all(parts):
        raise ConfigError(
            f"--set {override!r} is not of the form section.key=value", "e.g. privacy.epsilon=2"
        )
    table = values
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is not a table", "set it as a whole")
    table[parts[-1]] = _override_value(text.strip())
    return ".".join(parts)


def _override_value(text: str) -> Any:
    """Return the TOML value of a text, or the text."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = parsed["value"]
    return value if len(parsed) == 1 and isinstance(value, _OVERRIDE_TYPES) else text


def dotted(location: Location) -> str:
    """Return a pydantic location as it would be written.

    >>> dotted(("simulate", "dropouts", 0, "round"))
    'simulate.dropouts[0].round'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _explain(model: type[BaseModel], detail: ErrorDetails) -> str:
    """Return one clause for one pydantic error."""
    location, kind = detail["loc"], detail["type"]
    if kind == "extra_forbidden":
        return _unknown_key(model, location)
    if kind == "missing":
        noun = "table" if len(location) == 1 else "key"
        return f"the {noun} {dotted(location)} is missing; add it"
    message = detail["msg"].removeprefix("Value error, ")
    message = re.sub("^(Input|String|Tuple) should", "should", message).replace("a valid tuple", "an array")
    message = re.sub(r" after validation, not \d+$", "", message)
    if kind == "value_error":
        return f"{dotted(location)}: {message}"
    shown = f"{dotted(location)} {message}, but is {_shown(detail['input'])}"
    near = _nearest_choice(detail) if kind == "literal_error" else None
    return f"{shown}; did you mean {near}?" if near else shown


def _nearest_choice(detail: ErrorDetails) -> str | None:
    """Return, in its quotes, the allowed word that a wrong one differs from by a letter, case or underscores."""
    allowed = re.findall("'([^']*)'", detail["ctx"]["expected"])
    word = str(detail["input"]).lower().replace("_", "-")
    near = difflib.get_close_matches(word, allowed, n=1, cutoff=_SAME_WORD)
    return repr(near[0]) if near else None


def _unknown_key(model: type[BaseModel], location: Location) -> str:
    """Return a clause that names the unknown key, its table and the nearest key there is."""
    *table, key = location
    known = _models(model)
    here = known.get(_table_name(table))
    place = f"in [{_table_name(table)}]" if table else "at the top"
    unknown = f"unknown {'key' if table else 'table'} {str(key)!r} {place}"
    elsewhere = [name for name, section in known.items() if key in section.model_fields and name]
    nearest = difflib.get_close_matches(str(key), here.model_fields if here else [], n=1, cutoff=0.5)
    if nearest:
        return f"{unknown}; did you mean {nearest[0]!r}?"
    if elsewhere:
        return f"{unknown}; it belongs in [{elsewhere[0]}]"
    return f"{unknown}; there are {', '.join(here.model_fields) if here else 'no such keys'}"


def _table_name(location: Sequence[str | int]) -> str:
    """Return the TOML table of a location, without array indices."""
    return ".".join(part for part in location if isinstance(part, str))


def _models(model: type[BaseModel], prefix: str = "") -> dict[str, type[BaseModel]]:
    """Return every table's model by its dotted name; the root is the empty name."""
    found: dict[str, type[BaseModel]] = {prefix: model}
    for name, field in model.model_fields.items():
        for inner in _inner_models(field.annotation):
            found.update(_models(inner, f"{prefix}.{name}".removeprefix(".")))
    return found


def _inner_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models inside a field's type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _inner_models(argument)


def _shown(value: Any) -> str:
    """Return a value as short as an error line wants it."""
    if isinstance(value, Mapping):
        return "a table"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
