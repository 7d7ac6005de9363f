"""Private training steps beside plain ones, Opacus' own paths and ordinary PEFT training: time, memory, accuracy.

MiniLM (22.7 M parameters) with LoRA r = 8 on query and value and a trained head, 256 movie snippets a step, Adam.
The times are of one run, every way by turns, the least of several rounds; a private step is a whole `train` call
with hooks, noise and records. Memory is what the resident set of a fresh process grows by at the most in its second
step. `python benchmarks/training_gpu.py` makes the same table for a Llama shape on a GPU, and so does this section
where there is one.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from benchmarks import training_accuracy, training_gpu, training_memory
from benchmarks.common import Line, Row
from benchmarks.training_setups import minilm
from benchmarks.training_ways import WAYS, Setup, Step, dtypes, ours
from fedlora_priv.precision import BaseDtype

ROUNDS = 4
PLAIN, HOOKS, GHOST = "plain, same microbatches", "Opacus, GradSampleModule", "Opacus, ghost clipping"
ORDINARY = ("PEFT, shuffled batches of 256", "PEFT, shuffled batches of 32")
Way = tuple[str, BaseDtype]
"""A way's name, and the dtype of the frozen base."""

MODES = ("ours, direct", "ours, hooks", "ours, ghost")


@dataclass(frozen=True)
class Timing:
    """The least seconds of one step."""

    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Speed:
    """Examples a second of two ways, by CPU time, and how many times as fast by either clock."""

    HEADER: ClassVar[tuple[str, ...]] = (
        "what", "examples a CPU second", "against", "its examples", "times as fast", "by wall time", "to reach"
    )  # fmt: skip

    what: str
    cost: Timing
    against: str
    reference: Timing
    examples: int
    target: str = ""

    def cells(self) -> tuple[str, ...]:
        """See `common.Line`."""
        rates = [f"{self.examples / timing.cpu_s:,.0f}" for timing in (self.cost, self.reference)]
        times = f"{self.reference.cpu_s / self.cost.cpu_s:.2f} ×"
        wall = f"{self.reference.wall_s / self.cost.wall_s:.2f} ×"
        return (self.what, rates[0], self.against, rates[1], times, wall, self.target)


def rows() -> Iterator[Line]:
    """Yield times, then memory, then what was learnt."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield from speed(minilm(), ROUNDS)
        yield from training_memory.rows()
        yield from training_accuracy.rows()
        if torch.cuda.is_available():
            yield from training_gpu.rows("1b", torch.device("cuda"))


def speed(setup: Setup, rounds: int) -> Iterator[Line]:
    """Yield the tables of times; every way is built first, then all take turns."""
    alone = (*MODES, HOOKS, GHOST, *ORDINARY)
    steps: dict[Way, Step] = {(way, "float32"): WAYS[way](setup, "float32") for way in alone}
    for dtype in dtypes(setup.device):
        steps |= {(way, dtype): WAYS[way](setup, dtype) for way in ("ours", PLAIN)}
    steps["nobody", "float32"] = _nobody(setup)
    times = interleaved(steps, rounds)
    cpu = {key: timing.cpu_s for key, timing in times.items()}
    n = len(setup.examples)
    for dtype in dtypes(setup.device):
        what = f"ours, {n} texts, {dtype} base"
        yield Row(what, cpu["ours", dtype], f"{PLAIN}, {dtype}", cpu[PLAIN, dtype], "≤ 1.05")
    for way in ("ours", *MODES):
        for rival in (HOOKS, GHOST):
            target = "≤ 1" if way == "ours" else ""
            yield Row(way, cpu[way, "float32"], rival, cpu[rival, "float32"], target)
    what = "a call of one step in which nobody is drawn"
    yield Row(what, cpu["nobody", "float32"], f"ours, {n} texts", cpu["ours", "float32"])
    for dtype in dtypes(setup.device):
        for way in ORDINARY:
            target = "≥ 1.7" if dtype == "bfloat16" else ""
            ordinary = times[way, "float32"]
            yield Speed(f"ours, {dtype} base", times["ours", dtype], way, ordinary, n, target)


def _nobody(setup: Setup) -> Step:
    """Return a train call whose batch is empty: attaching, noise, the optimizer, reading the state out."""
    empty = replace(setup, examples=setup.examples.subset(np.arange(0)))
    return ours(empty, "float32")


def interleaved(steps: Mapping[Way, Step], rounds: int) -> dict[Way, Timing]:
    """Return the least times of each step; they take turns, so that a busy neighbour meets all of them."""
    seen: dict[Way, list[Timing]] = {key: [] for key in steps}
    for _ in range(rounds):
        for key, step in steps.items():
            seen[key].append(timed(step))
    return {key: least(timings) for key, timings in seen.items()}


def timed(step: Callable[[], object]) -> Timing:
    """Return the seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall)


def least(timings: Iterable[Timing]) -> Timing:
    """Return the least of each clock."""
    timings = list(timings)
    return Timing(min(t.cpu_s for t in timings), min(t.wall_s for t in timings))
