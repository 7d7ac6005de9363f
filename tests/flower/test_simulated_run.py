"""`engine.kind = "flower-simulation"` with Ray and its actors: the local engine's integers, and nothing left of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from numpy.testing import assert_array_equal

from fedlora_priv.config import Experiment
from fedlora_priv.federation.run import run

from .fleet import DEADLINE_S, Fleet
from .processes import guarded
from .traced import sums, sums_kept

pytestmark = [pytest.mark.long, pytest.mark.waits]

CLIENTS = ["client-1", "client-2", "client-3"]
LOOK_EVERY_S = 0.5

RUN = """
import sys
from pathlib import Path
from fedlora_priv.cli import main
from tests.flower.traced import sums_kept
with sums_kept(Path(sys.argv.pop())):
    main()
"""
"""`fedlora run`, with sums kept; in a process of its own, as Ray's processes are looked for by what they inherit."""


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for temporary files, with a short name: it begins those of Ray's sockets, of 107 bytes at most."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder)


def sockets(processes: list[psutil.Process]) -> set[tuple[str, str]]:
    """By the name of a program, the addresses that it listens on and those at the other end of its connections."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it has just ended
            name = process.name()
            for one in process.net_connections(kind="inet"):
                address = one.raddr.ip if one.raddr else one.laddr.ip
                found.add((name, address.removeprefix("::ffff:")))  # IPv4 on a socket of IPv6
    return found


def outcome(folder: Path) -> tuple[bytes, list[Any]]:
    """A run's adapter and, by round, the bytes that each client has sent and received."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metered = [
        (row["uploaded_bytes"], row["downloaded_bytes"], row["bytes_by_kind"], row["survivors"])
        for row in rows
    ]
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes(), metered


def test_a_simulation_is_the_local_engines_run_and_leaves_nothing(
    experiment_file: Callable[..., Path], tmp_path: Path, scratch: Path, silent: Any
) -> None:
    def experiment(kind: str, **engine: Any) -> Path:
        return experiment_file(
            experiment={"name": "tiny", "seed": 3, "output": str(tmp_path / kind)},
            federation={"clients": len(CLIENTS), "rounds": 2},
            training={"batch_size": 20, "learning_rate": 0.5, "deterministic_noise": True},
            engine={"kind": kind, **engine},
        )

    home = tmp_path / "home"
    home.mkdir()
    traced = Fleet(tmp_path, None, extra={"HOME": str(home), "TMPDIR": str(scratch)})  # type: ignore[arg-type] # nothing is deployed
    traced.trace.mkdir()
    simulated_sums = tmp_path / "simulated-sums"
    with guarded(traced.mark):
        file = experiment("flower-simulation", train_timeout_s=900, phase_timeout_s=900)
        command = [sys.executable, "-c", RUN, "run", str(file), str(simulated_sums)]
        traced._launch("simulation", command, {})
        process = traced.running["simulation"]
        deadline = time.monotonic() + DEADLINE_S
        seen: set[tuple[str, str]] = set()
        while process.poll() is None:
            assert time.monotonic() < deadline, traced.tails()
            seen |= sockets(traced.processes())
            time.sleep(LOOK_EVERY_S)
        assert process.returncode == 0, traced.tails()
        while traced.processes():  # Ray's end a moment after the one that has started them
            assert time.monotonic() < deadline, traced.processes()
            time.sleep(LOOK_EVERY_S)
    assert {"raylet", "gcs_server"} <= {name for name, _ in seen}  # so Ray was there, and was seen
    assert {address for _, address in seen} <= {"127.0.0.1", "::1"}, seen
    assert {host for _, host, _ in traced.calls()} <= {"127.0.0.1", "localhost", "unix"}, set(traced.calls())
    assert not [*scratch.iterdir()]
    assert {path.name for path in home.iterdir()} <= {".flwr"}  # Flower's own settings

    with sums_kept(tmp_path / "local-sums"):
        run(Experiment.load(experiment("local")), progress=silent)
    local, simulated = sums(tmp_path / "local-sums"), sums(simulated_sums)
    assert local.keys() == simulated.keys() == {"1.0", "2.0"}
    for name, kept in local.items():
        assert kept.total.any()
        assert_array_equal(simulated[name].total, kept.total)
        assert simulated[name].survivors == kept.survivors == CLIENTS
    assert outcome(tmp_path / "flower-simulation") == outcome(tmp_path / "local")
