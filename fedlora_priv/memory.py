"""How much memory this process has needed, and how much it may take: of a GPU's, or of the machine's."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

import torch

_FORGET_PEAK = "5"  # proc(5): sets the peak resident set size back to the present one
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""What a container may use, with control groups of version 2 and 1; "max" or a huge number without a limit."""


def reset_peak(device: torch.device) -> None:
    """Begin to measure the largest memory anew, as far as that can be done."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc: what was freed is kept for later, and would count
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_FORGET_PEAK)  # Linux only


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory since `reset_peak`: of tensors on the GPU, or resident of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (resident := _of_status("VmHWM")) is not None:
        return resident
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def usable_bytes(device: torch.device) -> int:
    """Return how much this process could have in all: what it has, and what is free, within its container's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    found = [limit for path in _LIMITS if (limit := _number(path)) is not None]
    return min([_of_machine(), *found])


def _of_machine() -> int:
    """Return what is free on the machine and what this process has already; all there is where that is not told."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 + (_of_status("VmRSS") or 0)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _number(file: Path) -> int | None:
    """Return the number in a file; None if there is no file, or a word in it."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _of_status(field: str) -> int | None:
    """Return a figure of this process in bytes; None where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
