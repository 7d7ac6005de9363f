"""`engine.kind = "flower-simulation"`: every client is a node that Ray runs on this machine, a hundred or more.

The server's part runs in this process. Ray's actors make the parts of the experiment once each, and a client for each
message, which finds its home in the run folder (or, for private data, where private homes are) and its round in
progress in its node's `context.state`, exactly as on a SuperNode.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import ray
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedlora_priv.config import Experiment
from fedlora_priv.engines.flower import greeting
from fedlora_priv.engines.flower.client_app import make_app
from fedlora_priv.engines.flower.engine import FlowerEngine, Timing
from fedlora_priv.errors import EnvironmentProblem, FederationError
from fedlora_priv.federation.client import FederationClient
from fedlora_priv.federation.run import Outcome, RunProgress, conduct
from fedlora_priv.federation.runfolder import RunFolder, client_home, ledger_path
from fedlora_priv.federation.seats import Seat, StateChecks, make_client, make_clients
from fedlora_priv.federation.setup import Parts, assemble
from protocols.secagg.identity import Roster

POLL_S = 0.02
"""Between two looks for answers: they are in this process's memory."""

NO_WAY_OUT = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}
"""Port 9 of this machine discards what it is sent, where anybody listens there at all."""

STARTS = 3
"""So often Ray is started until it runs."""


@dataclass(frozen=True)
class SimulatedNodes:
    """Opens the client of any node of a simulation; goes to Ray's actors by value.

    Args:
        experiment: the experiment file, resolved.
        folder: the run folder.
        run: the run's id.
        roster: everybody's public keys.
    """

    experiment: str
    folder: Path
    run: bytes
    roster: Mapping[str, bytes]

    def open(self, context: Context, data: bytes) -> FederationClient:  # noqa: ARG002 - Node's signature
        """Return the client whose turn it is in the node's partition."""
        parts, checks = _prepared(self.experiment)
        client_id = self._client_id(context)
        public, limit = parts.experiment.data.public, parts.experiment.privacy.ledger_limit
        home = client_home(self.folder, client_id, public=public)
        seat = Seat(client_id, self.run, home, ledger_path(self.folder, client_id, public=public), limit)
        return make_client(parts, seat, Roster(self.roster), checks, begun=True)

    def greeting(self, context: Context) -> tuple[str, bytes]:
        """Return the client's name and its signature over this node."""
        client_id = self._client_id(context)
        public = Experiment.from_toml(self.experiment).data.public
        identity = client_home(self.folder, client_id, public=public).identity()
        return client_id, greeting.sign(identity, client_id, self.run, context.run_id, context.node_id)

    def _client_id(self, context: Context) -> str:
        """Return the name of the client in the node's partition."""
        return tuple(self.roster)[int(context.node_config["partition-id"])]


@lru_cache(maxsize=1)
def _prepared(experiment: str) -> tuple[Parts, StateChecks]:
    """Return the parts of an experiment and what checks states, made once in each process."""
    parts = assemble(Experiment.from_toml(experiment), lambda line: None)
    return parts, StateChecks(parts)


def run_simulated(parts: Parts, folder: RunFolder, progress: RunProgress) -> Outcome:
    """Return the outcome of a run whose clients are nodes of a simulation.

    Raises:
        FedloraError: as `conduct`; or the simulation did not start.
    """
    experiment = parts.experiment
    roster = _open_ledgers(parts, folder)
    timing = Timing(*experiment.engine.timeouts(), POLL_S)
    outcomes: list[Outcome] = []

    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        engine = FlowerEngine(grid, roster, folder.run, timing, progress.answered)
        progress.say("starting Ray and its nodes")
        missing = engine.join()
        if missing:
            progress.say(f"not there after {timing.join_s:g} s: {', '.join(missing)}")
        outcomes.append(conduct(parts, folder, roster, engine, progress))

    server = ServerApp()
    server.main()(main)
    nodes = SimulatedNodes(experiment.to_toml(), folder.path, folder.run, dict(roster))
    logging.getLogger("flwr").setLevel(
        logging.ERROR
    )  # it warns that this entry point will go: docs/decisions/0073
    _simulate(server, make_app(nodes), len(roster))
    if not outcomes:
        raise FederationError("the simulation ended before the run did", "run it again: it resumes")
    return outcomes[0]


def _open_ledgers(parts: Parts, folder: RunFolder) -> Roster:
    """Return the roster of the clients, whose homes and ledgers are there and have room from then on."""
    clients, roster = make_clients(parts, folder)
    for client in clients:
        client.close()
    return roster


def _simulate(server: ServerApp, client: ClientApp, nodes: int) -> None:
    """Run the apps until the server's has ended, with an actor for each core; Ray's sockets and logs go with it."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            _start_ray(folder, min(nodes, _cores()))
            run_simulation(
                server_app=server,
                client_app=client,
                num_supernodes=nodes,
                backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
            )
        finally:
            ray.shutdown()


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS ties processes to no cores


def _start_ray(folder: str, cores: int) -> None:
    """Start Ray, which Flower finds and takes; it waits 30 s for its own processes, too little on a busy machine.

    Raises:
        EnvironmentProblem: it did not start, several times.
    """
    for attempt in range(1, STARTS + 1):
        try:
            with _asking_nobody():
                ray.init(
                    address="local",  # and not the cluster that RAY_ADDRESS may name
                    num_cpus=cores,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    _temp_dir=folder,
                )
            return
        except Exception as error:  # Ray has no narrower one
            ray.shutdown()
            if attempt == STARTS:
                raise EnvironmentProblem(
                    f"Ray did not start in {STARTS} tries: {error}",
                    "try again when this machine does less, give TMPDIR a shorter path if that is what it says, or set "
                    "engine.kind = 'local'",
                ) from error


@contextmanager
def _asking_nobody() -> Iterator[None]:
    """Give processes that start meanwhile a proxy for plain HTTP that is not there: Ray asks in which cloud it runs."""
    kept = {name: os.environ.get(name) for name in NO_WAY_OUT}
    os.environ.update(NO_WAY_OUT)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
