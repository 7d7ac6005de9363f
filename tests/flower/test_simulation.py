"""Ray is started for a simulation, again where it did not, and what keeps it from starting is one line."""

from __future__ import annotations

import os
from typing import Any

import pytest

from fedlora_priv.errors import EnvironmentProblem

pytest.importorskip("ray")
from fedlora_priv.engines.flower import simulation


class FakeRay:
    """Fails so many times to start."""

    def __init__(self, failures: int) -> None:
        self.failures, self.started, self.stopped = failures, 0, 0

    def init(self, **options: Any) -> None:
        self.started += 1
        assert (options["address"], options["num_cpus"], options["_temp_dir"]) == ("local", 2, "a folder")
        assert os.environ["http_proxy"] == "http://127.0.0.1:9"  # what its processes inherit
        if self.started <= self.failures:
            raise OSError("AF_UNIX path length cannot exceed 107 bytes")

    def shutdown(self) -> None:
        self.stopped += 1


@pytest.mark.parametrize("failures", [0, simulation.STARTS - 1])
def test_ray_is_started_until_it_runs(failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(failures)
    monkeypatch.setattr(simulation, "ray", ray)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    simulation._start_ray("a folder", 2)
    assert (ray.started, ray.stopped) == (failures + 1, failures)
    assert os.environ["http_proxy"] == "http://proxy.example:3128"  # as the user had it, again
    assert "no_proxy" not in os.environ


def test_a_ray_that_never_starts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(simulation.STARTS)
    monkeypatch.setattr(simulation, "ray", ray)
    with pytest.raises(EnvironmentProblem, match=r"AF_UNIX path length.*give TMPDIR a shorter path"):
        simulation._start_ray("a folder", 2)
    assert (ray.started, ray.stopped) == (simulation.STARTS, simulation.STARTS)
