"""Federations on paper for tests of the Flower engine, not collected without the extra ``[flower]``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlora_priv.config import Experiment
from fedlora_priv.methods import Method
from tests.federation.paper import Paper

HAS_FLOWER = importlib.util.find_spec("flwr") is not None
NEED_FLOWER = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_choice.py"]
collect_ignore = [] if HAS_FLOWER else NEED_FLOWER


@pytest.fixture(autouse=True)
def task_identity() -> None:
    """What Flower tells a ServerApp's process about itself, and every message of it names."""
    if not HAS_FLOWER:
        return
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 77, 1, 5


@pytest.fixture
def paper(experiment_file: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Paper]]:
    made: list[Paper] = []

    def make(method: Method, **sections: dict[str, Any]) -> Paper:
        values: dict[str, dict[str, Any]] = {
            "federation": {"rounds": 4},
            "training": {"deterministic_noise": True},
            "communication": {"value_bits": 16},
        }
        experiment = Experiment.load(experiment_file(**{**values, **sections}))
        made.append(Paper(experiment, method, tmp_path / f"paper-{len(made)}"))
        return made[-1]

    yield make
    for one in made:
        one.close()
