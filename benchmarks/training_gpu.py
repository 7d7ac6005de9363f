"""The training table for a Llama shape of random weights on random tokens, on a GPU.

::

    python benchmarks/training_gpu.py                               a 1B Llama on the first GPU
    python benchmarks/training_gpu.py --shape tiny --device cpu     to try the code

One way at a time has the device: wall time of the best of three steps after one that warms up, and the most that
torch's allocator held. A step is 32 sequences of 64 to 512 tokens, LoRA r = 8 on the query and value projections.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # As a script, this file's folder comes first: a section may be called as a package of the project is.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.common import Row, markdown
from benchmarks.training_setups import LLAMAS, llama
from benchmarks.training_ways import WAYS, Setup, dtypes
from fedlora_priv.precision import BaseDtype

PLAIN = "plain, same microbatches"
CASES: tuple[tuple[str, BaseDtype, str], ...] = (
    ("ours", "float32", "≤ 1.05"),
    ("ours, direct", "float32", ""),
    ("ours, hooks", "float32", ""),
    ("ours, ghost", "float32", ""),
    ("ours, checkpointing", "float32", ""),
    ("Opacus, GradSampleModule", "float32", ""),
    ("Opacus, ghost clipping", "float32", ""),
    ("PEFT, shuffled batches of 32", "float32", ""),
    (PLAIN, "bfloat16", ""),
    ("ours", "bfloat16", ""),
    ("ours, checkpointing", "bfloat16", ""),
)


@dataclass(frozen=True)
class Measured:
    """The least seconds of a step and the most bytes allocated, the model's included; None without a GPU."""

    wall_s: float
    peak_bytes: int | None


def rows(
    shape: str, device: torch.device, *, batch: int = 32, longest: int = 512, repetitions: int = 3
) -> Iterator[Row]:
    """Yield each way's time and memory against the plain float32 step's."""
    setup = llama(shape, device, batch=batch, longest=longest)
    plain = measure(setup, PLAIN, "float32", repetitions)
    for way, dtype, target in CASES:
        if dtype not in dtypes(device):
            continue
        found = measure(setup, way, dtype, repetitions)
        name, against = f"{way}, {dtype} base, Llama {shape}, {device.type}", f"{PLAIN}, float32"
        yield Row(name, found.wall_s, against, plain.wall_s, target)
        if found.peak_bytes is not None and plain.peak_bytes is not None:
            yield Row(f"peak memory: {name}", found.peak_bytes, against, plain.peak_bytes, unit="bytes")


def measure(setup: Setup, way: str, dtype: BaseDtype, repetitions: int) -> Measured:
    """Return the costs of one way, alone on the device."""
    gc.collect()
    on_gpu = setup.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setup.device)
    step = WAYS[way](setup, dtype)
    times = []
    for _ in range(repetitions + 1):
        began = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize(setup.device)
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated(setup.device) if on_gpu else None
    return Measured(min(times[1:]), peak)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=LLAMAS, default="1b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=32, help="sequences a step")
    parser.add_argument("--longest", type=int, default=512, help="tokens of the longest sequence")
    parser.add_argument(
        "--repetitions", type=int, default=3, help="steps that are timed, after one to warm up"
    )
    options = parser.parse_args(arguments)
    print(markdown(Row.HEADER), markdown(("---",) * len(Row.HEADER)), sep="\n")
    device = torch.device(options.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        sizes = {"batch": options.batch, "longest": options.longest, "repetitions": options.repetitions}
        for row in rows(options.shape, device, **sizes):
            print(markdown(row.cells()), flush=True)


if __name__ == "__main__":
    main()
