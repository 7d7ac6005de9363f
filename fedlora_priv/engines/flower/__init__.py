"""Federations across machines: Flower's SuperLink and SuperNodes carry the bytes, and nothing else is theirs.

records.py     bytes in and out of Flower's records
client_app.py  a node's side: one message in, one answer out, the round in progress suspended in between
engine.py      the server's side: an `Engine` over Flower's Message API, with a time-out for each phase
node_app.py    the ClientApp of a deployed node; server_app.py: the ServerApp of a deployed server
simulation.py  `engine.kind = "flower-simulation"`: nodes that Ray runs on this machine

The extra ``fedlora-priv[flower]`` installs what this needs. docs/flower.md says how it works and what it costs.
"""

from __future__ import annotations

import os

# Flower reads these when it is imported, Ray when it starts: neither calls anybody unless somebody asks for it by name.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Whoever reaches Ray's ports may run code; as it does on other systems, it is to listen on 127.0.0.1 on Linux too.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault(
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
)  # Ray asks for a choice: clients may see a GPU
