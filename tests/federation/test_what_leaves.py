"""What a client says, records and keeps, to the last field: whatever is added must be seen here first."""

from __future__ import annotations

import json
import stat
import struct
from collections.abc import Callable
from typing import Any

import pytest

from accounting.private_audit import StepRecord
from fedlora_priv.federation import wire
from fedlora_priv.federation.client import LocalResult

from . import paper
from .paper import Paper

EXAMPLES = 73310011
STEP = StepRecord(
    73310017, 73310029, 73310031, 0.7331003737, 73310.04141, 7331004343.5, 7.3310047, "7331" * 4
)
"""Numbers that nothing else produces: what is found anywhere else has leaked."""

SAID: dict[str, tuple[set[str], set[str]]] = {
    "trained": (set(), {"advertisement"}),
    "phase": ({"phase"}, {"body"}),
    "statement": (set(), {"anchor", "ledger"}),
}
"""Of each kind of answer: its fields, and its blobs."""

ROW = {
    "schema", "client_id", "dataset_id", "partition_id", "public", "unit", "position", "previous", "digest", "kind",
    "data",
    "run", "round", "attempt", "reservation", "event", "version", "noise_multiplier", "sample_rate", "steps",
    "clip_norm",
    "adjacency", "session", "transcript", "private_audit", "versions", "dp_accounting", "fedlora_priv", "numpy",
    "python",
    "scipy", "contract_sha256",
}  # fmt: skip
"""All names in a ledger's rows, at any depth."""


@pytest.fixture
def marked(fedit_on_paper: Callable[..., Paper], monkeypatch: pytest.MonkeyPatch) -> Paper:
    """A federation whose training has private figures that can be recognised."""

    def result(
        state: Any, dimension: int, clip_norm: float, _: int, steps: tuple[StepRecord, ...]
    ) -> LocalResult:
        return LocalResult(state, dimension, clip_norm, EXAMPLES, (STEP,) * len(steps))

    monkeypatch.setattr(paper, "LocalResult", result)
    return fedit_on_paper()


def needles() -> list[bytes]:
    """The private figures as text and as memory holds them, either way round."""
    found = []
    for value in (EXAMPLES, *(getattr(STEP, name) for name in StepRecord.__dataclass_fields__)):
        if value is not None:
            found.append(str(value).encode())
        if isinstance(value, int | float):
            kinds = "qi" if isinstance(value, int) else "df"
            found += [struct.pack(order + kind, value) for order in "<>" for kind in kinds]
    return found


def test_the_server_is_told_nothing_of_batches_norms_or_rows(marked: Paper) -> None:
    said: list[bytes] = []
    for client in marked.clients:

        def handle(data: bytes, real: Callable[[bytes], bytes] = client.handle) -> bytes:
            said.append(real(data))
            return said[-1]

        client.handle = handle
    for _ in range(2):
        assert marked.round().record.aborted is None
    close = wire.encode(wire.Message(wire.CLOSE))
    for client in marked.clients:
        client.handle(close)
    for client in marked.clients:
        kept = client._setup.home.private_audit_path(paper.RUN.hex()).read_bytes()
        assert str(EXAMPLES).encode() in kept  # else nothing was marked, and nothing could be found
        assert str(STEP.batch_size).encode() in kept
    assert not [needle for needle in needles() for answer in said if needle in answer]
    told: dict[str, tuple[set[str], set[str]]] = {}
    for answer in said:
        message = wire.decode(answer)
        fields, blobs = told.setdefault(message.kind, (set(), set()))
        fields |= set(message.fields)
        blobs |= set(message.blobs)
    assert told == SAID


def names(value: Any) -> set[str]:
    """All names in a JSON value."""
    if isinstance(value, dict):
        return set(value).union(*map(names, value.values()))
    return set().union(*map(names, value)) if isinstance(value, list) else set()


def test_a_ledgers_rows_have_no_time_of_day_and_no_digest_of_rows(marked: Paper) -> None:
    marked.round()
    for client in marked.clients:
        rows = client._setup.ledger.export_jsonl()
        assert names([json.loads(line) for line in rows.splitlines()]) == ROW
        assert not [needle for needle in needles() if needle in rows.encode()]


def test_what_a_client_keeps_is_its_owners_alone(marked: Paper) -> None:
    marked.round()
    for client in marked.clients:
        home = client._setup.home.path
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        open_to_others = {path.name for path in home.iterdir() if path.stat().st_mode & 0o077}
        # Inside that folder nobody gets to them: SQLite and the lock are made as the umask says.
        assert {name.partition(".sqlite")[0] for name in open_to_others} <= {"ledger", ".lock"}
