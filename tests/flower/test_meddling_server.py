"""A server that swaps, alters, repeats and replays messages, between real processes.

Everything that it can do to a message of any step is tried in one process (test_hostile.py). Here one of each kind goes
through a SuperLink and SuperNodes: nothing wrong is summed, nobody's shares leave twice, charges are right.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedlora_priv.config_federation import Dropout

from .deployment import tiny
from .fleet import fleet
from .judging import failed, require_charged_once_a_round, require_the_local_engines_sums
from .meddling import ANSWERS
from .traced import MEDDLE

pytestmark = [pytest.mark.long, pytest.mark.waits]


def test_what_a_server_meddles_with_is_refused_and_costs_at_most_that_client_its_round(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, silent: Any
) -> None:
    experiment = tiny(
        tiny_model,
        tiny_data,
        federation={"rounds": 2},
        secure_aggregation={"max_colluders": 0},  # else four of the five would have to be there
    )
    with fleet(experiment, tmp_path / "fleet", known_randomness=True) as one:
        shutil.copytree(one.out, tmp_path / "twin")
        one.extra[MEDDLE] = "1"
        one.start()
        assert one.finished() == 0, one.tails()

        survivors = [entry["survivors"] for entry in one.report()["rounds"]]
        assert survivors == [["client-1", "client-4", "client-5"], ["client-1", "client-3", "client-4"]]
        first, second = json.loads((one.trace / ANSWERS).read_text())
        assert first == second  # no other shares have left
        lost = [
            Dropout(round=1, client_id="client-2", phase="mask"),
            Dropout(round=1, client_id="client-3", phase="mask"),
            Dropout(round=2, client_id="client-2", phase="advertise"),
            Dropout(round=2, client_id="client-5", phase="mask"),
        ]
        require_the_local_engines_sums(one, tmp_path, silent, lost)
        require_charged_once_a_round(one, but={"client-2": [1]})
        assert not failed(one)
