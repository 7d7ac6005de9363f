"""The ServerApp of a server that is deployed: the federation of the server.toml that ``$FEDLORA_SERVER`` names.

Submitted again after a crash it resumes from the run folder's last checkpoint, like any run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlora_priv.deploy.operate import FINISHED, LINE, stopped
from fedlora_priv.deploy.start import SERVER_VARIABLE
from fedlora_priv.engines.base import Step
from fedlora_priv.engines.flower.engine import FlowerEngine, Timing
from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.federation.node import open_server
from fedlora_priv.federation.run import conduct

app = ServerApp()


class Lines:
    """A progress of plain lines, which Flower passes on to whoever submitted the run."""

    def say(self, line: str) -> None:
        """Print a line."""
        print(f"{LINE}{line}", flush=True)

    def round_started(self, number: int, rounds: int) -> None:
        """Say which round begins."""
        self.say(f"round {number} of {rounds}")

    def round_finished(self, row: dict[str, Any]) -> None:
        """Say who is in the round's sum, and who is not and why."""
        gone = [f"{entry['client_id']} lost in {entry['phase']}" for entry in row["lost"]]
        gone += [f"{entry['client_id']} refused: {entry['code']}" for entry in row["refused"]]
        ending = (
            f"no sum ({row['aborted']})" if row["aborted"] else f"the sum of {len(row['survivors'])} clients"
        )
        self.say(f"round {row['round']}: {'; '.join([ending, *gone])}")

    def answered(self, client_id: str, step: Step) -> None:
        """Say nothing: a line for each answer would be many."""


def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - all that matters is in the server's own file
    """Run the federation over the nodes of this SuperLink.

    Raises:
        FedloraError: nothing that was stored is lost; submitted again, the run resumes.
    """
    progress = Lines()
    try:
        _run(grid, progress)
    except FedloraError as error:
        progress.say(stopped(error))
        sys.tracebacklimit = 0  # Flower logs what ends an app: the line that was just said is enough
        raise error from None


def _run(grid: Grid, progress: Lines) -> None:
    """Run the federation to its end, or raise what ended it."""
    server = open_server(_file(), say=progress.say)
    try:
        timing = Timing(*server.parts.experiment.engine.timeouts())
        engine = FlowerEngine(grid, server.roster, server.folder.run, timing)
        if missing := engine.join():
            progress.say(f"not there after {timing.join_s:g} s: {', '.join(missing)}")
        outcome = conduct(server.parts, server.folder, server.roster, engine, progress)
    finally:
        server.folder.close()
    progress.say(f"{FINISHED}: {outcome.folder}")
    if outcome.problem is not None:
        raise outcome.problem


def _file() -> Path:
    """Return the server's own file."""
    if SERVER_VARIABLE not in os.environ:
        raise ConfigError(
            f"{SERVER_VARIABLE} names no server.toml", "start the SuperLink with 'fedlora server start'"
        )
    return Path(os.environ[SERVER_VARIABLE])


app.main()(main)
