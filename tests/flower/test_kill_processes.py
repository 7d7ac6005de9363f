"""kill -9 of real processes: a SuperNode, an app alone, the ServerApp, everybody. The run ends, with the right sums.

What is killed at which write is tried in one process (test_kill_nodes.py, test_kill_server.py). Here Flower's own
processes die, and what is known of it is what Flower tells, in its own time: a minute for most of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fedlora_priv.config_federation import Dropout

from .deployment import tiny
from .fleet import RUN, SUPERLINK, Fleet, fleet
from .judging import failed, require_charged_once_a_round, require_the_local_engines_sums

pytestmark = [pytest.mark.long, pytest.mark.waits]

AGAIN, LAST = "run-again", "run-for-the-last-time"


def test_nodes_and_apps_that_die_are_lost_for_the_round_and_back_in_the_next(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, silent: Any
) -> None:
    """A SuperNode with its app, and an app whose SuperNode lives; both have masked, and nobody has heard of it."""
    experiment = tiny(
        tiny_model,
        tiny_data,
        federation={"rounds": 2},
        secure_aggregation={"max_colluders": 0},  # else four of the five would have to be there
    )
    with fleet(experiment, tmp_path / "fleet", known_randomness=True) as one:
        shutil.copytree(one.out, tmp_path / "twin")
        one.hold("client-2", "handled", "1.mask")
        one.hold("client-3", "handled", "1.mask")
        one.hold("server", "asked", "1.mask")
        one.start()
        one.wait_for("client-2", "handled", "1.mask")
        one.kill("client-2")
        one.wait_for("client-3", "handled", "1.mask")
        one.kill_apps("client-3")

        # Flower tells the server. Only then would it take the node again, which is to be back before the next round.
        one.wait_for("server", "asked", "1.mask")
        one.start_node(2)
        one.wait(lambda: one.log("client-2").count("SuperNode ID:") == 2, "client-2's node is back")
        one.release()
        assert one.finished() == 0, one.tails()

        everybody = list(experiment.client_ids)
        survivors = [[name for name in everybody if name not in ("client-2", "client-3")], everybody]
        assert [entry["survivors"] for entry in one.report()["rounds"]] == survivors
        lost = [Dropout(round=1, client_id=name, phase="mask") for name in ("client-2", "client-3")]
        require_the_local_engines_sums(one, tmp_path, silent, lost)
        require_charged_once_a_round(one)
        assert not failed(one)


def test_a_server_that_dies_and_then_everybody_goes_on_with_stored_updates(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, silent: Any
) -> None:
    """The ServerApp, when all have trained; then all processes at once, the SuperLink too, when all have masked."""
    experiment = tiny(tiny_model, tiny_data, federation={"clients": 3, "rounds": 1})
    with fleet(experiment, tmp_path / "fleet", known_randomness=True) as one:
        shutil.copytree(one.out, tmp_path / "twin")
        one.hold("server", "asked", "1.train")
        one.start()
        one.wait_for("server", "asked", "1.train")
        one.kill_apps(SUPERLINK)
        one.release()
        trained = updates(one)

        # Submitted again before Flower has noticed, which takes it a minute.
        one.hold("server", "asked", "1.mask")
        one.start_run(AGAIN)
        one.wait_for("server", "asked", "1.mask")
        assert one.finished(RUN) != 0
        one.stop()
        one.release()
        assert not (one.run_folder / "report.json").exists()

        # A SuperLink takes nodes for alive until their heartbeats are overdue, and turns away those that come before.
        one.start_superlink()
        one.start_run(LAST)
        one.units |= set(experiment.client_ids)
        for number in range(1, experiment.federation.clients + 1):
            one.start_node(number)
        assert one.finished(LAST) == 0, one.tails()

        assert [entry["survivors"] for entry in one.report()["rounds"]] == [list(experiment.client_ids)]
        assert updates(one) == trained  # masked twice, trained once
        require_the_local_engines_sums(one, tmp_path, silent)
        require_charged_once_a_round(one)
        assert not failed(one)


def updates(one: Fleet) -> list[bytes]:
    """Every client's stored update; a training writes another file, with another charge's number or time."""
    return [path.read_bytes() for path in sorted(one.out.glob("nodes/*/home/update-*.npz"))]
