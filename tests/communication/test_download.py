"""Sparse downloads: the largest coordinates, or exactly those that have changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedlora_priv.communication.download import Download, changed, download_bytes, largest
from fedlora_priv.communication.errors import CommunicationError
from protocols.errors import SupportError
from protocols.sparsify import Support

STATES = arrays(np.float32, 40, elements=st.floats(-4, 4, width=32))


@settings(deadline=None)
@given(STATES, STATES, st.lists(st.booleans(), min_size=40, max_size=40))
def test_what_changed_turns_one_state_into_the_other_to_the_bit(
    before: np.ndarray, other: np.ndarray, which: list[bool]
) -> None:
    after = np.where(which, other, before)
    download = changed(before, after)
    if download is None:
        assert before.tobytes() == after.tobytes()
        return
    received = Download.from_bytes(download.to_bytes(), 40)
    assert received.onto(before).tobytes() == after.tobytes()
    assert len(download.to_bytes()) == download_bytes(40, len(download.support))
    assert len(download.support) <= sum(which)


def test_the_largest_agree_with_sorting() -> None:
    state = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    start = largest(state, 0.07).onto(np.zeros(100, np.float32))
    order = sorted(range(100), key=lambda i: -abs(state[i]))[:7]
    assert {i: start[i] for i in np.flatnonzero(start).tolist()} == {i: state[i] for i in order}
    assert largest(state, 1.0).support.is_dense
    assert len(largest(state, 1e-9).support) == 1


def test_a_sixteenth_of_a_million_is_thirteen_times_less() -> None:
    # 32 bits a value and about log2(16) + 2 for which it is: 16·32/38 = 13.5.
    assert 13 < 4_000_000 / download_bytes(1_000_000, 62_500) < 14


def test_what_is_no_download_is_refused() -> None:
    state = np.ones(40, np.float32)
    data = largest(state, 0.25).to_bytes()
    for garbled in (data[:-1], data + b"\0", b"", b"\xff" * 9):
        with pytest.raises((CommunicationError, SupportError)):
            Download.from_bytes(garbled, 40)
    with pytest.raises(SupportError):
        Download.from_bytes(data, 400)
    poisoned = data[:-4] + np.float32(np.nan).tobytes()
    with pytest.raises(CommunicationError, match="diverged"):
        Download.from_bytes(poisoned, 40)
    support = Support(4, np.array([1]))
    for values in (np.zeros(2, np.float32), np.zeros(1), np.array([np.inf], np.float32)):
        with pytest.raises(CommunicationError):
            Download(support, values)
    with pytest.raises(CommunicationError):
        largest(state, 0.25).onto(np.zeros(39, np.float32))
    with pytest.raises(CommunicationError):
        changed(state, np.ones(41, np.float32))
    for density in (0.0, 1.5, np.nan):
        with pytest.raises(CommunicationError):
            largest(state, density)
