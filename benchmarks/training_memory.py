"""The most memory that a step needs beside its loaded model, each way in a process of its own.

Torch's allocator keeps no account on CPUs, so this is the growth of the resident set, which Linux records. The C
library is told to give every freed block of 64 KiB and more back at once; else what it keeps for later would count too,
and hide what a way really needs at one time.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.common import Row
from benchmarks.training_setups import BATCH, minilm
from benchmarks.training_ways import WAYS
from fedlora_priv.precision import BaseDtype

PLAIN = "plain, same microbatches"
CASES: tuple[tuple[str, BaseDtype], ...] = (
    ("ours", "float32"),
    ("ours, direct", "float32"),
    ("ours, hooks", "float32"),
    ("ours, ghost", "float32"),
    ("ours, checkpointing", "float32"),
    ("ours", "bfloat16"),
    ("Opacus, GradSampleModule", "float32"),
    ("Opacus, ghost clipping", "float32"),
    ("PEFT, shuffled batches of 256", "float32"),
    ("PEFT, shuffled batches of 32", "float32"),
)
_STATUS = Path("/proc/self/status")
_REFERENCES = Path("/proc/self/clear_refs")
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # mallopt(3): larger blocks are maps of their own
_FORGET_PEAK = "5"  # proc(5): sets the peak resident set size back to the present one


def rows() -> Iterator[Row]:
    """Yield each way's peak against the plain step's; nothing where there is no /proc."""
    if not can_measure():
        return
    reference = in_a_process(PLAIN, "float32")
    for way, dtype in CASES:
        peak = in_a_process(way, dtype)
        yield Row(f"peak memory: {way}, {dtype} base", peak, f"{PLAIN}, float32", reference, unit="bytes")


def can_measure() -> bool:
    """Whether this machine tells what a process has resident."""
    return _REFERENCES.exists()


def in_a_process(way: str, dtype: BaseDtype, batch: int = BATCH) -> int:
    """Run `growth` in a fresh process."""
    return printed_by("benchmarks.training_memory", way, dtype, str(batch))


def printed_by(module: str, *arguments: str) -> int:
    """Return the number that a module prints last in a fresh process, which gives freed memory back at once."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, **_GIVE_BACK}
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root, env=environment)
    return int(json.loads(done.stdout.splitlines()[-1]))


def growth(way: str, dtype: BaseDtype, batch: int) -> int:
    """Return the bytes by which the resident set grows at the most while a second step runs.

    The first one brings in kernels and what they keep for every shape, the same tens of megabytes for all ways.
    """
    return growth_of(WAYS[way](minilm(batch), dtype))


def growth_of(step: Callable[[], object]) -> int:
    """Return the bytes by which the resident set grows at the most while `step` runs for the second time."""
    step()
    _REFERENCES.write_text(_FORGET_PEAK)
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Return a memory figure of this process in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    way, dtype, batch = sys.argv[1:]
    print(json.dumps(growth(way, "bfloat16" if dtype == "bfloat16" else "float32", int(batch))))
