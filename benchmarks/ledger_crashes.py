"""Kills processes that write one ledger, thousands of times, and checks after each kill that nothing is lost.

    python -m benchmarks.ledger_crashes --kills 3000 --workers 3

Workers reserve, commit and release in a loop on the same file. Each notes in a file of its own, synced to disk,
what it is about to do and what was acknowledged. After every SIGKILL, at a random moment, sometimes of one worker and
sometimes of all, the ledger is read and held against these notes:

    whole          every chain replays, and ends where the file records its end
    nothing lost   what was acknowledged is there, as it was acknowledged
    not too cheap  a reservation is charged in full unless its worker at least began to commit fewer steps
    nothing made   no row that nobody began to write

Exit code 1, with the seed and the finding, if any of these fails.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accounting.chain import Chain
from accounting.events import PoissonGaussian
from accounting.ledger import Ledger
from accounting.transfer import read

OPENING: dict[str, Any] = {"client_id": "client-1", "dataset_id": "reviews", "partition_id": "iid"}
KILLS_PER_FILE = 25  # then a new file, so that replaying it does not become the whole test


def event(steps: int) -> PoissonGaussian:
    """What a worker reserves or commits."""
    return PoissonGaussian(2.0, 0.05, steps, 1.0)


def work(database: Path, notes: Path, run: str) -> None:
    """Reserve, commit and release until killed."""
    draw = random.Random(run)
    paper = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(*words: object) -> None:
        os.write(paper, (" ".join(map(str, words)) + "\n").encode())
        os.fsync(paper)

    with Ledger.open(database, public=False, versions={"numpy": "2"}, **OPENING) as ledger:
        number = 0
        while True:
            number += 1
            steps = draw.randint(1, 20)
            note("reserving", number, steps)
            at = ledger.reserve(event(steps), round=number, run=run)
            note("reserved", at, number, steps)
            if draw.random() < 0.8:
                used = draw.choice([steps, draw.randint(0, steps)])
                note("committing", at, used)
                ledger.commit(at, event(used))
                note("committed", at, used)
                if draw.random() < 0.5:
                    ledger.release(at, session="ab")
                    note("released", at)


@dataclass
class Known:
    """What one worker's notes say."""

    begun: dict[int, int] = field(default_factory=dict)  # round -> steps
    reserved: dict[int, tuple[int, int]] = field(default_factory=dict)  # row -> round, steps
    committing: dict[int, int] = field(default_factory=dict)  # row -> steps
    committed: dict[int, int] = field(default_factory=dict)
    released: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, notes: Path) -> Known:
        """The notes, without a last line that the kill cut short."""
        known = cls()
        for line in notes.read_text().split("\n")[:-1] if notes.exists() else []:
            word, *numbers = line.split()
            values = [int(number) for number in numbers]
            if word == "reserving":
                known.begun[values[0]] = values[1]
            elif word == "reserved":
                known.reserved[values[0]] = values[1], values[2]
            elif word == "released":
                known.released.add(values[0])
            else:
                getattr(known, word)[values[0]] = values[1]
        return known


def findings(chain: Chain, known: dict[str, Known]) -> Iterator[str]:
    """What is wrong with a chain, by the notes of everybody who wrote it."""
    for run, notes in known.items():
        for row, (number, steps) in notes.reserved.items():
            charge = chain.charges.get(row)
            if charge is None or (charge.run, charge.round, charge.reserved) != (run, number, event(steps)):
                yield f"row {row}: the acknowledged reservation of {run} is lost"
            elif row in notes.committed and charge.committed != event(notes.committed[row]):
                yield f"row {row}: the acknowledged commit of {run} is lost"
            elif row in notes.released and not charge.releases:
                yield f"row {row}: the acknowledged release of {run} is lost"
            elif charge.charged.steps < notes.committing.get(row, steps):
                yield f"row {row}: {run} is charged {charge.charged.steps} of {steps} steps"
    for row, charge in chain.charges.items():
        notes = known.get(charge.run, Known())
        if notes.begun.get(charge.round) != charge.reserved.steps:
            yield f"row {row}: nobody began this reservation"
        if charge.committed is not None and row in notes.reserved and row not in notes.committing:
            yield f"row {row}: nobody began this commit"


class Trial:
    """One ledger file, its workers, and their notes."""

    def __init__(self, folder: Path, workers: int, name: str) -> None:
        self.database, self.folder, self.name = folder / "ledger.sqlite", folder, name
        self.alive: dict[int, str] = {}
        self.runs: list[str] = []
        for _ in range(workers):
            self.start()

    def start(self) -> None:
        """One more worker, under a run of its own."""
        run = f"{self.name}{len(self.runs):04x}"
        self.runs.append(run)
        process = os.fork()
        if process == 0:
            try:
                work(self.database, self.folder / run, run)
            except BaseException as error:
                print(f"worker {run}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        self.alive[process] = run

    def kill(self, count: int) -> None:
        """Kill that many workers, at once. Raises AssertionError if one had ended by itself."""
        victims = random.sample(sorted(self.alive), count)
        for process in victims:
            os.kill(process, signal.SIGKILL)
        for process in victims:
            _, status = os.waitpid(process, 0)
            run = self.alive.pop(process)
            assert os.WIFSIGNALED(status), f"worker {run} ended by itself, with status {status}"

    def check(self) -> int:
        """How many rows there are. Raises AssertionError with what is wrong, if anything is."""
        known = {run: Known.read(self.folder / run) for run in self.runs}
        if not self.database.exists() or not any(notes.reserved for notes in known.values()):
            return 0
        (chain,) = read(self.database).chains.values()
        # Workers go on while this looks: what they began since then is in the file only.
        later = {run: Known.read(self.folder / run) for run in self.runs}
        for run, notes in later.items():
            known[run].begun, known[run].committing = (
                notes.begun,
                {**notes.committing, **known[run].committing},
            )
        wrong = list(findings(chain, known))
        assert not wrong, "; ".join(wrong[:5])
        return len(chain.rows)


def run_trials(kills: int, workers: int, seed: int) -> tuple[int, int]:
    """How many workers were killed and how many rows were written meanwhile."""
    random.seed(seed)
    killed = rows = files = 0
    while killed < kills:
        with tempfile.TemporaryDirectory() as folder:
            trial = Trial(Path(folder), workers, f"{files:04x}")
            files += 1
            try:
                for _ in range(min(KILLS_PER_FILE, kills - killed)):
                    time.sleep(random.choice([0.01, 0.1]) * random.random())
                    count = random.choice([1, 1, workers])
                    trial.kill(count)
                    killed += count
                    trial.check()
                    while len(trial.alive) < workers:
                        trial.start()
            finally:
                trial.kill(len(trial.alive))
            killed += workers
            rows += trial.check()
            if trial.database.exists():
                with Ledger.open(trial.database, public=False, **OPENING) as ledger:
                    ledger.verify()
    return killed, rows


def main() -> None:
    """Run, and say what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument(
        "--seed", type=int, default=None, help="of the moments of the kills, not of the scheduler"
    )
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    began = time.monotonic()
    try:
        killed, rows = run_trials(arguments.kills, arguments.workers, seed)
    except AssertionError as error:
        sys.exit(f"FOUND, seed {seed}: {error}")
    seconds = time.monotonic() - began
    print(
        f"{killed} processes killed while {rows} rows were written, {seconds:.0f} s, seed {seed}: nothing lost"
    )


if __name__ == "__main__":
    main()
