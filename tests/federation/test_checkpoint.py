"""What a checkpoint holds comes back as it was: the state, and the records of rounds with their exchanges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedlora_priv.allocation.findings import Findings
from fedlora_priv.errors import RunFolderError
from fedlora_priv.federation import checkpoint
from fedlora_priv.federation.checkpoint import History
from fedlora_priv.federation.round_record import ExchangeRecord, RoundRecord
from fedlora_priv.federation.server import ServerState
from fedlora_priv.methods.certificate import Certificate

FOUND = Findings((0.1, 2e-300), (("client-2", 3), ("client-4", 1)))
RECORDS = [
    RoundRecord(
        1,
        ("client-1", "client-3"),
        [("client-2", "mask")],
        [("client-4", "BudgetExceeded")],
        [ExchangeRecord("01" * 32, "02" * 32), ExchangeRecord("03" * 32, "04" * 32, "05" * 32)],
        Certificate({"q": 3.0, "v": 4.0}, {"q": 0.3, "v": 0.4}, 48).to_json(),
    ),
    RoundRecord(2, exchanges=[ExchangeRecord("06" * 32)], aborted="too few", findings=FOUND),
]


def saved(folder: Path) -> tuple[ServerState, History]:
    scores, moments = (
        {"head": np.arange(6, dtype=np.float32)},
        {"head/first": np.ones((2, 3)), "head/steps": np.ones(())},
    )
    state = ServerState(
        2,
        {"head": np.ones((2, 3), np.float32)},
        {"head": np.full((2, 1), 0.5)},
        scores,
        moments,
        findings=FOUND,
    )
    history = History([{"round": 1}], RECORDS, {"client-1": "ab"}, 0.5)
    checkpoint.save(folder, state, history)
    return state, history


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    state, history = saved(tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded[1] == history
    for before, after in (
        (state.state, loaded[0].state), (state.scores, loaded[0].scores), (state.moments, loaded[0].moments),
        (state.spreads, loaded[0].spreads),
    ):  # fmt: skip
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name], strict=True)
    assert (loaded[0].round, loaded[0].findings) == (2, FOUND)


def test_a_certificate_says_the_error_of_all_modules_together() -> None:
    assert RECORDS[0].certificate == {
        "error": pytest.approx(0.1),
        "columns": 48,
        "modules": {"q": {"size": 3.0, "error": 0.3}, "v": {"size": 4.0, "error": 0.4}},
    }


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.setattr(checkpoint, "VERSION", checkpoint.VERSION + 1)
    with pytest.raises(RunFolderError, match=r"round-00002.* has format .* finish the run with the version"):
        checkpoint.load(tmp_path)
