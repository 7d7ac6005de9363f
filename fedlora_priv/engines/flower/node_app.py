"""The ClientApp of a node that is deployed: the client of the node.toml that ``$FEDLORA_NODE`` names.

Flower starts a process for every message. Only those that train or measure load the model and the rows; all others
have what they need from the home, and take a second instead of ten.
"""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context

from fedlora_priv.deploy.start import NODE_VARIABLE
from fedlora_priv.engines.flower import greeting
from fedlora_priv.engines.flower.client_app import make_app
from fedlora_priv.errors import ConfigError, FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.client import FederationClient
from fedlora_priv.federation.home import ClientHome
from fedlora_priv.federation.node import open_node_file, open_standby_file, require_identity
from fedlora_priv.federation.parties import NodeSettings


class InstalledNode:
    """The node of this machine, as its own administrator has set it up; no message of a server can name another."""

    def open(self, context: Context, data: bytes) -> FederationClient:  # noqa: ARG002 - Node's signature
        """Return the client, with its model if the message needs it."""
        file = _file()
        if _needs_model(data):
            return open_node_file(file)
        return open_standby_file(file) or open_node_file(file)

    def greeting(self, context: Context) -> tuple[str, bytes]:
        """Return the client's name and its signature over this node."""
        settings = NodeSettings.load(_file())
        agreement = settings.agreed()
        home = ClientHome(settings.home)
        require_identity(home, settings.client_id, agreement.roster)
        signature = greeting.sign(
            home.identity(), settings.client_id, agreement.run, context.run_id, context.node_id
        )
        return settings.client_id, signature


def _needs_model(data: bytes) -> bool:
    """Return whether a message makes a client train or measure."""
    try:
        return wire.decode(data).kind in (wire.TRAIN, wire.PERSONAL)
    except FederationError:
        return False  # the client refuses it


def _file() -> Path:
    """Return the node's own file."""
    if NODE_VARIABLE not in os.environ:
        raise ConfigError(f"{NODE_VARIABLE} names no node.toml", "start this node with 'fedlora node start'")
    return Path(os.environ[NODE_VARIABLE])


app = make_app(InstalledNode())
