"""A client's private audit file: what its steps really did, for its own auditor and nobody else.

One line of canonical JSON for every attempt at a round, written after the attempt's last step, with one record
for each step: the size of the batch, how many examples were clipped, the norm of the noise that was added. All
of it depends on private rows outside every guarantee, so the file is readable by its owner alone and nothing
in it may be logged, sent or reported.

The ledger's commit row holds the SHA-256 of the attempt's line. Whoever has signed rows can then tell a file
that was written when the training happened from one made up later. A random salt of 32 bytes in the line keeps
the hash from being searched for the few values that a batch size can take.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from . import canonical
from .errors import PrivateAuditError

SCHEMA = 1
_LABEL = b"fedlora-priv/private-audit/1\0"
_HEX = re.compile(r"[0-9a-f]+")
_LARGEST = 10**12
_DIGEST = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class CountRecord:
    """What one step of adaptive clipping counted. PRIVATE, as `StepRecord`; only `noised` and what follows are not.

    Attributes:
        clip_norm: what this step clipped to.
        unclipped: how many of the drawn examples had a gradient within it.
        noised: the shifted count, +1/2 for each of those and -1/2 for each other one drawn, plus noise.
    """

    clip_norm: float = field(repr=False)
    unclipped: int = field(repr=False)
    noised: float = field(repr=False)

    def __post_init__(self) -> None:
        _require_whole(self, "unclipped", 0)
        for name in ("clip_norm", "noised"):
            value = getattr(self, name)
            if type(value) is not float or not math.isfinite(value):
                raise PrivateAuditError(f"{name} must be a finite number")
        if self.clip_norm <= 0:
            raise PrivateAuditError("clip_norm must be above 0")


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step did. PRIVATE: hidden in `repr`, never to be logged, sent or reported.

    Attributes:
        batch_size: examples drawn.
        clipped, non_finite: how many of their gradients were scaled down, or zeroed for not being finite.
        largest_norm: the largest L2 norm of one example's gradient after clipping; 0 for an empty batch.
        sum_norm: L2 norm of the sum of the clipped gradients.
        noise_squares: squared L2 norm of the noise, measured on the result of the step: result minus sum.
        largest_noise: its largest absolute coordinate.
        noise_digest: 16 hex digits of SHA-256 over the noise as it was drawn; equal ones are the same noise.
        count: where the clip norm is adaptive, what it was and what was counted; else None, and not written.
    """

    batch_size: int = field(repr=False)
    clipped: int = field(repr=False)
    non_finite: int = field(repr=False)
    largest_norm: float = field(repr=False)
    sum_norm: float = field(repr=False)
    noise_squares: float = field(repr=False)
    largest_noise: float = field(repr=False)
    noise_digest: str = field(repr=False)
    count: CountRecord | None = field(repr=False, default=None)

    def __post_init__(self) -> None:
        for name in ("batch_size", "clipped", "non_finite"):
            _require_whole(self, name, 0)
        for name in ("largest_norm", "sum_norm", "noise_squares", "largest_noise"):
            value = getattr(self, name)
            if type(value) is not float or not math.isfinite(value) or value < 0:
                raise PrivateAuditError(f"{name} must be a finite number, 0 or more")
        if not isinstance(self.noise_digest, str) or not _DIGEST.fullmatch(self.noise_digest):
            raise PrivateAuditError("noise_digest must be 16 hex digits")


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """The steps of one attempt at a round, tied to the ledger row `reservation` that was charged for them.

    Attributes:
        examples: how many rows the client really holds. Private: only a declared number is public.
        dimension: how many coordinates were trained, so noised.
        salt: 32 random bytes, hex.
    """

    client_id: str
    run: str
    round: int
    reservation: int
    examples: int = field(repr=False)
    dimension: int
    steps: tuple[StepRecord, ...] = field(repr=False)
    salt: str = field(repr=False, default_factory=lambda: secrets.token_hex(32))

    def __post_init__(self) -> None:
        for name, least in (("round", 0), ("reservation", 1), ("examples", 0), ("dimension", 1)):
            _require_whole(self, name, least)
        if not isinstance(self.client_id, str) or not self.client_id:
            raise PrivateAuditError("client_id must be a name")
        for name in ("run", "salt"):
            if not isinstance(getattr(self, name), str) or not _HEX.fullmatch(getattr(self, name)):
                raise PrivateAuditError(f"{name} must be lower-case hex")
        if len(self.salt) != 64:
            raise PrivateAuditError("salt must be 32 bytes")

    @property
    def digest(self) -> str:
        """The hash that the ledger's commit row records, hex.

        Guarantee: hides the record from whoever does not know its salt (SHA-256 as a random oracle).
        """
        return hashlib.sha256(_LABEL + self.to_line().encode()).hexdigest()

    def to_line(self) -> str:
        """The record as one line of canonical JSON, without the line break."""
        value = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "steps"}
        return canonical.dumps({"schema": SCHEMA, **value, "steps": [_stated(step) for step in self.steps]})


def _stated(step: StepRecord) -> dict[str, Any]:
    """The fields of one step, without a count where there was none."""
    stated = asdict(step)
    if step.count is None:
        del stated["count"]
    return stated


def _require_whole(record: object, name: str, least: int) -> None:
    """A count that arithmetic can be done with."""
    value = getattr(record, name)
    if type(value) is not int or not least <= value <= _LARGEST:
        raise PrivateAuditError(f"{name} must be a whole number from {least} to {_LARGEST}")


def append(path: str | Path, record: AttemptRecord) -> str:
    """Add a record durably to a file that its owner alone may read, and return the record's digest.

    A line that a crash left unfinished is removed first: its attempt was never committed.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(target, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        os.fchmod(file.fileno(), 0o600)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        file.write(record.to_line().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return record.digest


def read(path: str | Path) -> tuple[AttemptRecord, ...]:
    """The records of a file, in order. A last line without a line break is one that a crash cut off: left out.

    Raises:
        PrivateAuditError: it cannot be read, or a line is malformed; names the line, never what is in it.
    """
    try:
        lines = Path(path).read_bytes().decode("ascii").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise PrivateAuditError(f"{path} cannot be read as a private audit file") from error
    return tuple(_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1))


def by_client(paths: Sequence[str | Path]) -> Mapping[str, tuple[AttemptRecord, ...]]:
    """The records of several files, by the client that each of them names.

    Raises:
        PrivateAuditError: as `read`, or a file is empty.
    """
    found: dict[str, list[AttemptRecord]] = {}
    for path in paths:
        records = read(path)
        if not records:
            raise PrivateAuditError(f"{path} holds no record")
        for record in records:
            found.setdefault(record.client_id, []).append(record)
    return {client_id: tuple(records) for client_id, records in found.items()}


def _parse(line: str, where: str) -> AttemptRecord:
    """The record of one line."""
    try:
        value = canonical.loads(line)
        names = {item.name for item in fields(AttemptRecord)}
        if not isinstance(value, dict) or set(value) != names | {"schema"} or value["schema"] != SCHEMA:
            raise PrivateAuditError(f"is not a record of schema {SCHEMA}")
        steps = tuple(StepRecord(**_step(step)) for step in value["steps"])
        record = AttemptRecord(**{**{name: value[name] for name in names}, "steps": steps})
    except PrivateAuditError as error:
        raise PrivateAuditError(f"{where}: {error}") from None
    except (ValueError, TypeError, RecursionError):
        # The cause may quote the line, which is private.
        raise PrivateAuditError(f"{where}: is not a record") from None
    if record.to_line() != line:
        raise PrivateAuditError(f"{where}: is not canonical JSON")
    return record


def _step(value: object) -> dict[str, Any]:
    """The fields of one step."""
    names = {item.name for item in fields(StepRecord)}
    if not isinstance(value, dict) or set(value) | {"count"} != names:
        raise PrivateAuditError("has a step with other fields than a step has")
    if "count" not in value:
        return value
    count = value["count"]
    if not isinstance(count, dict) or set(count) != {item.name for item in fields(CountRecord)}:
        raise PrivateAuditError("has a count with other fields than a count has")
    return {**value, "count": CountRecord(**count)}
