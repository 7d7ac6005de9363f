"""The client-private audit file: durable, its owner's alone, tied to the ledger, and silent about itself."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accounting import private_audit
from accounting.entries import Commit, parse_row
from accounting.errors import LedgerError, PrivateAuditError
from accounting.events import PoissonGaussian
from accounting.private_audit import AttemptRecord, StepRecord

STEP = StepRecord(7331, 3, 0, 0.73317331, 2.5, 1234.56, 4.1, "7331" * 4)
RECORD = AttemptRecord("client-1", "ab" * 16, 1, 1, 913371, 1024, (STEP, STEP))
EVENT = PoissonGaussian(1.0, 0.02, 2, 1.0)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "home" / "private.jsonl"
    second = replace(RECORD, round=2, reservation=4)
    digests = [private_audit.append(path, record) for record in (RECORD, second)]
    assert private_audit.read(path) == (RECORD, second)
    assert digests == [RECORD.digest, second.digest]
    assert private_audit.by_client([path]) == {"client-1": (RECORD, second)}


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "private.jsonl"
    path.touch(mode=0o644)
    private_audit.append(path, RECORD)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_cut_off_by_a_crash_is_left_out_and_then_replaced(tmp_path: Path) -> None:
    path = tmp_path / "private.jsonl"
    private_audit.append(path, RECORD)
    path.write_bytes(path.read_bytes() + replace(RECORD, reservation=4).to_line().encode()[:100])
    assert private_audit.read(path) == (RECORD,)
    last = replace(RECORD, reservation=7)
    private_audit.append(path, last)
    assert private_audit.read(path) == (RECORD, last)


def test_equal_steps_have_unequal_digests() -> None:
    """Else whoever sees the ledger could try all batch sizes; the salt is 32 bytes of the system's randomness."""
    again = AttemptRecord("client-1", "ab" * 16, 1, 1, 913371, 1024, (STEP, STEP))
    assert again.digest != RECORD.digest
    assert len(bytes.fromhex(again.salt)) == 32


def test_reprs_hide_what_is_private() -> None:
    assert repr(STEP) == "StepRecord()"
    shown = repr(RECORD)
    assert not any(text in shown for text in ("7331", "0.7331", "913371", RECORD.salt))


def _other_schema(value: dict[str, Any]) -> None:
    value["schema"] = 2


def _no_salt(value: dict[str, Any]) -> None:
    del value["salt"]


def _short_salt(value: dict[str, Any]) -> None:
    value["salt"] = "ab"


def _negative_batch(value: dict[str, Any]) -> None:
    value["steps"][0]["batch_size"] = -7331


def _text_for_a_norm(value: dict[str, Any]) -> None:
    value["steps"][0]["sum_norm"] = "7331"


def _rows_beyond_counting(value: dict[str, Any]) -> None:
    value["examples"] = 7331 * 10**400


def _odd_digest(value: dict[str, Any]) -> None:
    value["steps"][0]["noise_digest"] = "7331"


def _extra_field(value: dict[str, Any]) -> None:
    value["steps"][0]["loss"] = 7331


def _no_steps(value: dict[str, Any]) -> None:
    value["steps"] = 7331


@pytest.mark.parametrize(
    "edit",
    [
        _other_schema,
        _no_salt,
        _short_salt,
        _negative_batch,
        _text_for_a_norm,
        _odd_digest,
        _rows_beyond_counting,
        _extra_field,
        _no_steps,
    ],
)
def test_a_malformed_line_is_named_and_not_quoted(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    value = json.loads(RECORD.to_line())
    edit(value)
    path = tmp_path / "private.jsonl"
    path.write_text(f"{RECORD.to_line()}\n{json.dumps(value, sort_keys=True, separators=(',', ':'))}\n")
    with pytest.raises(PrivateAuditError, match="line 2") as caught:
        private_audit.read(path)
    assert "7331" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("content", [b"7331{\n", b"\xff7331\n", b"[" * 100_000 + b"\n"])
def test_bytes_that_are_no_record(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "private.jsonl"
    path.write_bytes(content)
    with pytest.raises(PrivateAuditError) as caught:
        private_audit.read(path)
    assert "7331" not in str(caught.value)
    assert path.read_bytes() == content


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(PrivateAuditError, match="cannot be read"):
        private_audit.read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(PrivateAuditError, match="no record"):
        private_audit.by_client([tmp_path / "empty.jsonl"])


# --- the ledger's side ---


def test_the_ledger_commits_to_a_record(open_ledger: Callable[..., Any]) -> None:
    ledger = open_ledger()
    reservation = ledger.reserve(EVENT, round=1, run="ab")
    charge = ledger.commit(reservation, private_audit=RECORD.digest)
    assert charge.private_audit == RECORD.digest
    row = ledger.rows()[-1]
    assert parse_row(row.to_line()) == row
    assert RECORD.digest in row.to_line()
    ledger.commit(reservation, private_audit="cd" * 32)  # a retry: the first commit stands
    assert ledger.charges()[0].private_audit == RECORD.digest


def test_a_commit_without_a_record_is_written_as_before(open_ledger: Callable[..., Any]) -> None:
    ledger = open_ledger()
    ledger.commit(ledger.reserve(EVENT, round=1, run="ab"))
    row = ledger.rows()[-1]
    assert set(json.loads(row.to_line())["data"]) == {"reservation", "event"}
    assert parse_row(row.to_line()).entry == Commit(1, EVENT)


def test_a_digest_that_is_none_is_refused(open_ledger: Callable[..., Any]) -> None:
    ledger = open_ledger()
    reservation = ledger.reserve(EVENT, round=1, run="ab")
    with pytest.raises(LedgerError, match="private_audit must be lower-case hex"):
        ledger.commit(reservation, private_audit="not hex")
