"""Which engine runs what; nothing here needs Flower itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlora_priv.config import Experiment
from fedlora_priv.errors import ConfigError
from fedlora_priv.federation.run import run

LOSS = {"dropouts": [{"round": 1, "client_id": "client-2", "phase": "mask"}]}


def test_a_run_across_machines_is_not_run_in_one_process(
    experiment_file: Callable[..., Path], silent: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="fedlora deploy"):
        run(Experiment.load(experiment_file(engine={"kind": "flower"})), progress=silent)
    assert not (tmp_path / "run").exists()


def test_an_empirical_audit_is_not_run_where_its_canaries_would_be_missing(
    experiment_file: Callable[..., Path], silent: Any
) -> None:
    experiment = Experiment.load(experiment_file(engine={"kind": "flower-simulation"}))
    with pytest.raises(ConfigError, match="canaries"):
        run(experiment, progress=silent, amend=lambda parts, folder: parts)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"engine": {"kind": "flower-simulation"}, "simulate": LOSS}, "acted out by the local engine"),
        ({"engine": {"kind": "local", "phase_timeout_s": 3.0}}, "no effect"),
        ({"engine": {"kind": "local", "join_timeout_s": 3.0}}, "no effect"),
        ({"engine": {"kind": "flower", "train_timeout_s": 0.0}}, "train_timeout_s"),
        ({"engine": {"kind": "flower", "join_timeout_s": 0.0}}, "join_timeout_s"),
    ],
)
def test_options_that_an_engine_would_not_honour_are_refused(
    experiment_file: Callable[..., Path], sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Experiment.load(experiment_file(**sections))


def test_the_engine_is_no_part_of_the_experiment(experiment_file: Callable[..., Path]) -> None:
    digests = {
        Experiment.load(experiment_file(engine=engine)).digest()
        for engine in (
            {"kind": "local"},
            {"kind": "flower", "phase_timeout_s": 9.0, "join_timeout_s": 9.0},
            {"kind": "flower-simulation"},
        )
    }
    assert len(digests) == 1
