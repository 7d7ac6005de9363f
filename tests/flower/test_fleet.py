"""A SuperLink and five SuperNodes as processes of this machine: a whole private federation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flower.fleet import Fleet, fleet, tiny

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A federation that has run to its end; its SuperLink and nodes still live."""
    experiment = tiny(tiny_model, tiny_data, training={"deterministic_noise": True})
    with fleet(experiment, tmp_path_factory.mktemp("fleet") / "federation") as one:
        one.start()
        status = one.finished()
        assert status == 0, one.tails()
        yield one


def test_a_federation_of_processes_finishes(finished: Fleet) -> None:
    (only,) = finished.report()["rounds"]
    assert only["survivors"] == [f"client-{k}" for k in range(1, 6)]
