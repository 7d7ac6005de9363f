"""How a party's processes are started: Flower's own programs, their arguments and environment, from its own file.

Nothing listens but the SuperLink on its one port and, on 127.0.0.1, each SuperNode's for its own apps. TLS and node
keys are always on. Telemetry, update checks and installing what an app asks for are off.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from fedlora_priv.deploy.app import write_app, write_commands
from fedlora_priv.errors import ConfigError, EnvironmentProblem
from fedlora_priv.federation.parties import NodeLink, NodeSettings, ServerLink, ServerSettings

NODE_VARIABLE = "FEDLORA_NODE"
SERVER_VARIABLE = "FEDLORA_SERVER"
"""Where the apps find their party's file: by the environment, which no message of a server can change."""

CONNECTION = "federation"
"""What Flower's own configuration calls the server."""

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # seconds; Flower's second is half of one lost for every message
}


@dataclass(frozen=True)
class Launch:
    """A program to start: its arguments, and what its environment gains."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    def whole_environment(self) -> dict[str, str]:
        """Return this process's environment with the launch's on top."""
        return {**os.environ, **self.environment}

    def replace_this_process(self) -> None:
        """Become the program; does not return.

        Raises:
            EnvironmentProblem: it is not installed.
        """
        environment = self.whole_environment()
        program = shutil.which(self.arguments[0], path=environment["PATH"])
        if program is None:
            raise EnvironmentProblem(
                f"{self.arguments[0]} is not installed", "pip install 'fedlora-priv[flower]'"
            )
        os.execve(program, self.arguments, environment)  # noqa: S606 - no shell is wanted


def supernode(file: Path) -> Launch:
    """Return how a node's SuperNode is started.

    Raises:
        ConfigError: its file says nothing of Flower, or cannot be read.
    """
    settings = NodeSettings.load(file)
    link = node_link(settings)
    arguments = {
        "--superlink": f"{bracketed(link.host)}:{link.port}",
        "--root-certificates": str(link.ca),
        "--auth-supernode-private-key": str(link.key),
        "--host": "127.0.0.1",
        "--port": str(link.local_port),
        "--isolation": "subprocess",
    }
    environment = _environment(settings.home / "flower", {NODE_VARIABLE: str(file.resolve())})
    return Launch((sys.executable, "-m", "fedlora_priv.deploy.supernode", *_flat(arguments)), environment)


def superlink(file: Path) -> Launch:
    """Return how the server's SuperLink is started.

    Raises:
        ConfigError: its file says nothing of Flower, or cannot be read.
    """
    settings = ServerSettings.load(file)
    link = server_link(settings)
    folder = flower_folder(file)
    arguments = {
        "--ssl-ca-certfile": str(link.ca),
        "--ssl-certfile": str(link.certificate),
        "--ssl-keyfile": str(link.key),
        "--host": link.bind,
        "--port": str(link.port),
        "--database": str(folder / "superlink.db"),
        "--isolation": "subprocess",
    }
    environment = _environment(folder, {SERVER_VARIABLE: str(file.resolve())})
    flags = ("--enable-supernode-auth", "--disable-runtime-dependency-installation")
    return Launch(("flower-superlink", *_flat(arguments), *flags), environment)


def admission(file: Path) -> Launch:
    """Return the command that admits the nodes' keys at a running SuperLink, in roster order.

    Raises:
        ConfigError: the server's file says nothing of Flower, or cannot be read.
    """
    settings = ServerSettings.load(file)
    nodes = server_link(settings).nodes
    keys = (str(nodes / f"{client_id}.pub") for client_id in settings.agreed().roster)
    return at_server(file, sys.executable, "-m", "fedlora_priv.deploy.admission", CONNECTION, *keys)


def submission(file: Path) -> Launch:
    """Return the command that starts the federation at a running SuperLink and shows its log.

    Raises:
        ConfigError: the server's file says nothing of Flower, or cannot be read.
    """
    folder = write_app(flower_folder(file) / "app")
    return at_server(file, "flwr", "run", str(folder), CONNECTION, "--stream")


def at_server(file: Path, *arguments: str) -> Launch:
    """Return a command that calls Flower, which finds the server in a configuration of its own.

    Raises:
        ConfigError: the server's file says nothing of Flower, or cannot be read.
    """
    link, folder = server_link(ServerSettings.load(file)), flower_folder(file)
    known = {"address": f"{bracketed(link.host)}:{link.port}", "root-certificates": str(link.ca)}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration = {"superlink": {"default": CONNECTION, CONNECTION: known}}
    (folder / "config.toml").write_text(tomli_w.dumps(configuration), encoding="utf-8")
    return Launch(arguments, _environment(folder, {}))


def flower_folder(file: Path) -> Path:
    """Return where Flower keeps its own files for the server of a server.toml."""
    return file.resolve().parent / "flower"


def node_link(settings: NodeSettings) -> NodeLink:
    """Return a node's [flower]. Raises ConfigError if it has none."""
    if settings.flower is None:
        raise ConfigError(
            "node.toml has no [flower], which says where the server is", "add it, or use fedlora deploy"
        )
    return settings.flower


def server_link(settings: ServerSettings) -> ServerLink:
    """Return a server's [flower]. Raises ConfigError if it has none."""
    if settings.flower is None:
        raise ConfigError(
            "server.toml has no [flower], which says where it answers", "add it, or use fedlora deploy"
        )
    return settings.flower


def bracketed(host: str) -> str:
    """Return a host as it stands before a port.

    >>> bracketed("::1"), bracketed("fl.example.org")
    ('[::1]', 'fl.example.org')
    """
    return f"[{host}]" if ":" in host else host


def _environment(folder: Path, own: Mapping[str, str]) -> dict[str, str]:
    """Return what every process of a party gains; the commands that refuse foreign apps come first on PATH."""
    commands = write_commands(folder / "bin", sys.executable)
    path = os.pathsep.join(
        [str(commands), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    return {**QUIET, **own, "FLWR_HOME": str(folder), "PATH": path}


def _flat(arguments: Mapping[str, str]) -> list[str]:
    """Return options and their values one after the other."""
    return [part for option in arguments.items() for part in option]
