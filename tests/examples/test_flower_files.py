"""The experiment files for Flower say what they are for: five hospitals' machines, a hundred clients on one."""

from __future__ import annotations

from pathlib import Path

from fedlora_priv.config import Experiment

FOLDER = Path(__file__).parents[2] / "examples" / "flower"


def test_five_hospitals_are_ready_to_be_deployed_and_a_hundred_clients_to_be_simulated() -> None:
    hospitals = Experiment.load(FOLDER / "hospitals.toml")
    assert (hospitals.federation.clients, hospitals.data.dataset_id) == (5, "hospital-notes-2026")
    hundred = Experiment.load(FOLDER / "hundred.toml")
    assert (hundred.federation.clients, hundred.engine.kind) == (100, "flower-simulation")
    assert hundred.data.public  # without that nobody may split it
