"""One JSON text per value, so that hashes and signatures mean the same everywhere.

Keys sorted, no white space, ASCII only, shortest round-trip floats, no NaN or infinity, no repeated key.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn


def dumps(value: object) -> str:
    """The canonical JSON text of a value.

    >>> dumps({"b": 1.0, "a": ["é"]})
    '{"a":["\\\\u00e9"],"b":1.0}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def loads(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, a key twice in one object, NaN or infinity.
    """
    return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object, unless a key comes twice (readers would disagree about which one counts)."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated within one JSON object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    """JSON has no NaN and no infinity, whatever Python's reader accepts."""
    raise ValueError(f"{name} is not JSON")
