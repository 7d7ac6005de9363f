"""The one Flower app that parties of a federation run: it names the apps of the installed package and holds no code.

A SuperLink sends an app's files to every SuperNode, which would execute them, and whoever reaches the SuperLink's port
may submit one: in Flower 1.41 that needs no account, and signed apps come from Flower's own hub only. A node whose rows
and keys any such app could read would trust the server with everything. So `python -m fedlora_priv.deploy.app` stands
in, on PATH, for the commands that Flower starts an app with: an app whose files are not exactly the ones below is
refused before anything of it is unpacked, and what is executed is this package as its own administrator installed it.

A node starts a process for every message, so what handles one is called without Flower's command around it, which
imports the whole SuperNode: decision 0086.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import inspect
import io
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from fedlora_priv.errors import EnvironmentProblem, FederationError, FedloraError

NODE_APP = "fedlora_priv.engines.flower.node_app"
"""The module whose app answers a message at a node."""

PROJECT_FILE = "pyproject.toml"
PROJECT = f"""\
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
clientapp = "{NODE_APP}:app"
"""
"""The app's only file."""

MAX_BYTES = 64 * 1024
_OWN_FILES = {PROJECT_FILE, ".info/CONTENT"}

RUNTIMES = {
    "flwr-clientapp": "flwr.supernode.runtime.run_clientapp",
    "flwr-serverapp": "flwr.superlink.runtime.run_serverapp",
}
"""By command: Flower's module that unpacks an app and runs it."""

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
    for command in (*RUNTIMES, *REFUSED):
        path = folder / command
        path.write_text(
            f'#!/bin/sh\nexec "{python}" -m fedlora_priv.deploy.app {command} "$@"\n', encoding="utf-8"
        )
        path.chmod(0o700)
    return folder


def run(command: str, arguments: Sequence[str]) -> None:
    """Be one of Flower's commands, but for this federation's app only.

    Raises:
        EnvironmentProblem: it is a command that a federation never needs, or Flower has changed.
    """
    if command == "flwr-clientapp":
        _answer_one_message(arguments)
    elif command == "flwr-serverapp":
        _guarded_runtime(command)
        importlib.import_module("flwr.superlink.cli").flwr_serverapp()
    else:
        raise EnvironmentProblem(f"{command} runs apps that no federation has", "it was refused")


def _answer_one_message(arguments: Sequence[str]) -> None:
    """Do what `flwr-clientapp` does; leaves by SystemExit, as Flower's runtime does."""
    options = {**_options(arguments), "certificates": None, "runtime_dependency_install": False}
    with _imports():
        runtime = _guarded_runtime("flwr-clientapp")
        app = importlib.import_module(NODE_APP).app
    try:
        call = inspect.signature(runtime.run_clientapp).bind(**options)
    except (AttributeError, TypeError) as error:
        raise _changed(f"{runtime.__name__} takes other arguments ({error})") from error
    _load_only(runtime, app)
    runtime.run_clientapp(*call.args, **call.kwargs)


def _options(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what a SuperNode that `fedlora node start` has started tells an app: all of it, and no more.

    Raises:
        EnvironmentProblem: something is missing or there is more.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--runtime-api-address", required=True)
    parser.add_argument("--token", required=True)
    # Between processes of one node, on 127.0.0.1; what leaves the machine is the SuperNode's, which has TLS.
    parser.add_argument("--insecure", action="store_true", required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    return vars(parser.parse_args(arguments))


class _Parser(argparse.ArgumentParser):
    """Raises where `argparse` would print how a command is used, which nobody has typed."""

    def error(self, message: str) -> NoReturn:
        raise _changed(f"its SuperNode starts apps in another way ({message})")


def _guarded_runtime(command: str) -> ModuleType:
    """Return the module that runs an app, which now unpacks none but this federation's.

    Raises:
        EnvironmentProblem: Flower has changed.
    """
    runtime = importlib.import_module(RUNTIMES[command])
    install: Callable[..., Any] | None = getattr(runtime, "install_from_fab", None)
    if install is None:
        raise _changed(f"{runtime.__name__} unpacks apps in another way")

    def guarded(bundle: bytes, *arguments: Any, **options: Any) -> Any:
        require_own(bundle)
        return install(bundle, *arguments, **options)

    runtime.install_from_fab = guarded  # type: ignore[attr-defined]  # a module has no such attribute for the checker
    return runtime


def _load_only(runtime: ModuleType, app: object) -> None:
    """Let a runtime load this app whatever it is told.

    It would look for the app in a folder that the server names by the run's id, version and hash: though the bundle was
    the right one, ".." in a version leads to any other app that somebody on this machine has put into such a folder.

    Raises:
        EnvironmentProblem: Flower has changed.
    """
    if not hasattr(runtime, "get_load_client_app_fn"):
        raise _changed(f"{runtime.__name__} loads apps in another way")
    runtime.get_load_client_app_fn = lambda *_, **__: lambda *_: app  # type: ignore[attr-defined]  # as above


@contextlib.contextmanager
def _imports() -> Iterator[None]:
    """Import without looking for garbage then, nor among what was imported ever after: it stays anyway."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _changed(what: str) -> EnvironmentProblem:
    """Return the error that Flower is not the version which this module was written for."""
    return EnvironmentProblem(
        f"this is another version of Flower: {what}", "install the one that fedlora-priv[flower] asks for"
    )


def main() -> None:
    """Be the command that the first argument names."""
    sys.argv.pop(0)  # Flower's commands find themselves there
    try:
        run(sys.argv[0], sys.argv[1:])
    except FedloraError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
