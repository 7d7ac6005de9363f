"""Flower's SecAgg+ beside ours: it gets an environment of its own, because its requirements are not ours."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

REQUIREMENT = "flwr==1.41.0"
FOLDER = Path(__file__).resolve().parents[1] / "build" / "bench-flwr"
PYTHON = FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@functools.cache
def measured(section: str) -> dict[str, float]:
    """Return what `flower_worker` measured for a section; empty if Flower could not be installed or run."""
    problem = _prepare()
    if problem is None:
        worker = Path(__file__).with_name("flower_worker.py")
        done = _run(PYTHON, worker, section)
        if not done.returncode:
            figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            return figures
        problem = f"its worker failed: {done.stderr.strip().splitlines()[-1]}"
    print(f"(no figures of {REQUIREMENT}: {problem})", flush=True)
    return {}


@functools.cache
def _prepare() -> str | None:
    """Make the environment unless it is there; return why that did not work."""
    stamp = FOLDER / f"{REQUIREMENT}.done"
    if stamp.exists():
        return None
    commands: tuple[list[str | Path], ...] = (
        [sys.executable, "-m", "venv", "--clear", FOLDER],
        [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT],
    )
    for command in commands:
        done = _run(*command)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return "its environment could not be made, see the messages above"
    stamp.touch()
    return None


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command without this process's paths to packages, and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
