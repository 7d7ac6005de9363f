"""Which rows of a public data set each client of a simulation holds, and the digest that their ledgers record.

Only for data declared public: of private rows even a digest tells whoever can guess them. With the lists at hand
an auditor can see for itself that no row is held twice; the digests in the signed ledgers say that the lists
are those that the clients trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import canonical
from .errors import ReportError

PARTITION_FILE = "partition.json"
"""The lists' file beside the report."""

RECORDED_AS = "rows_sha256"
"""Under this name a client's reservations record the digest of its list."""

_LABEL = b"fedlora-priv/rows/1\0"


@dataclass(frozen=True, slots=True)
class Partition:
    """Positions, from 0, of each client's rows in the data set's public training part."""

    dataset_id: str
    rows: Mapping[str, tuple[int, ...]]

    def digest(self, client_id: str) -> str:
        """What that client's reservations record, hex."""
        return rows_digest(self.dataset_id, self.rows[client_id])

    def to_text(self) -> str:
        """The file's content."""
        lists = {client_id: list(rows) for client_id, rows in self.rows.items()}
        return canonical.dumps({"schema": 1, "dataset_id": self.dataset_id, "rows": lists}) + "\n"


def rows_digest(dataset_id: str, rows: Sequence[int]) -> str:
    """SHA-256 over a data set's name and positions in it, hex."""
    value = {"dataset_id": dataset_id, "rows": list(rows)}
    return hashlib.sha256(_LABEL + canonical.dumps(value).encode()).hexdigest()


def load(path: str | Path) -> Partition:
    """The partition in a file. Raises ReportError if it cannot be read or is none."""
    try:
        value = canonical.loads(Path(path).read_text(encoding="ascii"))
        if set(value) != {"schema", "dataset_id", "rows"} or value["schema"] != 1:
            raise ValueError("other fields than a partition of schema 1 has")
        for client_id, rows in value["rows"].items():
            if any(type(row) is not int or row < 0 for row in rows):
                raise ValueError(f"the rows of {client_id} are not positions")
        return Partition(
            str(value["dataset_id"]), {client_id: tuple(rows) for client_id, rows in value["rows"].items()}
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ReportError(f"{path} cannot be read as a partition: {error}") from error
