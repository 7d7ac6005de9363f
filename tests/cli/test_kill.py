"""`kill -9` anywhere in a run, then the same command: it ends as it would have, and charges what was released.

Five clients, three rounds. The table says where the process dies, and who is charged how much more than the
three rounds for it: a reservation whose training was cut off stays charged, everything else is free.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from accounting.chain import replay

from .forking import Forks

pytestmark = pytest.mark.long

CLIENT = "fedlora_priv.federation.client"
RELEASE = "fedlora_priv.federation.release"
KILLER = Path(__file__).with_name("killer.py")
WITNESS = Path(__file__).with_name("witness.py")

# (where, before or after its n-th call, clients charged for one more attempt, clients that mask again)
POINTS = {
    "before anything is reserved": (CLIENT, "Ledger.reserve", "before", 1, [], []),
    "reserved, not trained": (CLIENT, "Ledger.reserve", "after", 8, ["client-3"], []),
    "trained, not stored": (CLIENT, "UpdateStore.save", "before", 7, ["client-2"], []),
    "stored, not committed": (CLIENT, "UpdateStore.save", "after", 9, [], []),
    "committed, not masked": (CLIENT, "Ledger.commit", "after", 10, [], []),
    "some have masked": (RELEASE, "SecAggClient.mask", "after", 8, [], ["client-1", "client-2", "client-3"]),
    "all have revealed": (
        RELEASE, "SecAggClient.reveal", "after", 5, [], [f"client-{i}" for i in range(1, 6)],
    ),
    "summed, not checkpointed": (
        "fedlora_priv.federation.checkpoint", "save", "before", 4, [], [f"client-{i}" for i in range(1, 6)],
    ),
    "checkpointed, no report": ("fedlora_priv.federation.record", "write", "before", 1, [], []),
}  # fmt: skip


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_run_resumes_and_charges_exactly_what_was_released(
    point: str, experiment_file: Callable[..., Path], forks: Forks, tmp_path: Path
) -> None:
    module, function, when, count, charged_again, masked_again = POINTS[point]
    file = experiment_file()
    killed = forks.run(KILLER, module, function, when, count, "run", file)
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    assert not (tmp_path / "run" / "report.json").exists()

    resumed = forks.run("-m", "fedlora_priv", "run", file)
    assert resumed.returncode == 0, resumed.stdout
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [len(entry["survivors"]) for entry in report["rounds"]] == [5, 5, 5]
    assert all(claim["epsilon"] <= 8.0 for claim in report["claims"])
    remasked = {again["client_id"] for entry in report["rounds"] for again in entry["remasked"]}
    assert remasked == set(masked_again)

    rows = (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()
    for (client_id, _), chain in replay(rows).items():
        charges = list(chain.charges.values())
        assert len(charges) == 3 + (client_id in charged_again), (client_id, charges)
        released = {charge.round for charge in charges if charge.releases}
        assert released == {1, 2, 3}
        assert all(charge.committed is not None for charge in charges if charge.releases)
        assert sum(charge.committed is None for charge in charges) == (client_id in charged_again)

    audited = forks.run("-m", "fedlora_priv", "audit", tmp_path / "run")
    assert audited.returncode == 0, audited.stdout


def test_a_resumed_step_never_repeats_noise_or_batch(
    experiment_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Killed in the third of four steps of a client's second round, then resumed: all that was drawn is distinct.

    Both lives are interpreters of their own, not forks: what these are given to draw from is in question here.
    """
    file, drawn = experiment_file(federation={"rounds": 2, "local_steps": 4}), tmp_path / "drawn"
    lives = []
    for reservation, step in ((6, 3), (0, 0)):
        ran = subprocess.run(
            [sys.executable, WITNESS, drawn, str(reservation), str(step), "run", str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        lives.append(ran.returncode)
    assert lives == [-signal.SIGKILL, 0], ran.stdout + ran.stderr
    lines = [line.split() for line in drawn.read_text().splitlines()]
    assert sum(line == ["reserve"] for line in lines) == 2 * 5 + 1
    for kind in ("noise", "batch"):
        digests = [line[1] for line in lines if line[0] == kind]
        # 3 steps died with the first life. 80 coins at q = 1/4 agree twice with a chance of 1e-16.
        assert len(set(digests)) == len(digests) >= 2 * 5 * 4 + 3


def test_deleting_the_run_folder_gives_no_budget_back(
    experiment_file: Callable[..., Path], fedlora: Callable[..., object], tmp_path: Path
) -> None:
    private = {
        "public": False,
        "dataset_id": "tiny",
        "labels": ["0", "1"],
        "declared_examples_per_client": 80,
    }
    file = experiment_file(data=private, privacy={"epsilon": 4.0}, federation={"rounds": 2})
    first = fedlora("run", file)
    assert first.code == 0, first.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["simulation"] is False
    assert report["metrics"]["accuracy_after"] is None
    shutil.rmtree(tmp_path / "run")
    second = fedlora("run", file)
    assert second.code == 4
    assert "cannot afford this run" in second.err
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    # A smaller run under a declared larger lifetime limit is allowed, and its report says what both cost.
    third = fedlora("run", file, "--set", "privacy.lifetime_epsilon=9", "--set", "experiment.seed=3")
    assert third.code == 0, third.err
    claims = json.loads((tmp_path / "run" / "report.json").read_text())["claims"]
    assert all(claim["epsilon"] <= 4.0 < claim["lifetime_epsilon"] <= 9.0 for claim in claims)


def test_rows_that_moved_and_ledgers_that_vanished_are_refused(
    experiment_file: Callable[..., Path], fedlora: Callable[..., object], tmp_path: Path, tiny_data: Path
) -> None:
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    private = {
        "public": False,
        "dataset_id": "tiny",
        "labels": ["0", "1"],
        "declared_examples_per_client": 80,
        "source": str(data),
    }
    file = experiment_file(data=private, privacy={"lifetime_epsilon": 90.0}, federation={"rounds": 1})
    assert fedlora("run", file).code == 0
    with (data / "train.tsv").open("a") as rows:
        rows.write("the film was good\t1\n")
    moved = fedlora("run", file, "--again")
    assert moved.code == 3
    assert "holds other rows" in moved.err
    shutil.copy(tiny_data / "train.tsv", data / "train.tsv")
    for part in (tmp_path / "home" / "clients" / "client-2").glob("ledger.sqlite*"):
        part.unlink()
    assert (tmp_path / "run" / "report.json").exists()  # what was set aside is back
    gone = fedlora("run", file, "--again")
    assert gone.code == 6
    assert "is gone" in gone.err
    assert (tmp_path / "home" / "clients" / "client-1").stat().st_mode & 0o077 == 0
