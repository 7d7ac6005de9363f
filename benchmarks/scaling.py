"""Whole sessions over clients n, neighbours k and vector length d, each in one process, a tenth of them lost.

The losses come when the masked vectors are due, which costs the server most. Seconds are CPU time of one thread;
the peak is the whole process's resident memory: all clients, the server and what is between them.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.simulation import Simulation
from protocols.secagg.interface import Phase
from protocols.secagg.parameters import COMPLETE_UP_TO, choose
from protocols.secagg.session import recommended

LOSSES, FAILURE = 0.1, 1e-8
"""The share of clients that is lost, and the chance of an abort that the neighbours are chosen for."""

CASES = (
    # n, colluders withstood, d
    (10, 1, 100_000),
    (10, 1, 1_000_000),
    (10, 1, 10_000_000),
    (100, 10, 100_000),
    (100, 10, 1_000_000),
    (100, 10, 10_000_000),
    (1000, 10, 100_000),
    (1000, 60, 100_000),
    (1000, 60, 1_000_000),
    (1000, 5, 10_000_000),
)


@dataclass(frozen=True)
class Cost:
    """What one session cost."""

    HEADER: ClassVar[tuple[str, ...]] = (
        "n", "colluders", "k", "d", "bits", "a client", "the server", "all", "up", "down", "peak memory"
    )  # fmt: skip

    n: int
    max_colluders: int
    degree: int
    d: int
    modulus_bits: int
    client_s: float
    server_s: float
    total_s: float
    up_bytes: float
    down_bytes: float
    peak_bytes: int

    def cells(self) -> tuple[str, ...]:
        """See `common.Line`."""
        return (
            f"{self.n}", f"{self.max_colluders}", f"{self.degree}", f"{self.d:,}", f"{self.modulus_bits}",
            f"{self.client_s * 1000:,.0f} ms", f"{self.server_s:,.2f} s", f"{self.total_s:,.1f} s",
            f"{self.up_bytes / 1e6:,.2f} MB", f"{self.down_bytes / 1e6:,.2f} MB",
            f"{self.peak_bytes / 1e6:,.0f} MB",
        )  # fmt: skip


def rows() -> Iterator[Cost]:
    """Run every case in a fresh process, so that each has its own peak; two at a time."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield from pool.map(_in_a_process, CASES)


def _in_a_process(case: tuple[int, int, int]) -> Cost:
    """Run `measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scaling", *map(str, case)]
    folder = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    return Cost(**json.loads(done.stdout))


def measure(n: int, max_colluders: int, d: int) -> Cost:
    """Run one session in this process and return what it cost."""
    sparse = n > COMPLETE_UP_TO
    counts = choose(n, max_colluders, LOSSES, FAILURE) if sparse else recommended(n, max_colluders)
    lost: dict[str, Phase] = {f"c{i}": "mask" for i in range(0, n, 10)}
    simulation = Simulation(n, d, max_colluders, counts, lost)
    began = time.process_time()
    survivors = simulation.run().survivors
    total = time.process_time() - began
    server = sum(simulation.server.seconds.values())
    traffic = {
        way: sum(simulation.log.bytes_by_client(way)[name] for name in survivors) for way in ("up", "down")
    }
    return Cost(
        n, max_colluders, counts.degree, d, simulation.parameters.modulus_bits, (total - server) / n, server, total,
        traffic["up"] / len(survivors), traffic["down"] / len(survivors),
        _peak_bytes(),
    )  # fmt: skip


def _peak_bytes() -> int:
    """Return this process's peak resident memory. Linux's ru_maxrss may be the parent's, from before the exec."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(asdict(measure(*map(int, sys.argv[1:])))))
