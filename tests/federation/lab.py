"""One client of a federation, and a server's messages to it, for tests that play the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedlora_priv.config import Experiment
from fedlora_priv.federation import wire
from fedlora_priv.federation.client import FederationClient
from fedlora_priv.federation.runfolder import RunFolder
from fedlora_priv.federation.seats import make_clients
from fedlora_priv.federation.server import FederationServer, ServerState
from fedlora_priv.federation.setup import Parts, assemble


class Lab:
    """One client, and a server's messages to it."""

    def __init__(self, path: Path) -> None:
        self.experiment = Experiment.load(path)
        self.parts: Parts = assemble(self.experiment, lambda line: None)
        self.folder = RunFolder.open(self.experiment)
        self.clients, _ = make_clients(self.parts, self.folder)
        self.client: FederationClient = self.clients[0]
        self.server = FederationServer(
            self.experiment, self.parts.layout, self.parts.method, self.parts.initial, 1.0
        )
        self.state: ServerState = self.server.begin()
        self.begun = self.state.state

    @property
    def ledger(self) -> Any:
        return self.client._setup.ledger

    def train(self, state: ServerState | None = None) -> bytes:
        """Return the message that begins a round."""
        return wire.encode(self.server.task(state or self.state).to_message(self.begun))

    def ask(self, message: bytes) -> wire.Message:
        return wire.decode(self.client.handle(message))
