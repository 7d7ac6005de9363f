"""Findings on their way: what comes out of a message is what went in, or is refused."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora_priv.allocation.findings import Findings
from fedlora_priv.errors import FederationError

SCORES, RANKS = "findings/scores", "findings/ranks"
scores = st.lists(st.floats(0, allow_infinity=False, allow_nan=False), max_size=6).map(tuple)
ranks = st.dictionaries(st.text(max_size=5), st.integers(1, 2**40), max_size=4)
found = st.builds(lambda s, r: Findings(s, tuple(sorted(r.items()))), scores, ranks)


@given(found, found)
def test_findings_travel_and_are_told_apart(one: Findings, other: Findings) -> None:
    assert Findings.from_blobs(one.to_blobs(), len(one.scores)) == one
    assert (one.digest() == other.digest()) is (one == other and str(one) == str(other))  # −0 is not 0


@pytest.mark.parametrize(
    "blobs",
    [
        {SCORES: b""},
        {SCORES: struct.pack("<2d", 1, 2)},
        {SCORES: struct.pack("<4d", 1, 2, 3, 4)},
        {SCORES: struct.pack("<3d", 1, 2, -1)},
        {SCORES: struct.pack("<3d", 1, 2, float("nan"))},
        {SCORES: struct.pack("<3d", 1, 2, float("inf"))},
        {RANKS: b""},
        {RANKS: b"{}"},
        {RANKS: b"[1]"},
        {RANKS: b"7"},
        {RANKS: b"\xff"},
        {RANKS: b"[" * 100_000},
        {RANKS: b'{"client-1":0}'},
        {RANKS: b'{"client-1":-1}'},
        {RANKS: b'{"client-1":true}'},
        {RANKS: b'{"client-1":2.0}'},
        {RANKS: b'{"client-1":"2"}'},
        {RANKS: b'{"client-1":2, "client-2":2}'},
        {RANKS: b'{"client-2":2,"client-1":2}'},
        {RANKS: b'{"client-1":2,"client-1":3}'},
        {"findings/more": b"1"},
    ],
    ids=lambda blobs: str(blobs)[:40],
)
def test_what_is_none_is_refused(blobs: dict[str, bytes]) -> None:
    with pytest.raises(FederationError, match="found"):
        Findings.from_blobs(blobs, 3)


def test_findings_that_are_none_cannot_be_made() -> None:
    for wrong in (((1,), ()), ((float("nan"),), ()), ((), (("b", 1), ("a", 1))), ((), (("a", 1), ("a", 2)))):
        with pytest.raises(FederationError):
            Findings(*wrong)


def test_a_report_has_what_was_found_and_nothing_else() -> None:
    assert Findings().to_json() == {}
    stated = Findings((0.5, 2.0), (("client-1", 3),)).to_json()
    assert json.loads(json.dumps(stated)) == {"scores": [0.5, 2.0], "ranks": {"client-1": 3}}
