"""A deployed federation as real processes on this machine: a SuperLink, its SuperNodes, a run; none is left behind.

Every process is started as its user starts it: by `fedlora` commands, from the folders that `fedlora deploy` writes. A
process and all that it starts carry a mark in their environment, by which they are found, killed and counted,
whatever became of their parents. What Flower's app processes do is told by `tests.flower.traced`.

    with fleet(tiny(tiny_model, tiny_data), tmp_path / "fleet") as f:
        f.start()                                   # SuperLink, `fedlora server run`, all nodes
        f.hold("client-2", "called", "1.share")     # stop it there ...
        f.wait_for("client-2", "called", "1.share")
        f.kill("client-2")                          # ... and kill -9 the node with everything below it
        f.release()
        f.start_node(2)
        assert f.finished() == 0
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fedlora_priv.config import Experiment
from fedlora_priv.deploy import start
from fedlora_priv.deploy.bundle import Plan, deploy_trial
from fedlora_priv.deploy.check import reach
from fedlora_priv.errors import EnvironmentProblem
from fedlora_priv.federation.parties import NodeSettings
from fedlora_priv.federation.provenance import versions
from tests.flower.deployment import change, free_ports
from tests.flower.processes import MARK, command, guarded, kill_all, marked
from tests.flower.traced import KNOWN, PARTY, TRACE, WATCH, KeptSum, hold_path, sums

ROOT = Path(__file__).resolve().parents[2]
FEDLORA = (sys.executable, "-m", "fedlora_priv")

DEADLINE_S = 900.0
"""How long a test waits for anything, on a machine that does much else; what is waited for takes seconds."""

SUPERLINK, RUN = "superlink", "run"
POLL_S = 0.1
RESTART_S = 10.0
"""How long a unit waits before it starts again what has ended; those that `fedlora deploy` writes wait 30 s."""


@dataclass
class Fleet:
    """The processes of one deployment.

    Args:
        out: the deployment's folder.
        experiment: what was deployed.
        mark: what all processes of this fleet carry.
        extra: what the environment of each gains, as `tests.flower.traced` reads it.
        running: by name ("superlink", "run", "client-1", ...), what was started and not killed since.
        units: nodes that are started again when they end, as systemd does.
    """

    out: Path
    experiment: Experiment
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    extra: dict[str, str] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    units: set[str] = field(default_factory=set)
    _due: dict[str, float] = field(default_factory=dict)

    # --- what is where --------------------------------------------------------------------------------------

    @property
    def server(self) -> Path:
        """The server's file."""
        return self.out / "server" / "server.toml"

    @property
    def run_folder(self) -> Path:
        """What `fedlora audit` judges."""
        return self.out / "server" / "run"

    @property
    def roster(self) -> Path:
        """The pinned keys."""
        return self.out / "agreement" / "roster.json"

    @property
    def trace(self) -> Path:
        """Events and sums."""
        return self.out / "trace"

    def node(self, number: int) -> Path:
        """A node's file."""
        return self.out / "nodes" / f"client-{number}" / "node.toml"

    def home(self, number: int) -> Path:
        """A node's home: keys, ledger, guard."""
        return self.node(number).parent / "home"

    def log(self, name: str) -> str:
        """What a process and those below it have said, over all its starts."""
        path = self.out / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def report(self) -> dict[str, Any]:
        """The report of the finished run."""
        return json.loads((self.run_folder / "report.json").read_text())

    def sums(self) -> dict[str, KeptSum]:
        """Every masked sum by "<round>.<exchange>": ring elements, and whose they are."""
        return sums(self.trace)

    # --- starting -------------------------------------------------------------------------------------------

    def start(self, *, rehearse: Collection[int] = ()) -> None:
        """Start everything in the order that costs least: the run admits the nodes' keys, then nodes call.

        Args:
            rehearse: nodes that start as their users start them; see `start_node`.
        """
        self.start_superlink()
        self.start_run()
        self.wait(lambda: "fedlora:" in self.log(RUN), "the ServerApp runs")
        for number in range(1, self.experiment.federation.clients + 1):
            self.start_node(number, rehearse=number in rehearse)

    def start_superlink(self) -> None:
        """`fedlora server start`, up to where a node's own check is content with the answer."""
        self.launch(SUPERLINK, "server", "start", self.server)
        link = start.node_link(NodeSettings.load(self.node(1)))

        def reached() -> bool:
            with contextlib.suppress(EnvironmentProblem):
                return bool(reach(link, datetime.datetime.now(datetime.UTC)))
            return False

        self.wait(reached, "the SuperLink answers")

    def start_run(self, name: str = RUN) -> None:
        """`fedlora server run`: admits the nodes' keys, submits the run and shows its log.

        Args:
            name: begins with "run"; another one where an earlier run's command has not noticed yet that it has ended.
        """
        self.launch(name, "server", "run", self.server)

    def start_node(self, number: int, *, rehearse: bool = False) -> None:
        """Start a node.

        Args:
            number: which.
            rehearse: as a user does, by `fedlora node start`, which rehearses private steps before it becomes the
                SuperNode; else at once as what it becomes, with the same arguments and environment.
        """
        name, file = f"client-{number}", self.node(number)
        if rehearse:
            self.launch(name, "node", "start", file)
        else:
            launch = start.supernode(file)
            self._launch(name, launch.arguments, launch.environment)

    def launch(self, name: str, *command: object) -> None:
        """Start a `fedlora` command that runs on."""
        self._launch(name, [*FEDLORA, *map(str, command)], {})

    def call(self, *command: object, seconds: float = DEADLINE_S) -> subprocess.CompletedProcess[str]:
        """Run a `fedlora` command to its end; what it said and its exit status."""
        return subprocess.run(
            [*FEDLORA, *map(str, command)],
            check=False,
            env=self._environment("call", {}),
            capture_output=True,
            text=True,
            timeout=seconds,
        )

    def _launch(self, name: str, arguments: Sequence[str], environment: Any) -> None:
        """Start a program with its lines in logs/<name>.log."""
        assert name not in self.running, f"{name} runs already"
        path = self.out / "logs" / f"{name}.log"
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as log:
            self.running[name] = subprocess.Popen(
                arguments,
                env=self._environment(name, environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _environment(self, name: str, own: Any) -> dict[str, str]:
        """Return the environment of a process of this fleet."""
        paths = [str(ROOT / "tests" / "flower" / "tracing"), str(ROOT)]
        if there := os.environ.get("PYTHONPATH"):
            paths.append(there)
        # Importing the engine has set these here; a party's processes must set them for themselves.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "RAY_", "FLEET_"))}
        return {
            **inherited,
            **own,
            **self.extra,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            MARK: f"{self.mark}/{name}/",
            TRACE: str(self.trace),
            PARTY: name,
        }

    # --- waiting --------------------------------------------------------------------------------------------

    def events(self) -> list[dict[str, Any]]:
        """What app processes have said of themselves so far, in order; see `tests.flower.traced`."""
        path = self.trace / "events.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def calls(self) -> list[tuple[str, str, str]]:
        """Party, host and port of each connection that a Python process began, or name that it looked up."""
        return self._noted("calls.tsv")

    def opened(self) -> list[tuple[str, ...]]:
        """Party and path of each file of the watched folder that one of its processes opened."""
        return self._noted("opened.tsv")

    def _noted(self, name: str) -> list[Any]:
        """Return the lines of a file that processes append to."""
        path = self.trace / name
        lines = path.read_text().splitlines() if path.exists() else []
        return [tuple(line.split("\t")) for line in lines]

    def happened(self, party: str, what: str, step: str) -> bool:
        """Whether there was such an event."""
        wanted = (party, what, step)
        return any((event["party"], event["what"], event["step"]) == wanted for event in self.events())

    def wait_for(self, party: str, what: str, step: str) -> None:
        """Wait for an event."""
        self.wait(lambda: self.happened(party, what, step), f"{party} {what} {step}")

    def hold(self, party: str, what: str, step: str) -> None:
        """Have a process wait as soon as that has happened; say it before it can happen."""
        hold_path(self.trace, party, what, step).touch()

    def release(self) -> None:
        """Let everybody go on who is held."""
        for path in self.trace.glob("hold *"):
            path.unlink()

    def wait(self, happened: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> None:
        """Wait until something has happened; what was started and not killed must live until then, or be a unit.

        Raises:
            AssertionError: it has not in that time, or a process has ended by itself; with the ends of all logs.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            ended = [
                name
                for name, one in self.running.items()
                if not name.startswith(RUN) and one.poll() is not None
            ]
            for name in ended:
                if name not in self.units:
                    code = self.running[name].returncode
                    raise AssertionError(f"{name} ended with {code}, before: {what}\n{self.tails()}")
                self._restart(name)
            if time.monotonic() > deadline:
                raise AssertionError(f"not in {seconds:g} s: {what}\n{self.tails()}")
            time.sleep(POLL_S)

    def _restart(self, name: str) -> None:
        """Start a node that has ended, once it is time to."""
        if time.monotonic() >= self._due.setdefault(name, time.monotonic() + RESTART_S):
            del self._due[name], self.running[name]
            self.start_node(int(name.removeprefix("client-")))

    def finished(self, name: str = RUN) -> int:
        """Wait until `fedlora server run` has ended; its exit status."""
        run = self.running[name]
        self.wait(lambda: run.poll() is not None, f"{name} ends")
        del self.running[name]
        return run.returncode

    def ended(self, name: str, seconds: float = DEADLINE_S) -> int:
        """Wait until a process has ended by itself; its exit status."""
        process = self.running.pop(name)
        self.wait(lambda: process.poll() is not None, f"{name} ends", seconds)
        return process.returncode

    def tails(self) -> str:
        """The ends of all logs and the last events, for whoever reads a failure."""
        logs = sorted((self.out / "logs").glob("*.log"))
        parts = [f"--- {path.stem}\n{self.log(path.stem)[-1500:]}" for path in logs]
        return "\n".join([*parts, "--- events", *map(str, self.events()[-12:])])

    # --- killing --------------------------------------------------------------------------------------------

    def processes(self, name: str | None = None) -> list[psutil.Process]:
        """Processes that live: of one name with all below them, or of the whole fleet."""
        return marked(f"{self.mark}/" if name is None else f"{self.mark}/{name}/")

    def apps(self, name: str) -> list[psutil.Process]:
        """The app processes below a SuperNode, or the ServerApp's below the SuperLink."""
        return [one for one in self.processes(name) if "fedlora_priv.deploy.app" in command(one)]

    def kill(self, name: str) -> None:
        """kill -9: a process and all that it has started, until none is left."""
        kill_all(lambda: self.processes(name))
        if (process := self.running.pop(name, None)) is not None:
            process.wait(timeout=DEADLINE_S)

    def kill_apps(self, name: str) -> None:
        """kill -9 of the app processes only: the SuperNode or the SuperLink lives on."""
        kill_all(lambda: self.apps(name))

    def stop(self) -> None:
        """kill -9 of everything that was started here; none is left."""
        kill_all(self.processes)
        for process in self.running.values():
            process.wait(timeout=DEADLINE_S)
        self.running.clear()
        self._due.clear()
        assert not self.processes()


@contextlib.contextmanager
def fleet(experiment: Experiment, out: Path, *, known_randomness: bool = False) -> Iterator[Fleet]:
    """Write a deployment for trial in a new folder; at the end stop all its processes, whatever has happened."""
    deploy_trial(Plan.on_one_machine(experiment, out), versions(), lambda line: None)
    with fleet_of(experiment, out, known_randomness=known_randomness) as made:
        yield made


@contextlib.contextmanager
def fleet_of(
    experiment: Experiment, out: Path, *, watch: Path | None = None, known_randomness: bool = False
) -> Iterator[Fleet]:
    """Give the parties of a deployment that is written free ports of 127.0.0.1; stop their processes at the end.

    Args:
        experiment: what was deployed.
        out: where.
        watch: a folder of which `opened` is to tell what was opened by whom.
        known_randomness: see `traced.know_randomness`.
    """
    extra = {KNOWN: "1"} if known_randomness else {}
    made = Fleet(out, experiment, extra=extra if watch is None else {**extra, WATCH: str(watch)})
    made.trace.mkdir()
    port, *local = free_ports(1 + experiment.federation.clients)
    change(made.server, "flower", port=port, bind="127.0.0.1")
    for number, own in enumerate(local, start=1):
        change(made.node(number), "flower", port=port, local_port=own)
    with guarded(made.mark):
        try:
            yield made
        finally:
            made.stop()
