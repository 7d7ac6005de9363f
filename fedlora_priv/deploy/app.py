"""The one Flower app that parties of a federation run: it names the apps of the installed package and holds no code.

A SuperLink sends an app's files to every SuperNode, which would execute them, and whoever reaches the SuperLink's port
may submit one: in Flower 1.41 that needs no account, and signed apps come from Flower's own hub only. A node whose rows
and keys any such app could read would trust the server with everything. So `python -m fedlora_priv.deploy.app` stands
in, on PATH, for the commands that Flower starts an app with: an app whose files are not exactly the ones below is
refused before anything of it is unpacked, and what is executed is this package as its own administrator installed it.
"""

from __future__ import annotations

import importlib
import io
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedlora_priv.errors import EnvironmentProblem, FederationError

PROJECT_FILE = "pyproject.toml"
PROJECT = """\
[project]
name = "fedlora-federation"
version = "0.1.0"
description = "Names the apps of the installed package fedlora-priv; holds no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedlora-priv"

[tool.flwr.app.components]
serverapp = "fedlora_priv.engines.flower.server_app:app"
clientapp = "fedlora_priv.engines.flower.node_app:app"
"""
"""The app's only file."""

MAX_BYTES = 64 * 1024
_OWN_FILES = {PROJECT_FILE, ".info/CONTENT"}

RUNNERS = {
    "flwr-clientapp": ("flwr.supernode.runtime.run_clientapp", "flwr.supernode.cli", "flwr_clientapp"),
    "flwr-serverapp": ("flwr.superlink.runtime.run_serverapp", "flwr.superlink.cli", "flwr_serverapp"),
}
"""By command: the module that unpacks an app, and the module and function that the command is."""

REFUSED = ("flwr-agentapp", "flwr-connector", "flwr-model", "flwr-simulation")
"""Commands that Flower would start for other kinds of app; a federation has none."""


def require_own(bundle: bytes) -> None:
    """Raise unless an app's bundle is exactly this package's.

    Raises:
        FederationError: it holds another file, or another pyproject.toml.
    """
    try:
        if len(bundle) > MAX_BYTES:
            raise ValueError("it is too large to hold no code")
        with zipfile.ZipFile(io.BytesIO(bundle)) as files:
            names = files.namelist()
            if set(names) != _OWN_FILES or len(names) != len(_OWN_FILES):
                raise ValueError("it holds other files")
            if any(info.file_size > MAX_BYTES for info in files.infolist()):
                raise ValueError("it is too large to hold no code")
            if files.read(PROJECT_FILE) != PROJECT.encode():
                raise ValueError("it names other apps, or is of another version of fedlora-priv")
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise FederationError(
            f"the server sent an app that is not the one of this federation ({error})",
            "nothing of it was run; ask whoever runs the server what it is",
        ) from None


def write_app(folder: Path) -> Path:
    """Write the app's folder, which `flwr run` submits, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROJECT_FILE).write_text(PROJECT, encoding="utf-8")
    return folder


def write_commands(folder: Path, python: str) -> Path:
    """Write the commands that stand in for Flower's and return their folder, which goes first on PATH.

    Args:
        folder: where to.
        python: the interpreter that this package is installed for.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for command in (*RUNNERS, *REFUSED):
        path = folder / command
        path.write_text(
            f'#!/bin/sh\nexec "{python}" -m fedlora_priv.deploy.app {command} "$@"\n', encoding="utf-8"
        )
        path.chmod(0o700)
    return folder


def run(command: str) -> None:
    """Be one of Flower's commands, but for this federation's app only.

    Raises:
        EnvironmentProblem: it is a command that a federation never needs, or Flower has changed.
    """
    if command not in RUNNERS:
        raise EnvironmentProblem(f"{command} runs apps that no federation has", "it was refused")
    unpacking, module, function = RUNNERS[command]
    runner = importlib.import_module(unpacking)
    install: Callable[..., Any] | None = getattr(runner, "install_from_fab", None)
    if install is None:
        raise EnvironmentProblem(
            f"{unpacking} of this version of Flower unpacks apps in another way",
            "install the version that fedlora-priv[flower] asks for",
        )

    def guarded(bundle: bytes, *arguments: Any, **options: Any) -> Any:
        require_own(bundle)
        return install(bundle, *arguments, **options)

    runner.install_from_fab = guarded  # type: ignore[attr-defined]  # a module has no such attribute for the checker
    getattr(importlib.import_module(module), function)()


if __name__ == "__main__":
    sys.argv.pop(0)
    run(sys.argv[0])
