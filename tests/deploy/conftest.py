"""A deployment for trial on disk: six parties' folders around tiny public data; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedlora_priv.config import Experiment
from fedlora_priv.deploy.bundle import Plan, deploy_trial

VERSIONS = {"fedlora_priv": "0.1.0", "code_sha256": "ab" * 32}


def experiment_text(source: Path, sections: dict[str, dict[str, Any]]) -> str:
    """The experiment's TOML with some values changed, or with None left out."""
    values: dict[str, Any] = {
        "experiment": {"name": "wards", "seed": 3},
        "model": {"source": "a-model", "max_length": 16},
        "data": {
            "source": str(source), "public": True, "dataset_id": "wards-2026", "labels": ["0", "1"],
            "declared_examples_per_client": 80,
        },
        "federation": {"clients": 5, "rounds": 2},
        "training": {"batch_size": 20},
        "privacy": {"epsilon": 8.0, "delta": 1e-4},
    }  # fmt: skip
    for name, section in sections.items():
        changed = {**values.get(name, {}), **section}
        values[name] = {key: value for key, value in changed.items() if value is not None}
    return tomli_w.dumps(values)


@pytest.fixture
def experiment(tiny_data: Path) -> Callable[..., Experiment]:
    """Returns a function that makes the experiment; keyword arguments change sections."""
    return lambda **sections: Experiment.from_toml(experiment_text(tiny_data, sections))


@pytest.fixture
def trial(experiment: Callable[..., Experiment], tmp_path: Path) -> Path:
    """The folder of a deployment for trial."""
    out = tmp_path / "federation"
    deploy_trial(Plan.on_one_machine(experiment(), out), VERSIONS, lambda line: None)
    return out
