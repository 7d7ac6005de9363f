"""A deployment for trial as real processes: a SuperLink, its SuperNodes, a submitted run; all stopped by their ids."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from fedlora_priv.config import Experiment
from fedlora_priv.deploy import start
from fedlora_priv.deploy.bundle import Plan, deploy_trial
from fedlora_priv.federation.provenance import versions

DEADLINE_S = 400.0


@dataclass
class Fleet:
    """The processes of one deployment."""

    out: Path
    experiment: Experiment
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def node(self, number: int) -> Path:
        """A node's file."""
        return self.out / "nodes" / f"client-{number}" / "node.toml"

    @property
    def server(self) -> Path:
        """The server's file."""
        return self.out / "server" / "server.toml"

    def log(self, name: str) -> str:
        """What a process has said."""
        path = self.out / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, name: str, launch: start.Launch) -> None:
        """Start a program in a process group of its own."""
        with (self.out / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                launch.arguments,
                env=launch.whole_environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def call(self, launch: start.Launch) -> str:
        """Run a command to its end and return what it said."""
        done = subprocess.run(
            launch.arguments,
            check=False,
            env=launch.whole_environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.stdout + done.stderr

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers."""
        self.start("superlink", start.superlink(self.server))
        port = start.superlink(self.server).arguments
        number = int(port[port.index("--port") + 1])
        self.wait(lambda: answers(number), "the SuperLink answers")

    def start_node(self, number: int) -> None:
        """Start a SuperNode."""
        self.start(f"client-{number}", start.supernode(self.node(number)))

    def submit(self) -> None:
        """Submit the run; what it says is in the log "run"."""
        self.start("run", start.submission(self.server))

    def wait(self, happened: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> None:
        """Wait until something has happened."""
        deadline = time.monotonic() + seconds
        while not happened():
            for name in ("superlink",):
                process = self.running.get(name)
                assert process is None or process.poll() is None, self.log(name)[-3000:]
            assert time.monotonic() < deadline, f"not in {seconds} s: {what}\n{self.log('run')[-3000:]}"
            time.sleep(0.2)

    def kill(self, name: str) -> None:
        """kill -9: the process and all that it has started."""
        process = self.running.pop(name)
        for one in family(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        process.wait(timeout=30)

    def stop(self) -> None:
        """Kill everything that was started here."""
        for name in list(self.running):
            self.kill(name)


def family(pid: int) -> list[psutil.Process]:
    """A process and its descendants, itself first so that it starts no more."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def answers(port: int) -> bool:
    """Whether somebody listens on that port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def fleet(experiment: Experiment, out: Path) -> Iterator[Fleet]:
    """Write a deployment, and stop its processes whatever happens."""
    plan = replace(
        Plan.on_one_machine(experiment, out), port=free_ports(1)[0], first_local_port=_row_of_ports(6)
    )
    deploy_trial(plan, versions(), lambda line: None)
    made = Fleet(out, experiment)
    try:
        yield made
    finally:
        made.stop()


def _row_of_ports(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listens on."""
    first = 20_000 + os.getpid() % 400 * 100
    while any(answers(first + i) for i in range(count)):
        first += count
    return first
