"""A federation of five nodes, a server and TLS on this machine: ``python examples/flower/try_it.py [FOLDER]``.

It does what people on six machines would do, with `fedlora` commands only: a deployment for trial, the server's
SuperLink, a SuperNode for each hospital, the run, and the audit of what the server has at the end.
Everything is on 127.0.0.1 and in one folder; every process is stopped at the end.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
FEDLORA = [sys.executable, "-m", "fedlora_priv"]
UP_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


class Processes:
    """What this trial has started; all of it is stopped when the block ends, whatever happened."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in self._started.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start a command in a process group of its own; its lines go to <name>.log."""
        with (self._logs / f"{name}.log").open("wb") as log:
            self._started[name] = subprocess.Popen(  # noqa: S603 - this package's own commands
                [*FEDLORA, *arguments], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def require_running(self) -> None:
        """Leave with the last line of whatever has ended."""
        for name, process in self._started.items():
            if process.poll() is not None:
                log = self._logs / f"{name}.log"
                lines = log.read_text(errors="replace").strip().splitlines() or ["without a word"]
                errors = [line for line in lines if "ERROR" in line]
                sys.exit(f"{name} has ended: {(errors or lines)[-1]} (see {log})")


def main() -> None:
    """Deploy, start, run, audit, stop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs/flower-trial"), help="a new folder"
    )
    parser.add_argument("--experiment", type=Path, default=HERE / "hospitals.toml")
    parser.add_argument("--port", type=int, default=8000, help="of the server; the nodes use the next five")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    options = parser.parse_args()
    overrides = [part for override in options.overrides for part in ("--set", override)]

    fedlora(
        "deploy",
        options.experiment,
        "--out",
        options.folder,
        "--for-trial",
        "--port",
        options.port,
        *overrides,
    )
    server = options.folder / "server" / "server.toml"
    with Processes(options.folder / "logs") as processes:
        processes.start("server", ["server", "start", str(server)])
        nodes = sorted((options.folder / "nodes").glob("*/node.toml"))
        wait_for_server(nodes[0], processes)
        fedlora("server", "admit", server)  # a node that calls before that is turned away, and ends
        for file in nodes:
            processes.start(file.parent.name, ["node", "start", str(file)])
        run_watching(["server", "run", str(server)], processes)
    report = options.folder / "server" / "run"
    fedlora("audit", report, "--roster", options.folder / "agreement" / "roster.json")
    print(
        f"\nreport   {report / 'report.html'}\nadapter  {report / 'adapter'}\nlogs     {options.folder / 'logs'}"
    )


def wait_for_server(node: Path, processes: Processes) -> None:
    """Return when the server answers a node's check, or leave with the reason why it does not."""
    deadline = time.monotonic() + UP_TIMEOUT_S
    while True:
        processes.require_running()
        done = subprocess.run(  # noqa: S603 - this package's own
            [*FEDLORA, "node", "check", str(node)], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            sys.exit(done.stderr.strip() or "the server does not answer")
        time.sleep(1.0)


def run_watching(arguments: Sequence[str], processes: Processes) -> None:
    """Run a command in front of the user; leave if it fails or one of the parties ends meanwhile."""
    running = subprocess.Popen([*FEDLORA, *arguments])  # noqa: S603 - this package's own command
    try:
        while running.poll() is None:
            processes.require_running()
            time.sleep(1.0)
    finally:
        running.terminate()
        running.wait()
    if running.returncode:
        sys.exit(running.returncode)


def fedlora(*arguments: object) -> None:
    """Run a command in front of the user, or leave with its exit code."""
    done = subprocess.run([*FEDLORA, *map(str, arguments)], check=False)  # noqa: S603 - this package's own
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
