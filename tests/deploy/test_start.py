"""How parties' processes are started: with TLS and node keys, quietly, and for this federation's app only."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedlora_priv.deploy import start
from fedlora_priv.deploy.app import NODE_APP, PROJECT, REFUSED, RUNTIMES, require_own, run, write_commands
from fedlora_priv.errors import ConfigError, EnvironmentProblem, FederationError
from fedlora_priv.federation import provenance

from .conftest import VERSIONS


def bundle(**files: str) -> bytes:
    """An app's bundle; names have a point for each '__'."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as written:
        for name, text in files.items():
            written.writestr(name.replace("__", "."), text)
    return buffer.getvalue()


OWN = {"pyproject__toml": PROJECT, "__info/CONTENT": "pyproject.toml,00,10"}


def test_the_federations_own_app_is_taken() -> None:
    require_own(bundle(**OWN))


@pytest.mark.parametrize(
    "other",
    [
        bundle(**OWN, code__py="import os"),
        bundle(
            **{**OWN, "pyproject__toml": PROJECT.replace("fedlora_priv.engines.flower.node_app", "x" * 35)}
        ),
        bundle(**{**OWN, "pyproject__toml": PROJECT + "#"}),
        bundle(pyproject__toml=PROJECT),
        bundle(**{"../pyproject__toml": PROJECT, "__info/CONTENT": ""}),
        bundle(**{**OWN, "__info/CONTENT": "0" * 10**6}),
        bundle(**OWN)[:-10],
        bundle(**OWN) + bytes(100_000),
        b"",
        b"PK\x03\x04" + bytes(60),
    ],
)
def test_any_other_app_is_refused_before_it_is_unpacked(other: bytes) -> None:
    with pytest.raises(FederationError, match="nothing of it was run"):
        require_own(other)


def test_two_files_of_one_name_are_refused() -> None:
    """A reader that takes the first and one that takes the last would see different apps."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        written.writestr("pyproject.toml", PROJECT.replace("fedlora", "another"))
        written.writestr(".info/CONTENT", "")
        with pytest.warns(UserWarning, match="Duplicate"):
            written.writestr("pyproject.toml", PROJECT)
    with pytest.raises(FederationError):
        require_own(buffer.getvalue())


def test_the_commands_for_other_apps_run_nothing(tmp_path: Path) -> None:
    for command in REFUSED:
        with pytest.raises(EnvironmentProblem, match="refused"):
            run(command, ())
    folder = write_commands(tmp_path / "bin", sys.executable)
    assert {path.name for path in folder.iterdir()} == {*RUNTIMES, *REFUSED}
    done = subprocess.run([folder / REFUSED[0]], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode != 0
    assert "refused" in done.stderr


def started_by_flower(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command with which Flower's own SuperExec starts an app for a message."""
    executor = pytest.importorskip("flwr.supercore.superexec.executor.subprocess_executor")
    types = pytest.importorskip("flwr.supercore.superexec.executor.types")
    said: list[list[str]] = []
    monkeypatch.setattr(executor.subprocess, "Popen", said.append)
    spec = types.ExecutionSpec(
        task_type=executor.TaskType.CLIENT_APP,
        runtime_api_address="127.0.0.1:9094",
        token="t0",
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=17,
        suppress_output=False,
        task_id=3,
        fab_hash=None,
    )
    assert executor.SubprocessExecutor().launch(spec) is not None
    return said[0]


def test_a_message_reaches_flowers_runtime_as_its_own_command_would_give_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All that Flower's SuperExec says is understood, and what the runtime unpacks has been looked at.

    What it runs is this package's app, whichever folder of this machine the server's run points to.
    """
    command, *arguments = started_by_flower(monkeypatch)
    runtime = pytest.importorskip(RUNTIMES[command])
    given: list[dict[str, object]] = []
    unpacked: list[bytes] = []
    elsewhere = tmp_path / "elsewhere.01234567"  # a part of its hash is in the folder of any app
    elsewhere.mkdir()
    (elsewhere / "pyproject.toml").write_text(PROJECT.replace(NODE_APP, "foreign"), encoding="utf-8")
    (elsewhere / "foreign.py").write_text("raise SystemExit('foreign code')", encoding="utf-8")
    (tmp_path / "flower" / "apps" / "a.b.1").mkdir(parents=True)
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    loaded: list[object] = []

    def run_clientapp(
        runtime_api_address: str,
        token: str,
        insecure: bool,
        certificates: bytes | None,
        parent_pid: int | None,
        runtime_dependency_install: bool,
    ) -> None:
        given.append(dict(locals()))
        load = runtime.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
        loaded.append(load("a/b", "1/../../../elsewhere", "0123456789"))
        for app in (bundle(**OWN), bundle(**OWN, code__py="import os")):
            runtime.install_from_fab(app, skip_prompt=True)

    monkeypatch.setattr(runtime, "install_from_fab", lambda app, skip_prompt: unpacked.append(app))
    monkeypatch.setattr(runtime, "get_load_client_app_fn", runtime.get_load_client_app_fn)
    assert inspect.signature(run_clientapp).parameters.keys() == (
        inspect.signature(runtime.run_clientapp).parameters.keys()
    )
    monkeypatch.setattr(runtime, "run_clientapp", run_clientapp)
    with pytest.raises(FederationError, match="not the one of this federation"):
        run(command, arguments)
    assert unpacked == [bundle(**OWN)]
    assert loaded == [importlib.import_module(NODE_APP).app]
    known = {"runtime_api_address": "127.0.0.1:9094", "token": "t0", "insecure": True, "certificates": None}
    entry = {key: given[0][key] for key in inspect.signature(run_clientapp).parameters}
    assert entry == {**known, "parent_pid": 17, "runtime_dependency_install": False}


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--allow-runtime-dependency-installation"], "unrecognized arguments"),
        (["--token-file", "t"], "unrecognized arguments"),
        (None, "are required: --token"),
    ],
)
def test_another_way_to_start_an_app_is_refused(
    more: list[str] | None, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, *arguments = started_by_flower(monkeypatch)
    at = arguments.index("--token")
    changed = [*arguments[:at], *arguments[at + 2 :]] if more is None else [*arguments, *more]
    with pytest.raises(EnvironmentProblem, match=what):
        run(command, changed)


def test_a_runtime_that_has_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    command, *arguments = started_by_flower(monkeypatch)
    runtime = pytest.importorskip(RUNTIMES[command])
    monkeypatch.setattr(runtime, "install_from_fab", runtime.install_from_fab)
    run_clientapp = runtime.run_clientapp
    monkeypatch.setattr(runtime, "run_clientapp", lambda token: None)
    with pytest.raises(EnvironmentProblem, match="takes other arguments"):
        run(command, arguments)
    with monkeypatch.context() as changed:
        changed.setattr(runtime, "run_clientapp", run_clientapp)
        changed.delattr(runtime, "get_load_client_app_fn")
        with pytest.raises(EnvironmentProblem, match="loads apps in another way"):
            run(command, arguments)
    monkeypatch.delattr(runtime, "install_from_fab")
    with pytest.raises(EnvironmentProblem, match="unpacks apps in another way"):
        run(command, arguments)


def test_a_message_that_needs_no_model_imports_none() -> None:
    """Nor scipy, nor the SuperNode around Flower's runtime: a node pays for every message."""
    pytest.importorskip("flwr")
    code = f"""
import sys
from fedlora_priv.deploy import app
with app._imports():
    app._guarded_runtime("flwr-clientapp")
    __import__({NODE_APP!r})
import fedlora_priv.federation.standby
print(sorted({{name.partition(".")[0] for name in sys.modules}}))
print("flwr.supernode.cli" in sys.modules)
"""
    quiet = {**os.environ, **start.QUIET}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=quiet)
    loaded, cli = done.stdout.splitlines()
    assert not {"torch", "transformers", "peft", "opacus", "scipy", "sqlalchemy", "ray"} & set(
        ast.literal_eval(loaded)
    )
    assert cli == "False"


def test_a_supernode_has_tls_its_own_key_and_no_open_port(
    trial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = trial / "nodes" / "client-3" / "node.toml"
    launch = start.supernode(file)
    assert launch.arguments[:3] == (sys.executable, "-m", "fedlora_priv.deploy.supernode")
    options = dict(zip(launch.arguments[3::2], launch.arguments[4::2], strict=True))
    assert options["--superlink"] == "127.0.0.1:8000"
    assert options["--root-certificates"] == str(file.parent / "ca.pem")
    assert options["--auth-supernode-private-key"] == str(file.parent / "home" / "flower.key")
    assert options["--host"] == "127.0.0.1"
    assert "--insecure" not in launch.arguments
    environment = launch.environment
    assert environment[start.NODE_VARIABLE] == str(file)
    assert (environment["FLWR_TELEMETRY_ENABLED"], environment["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    run_superexec = pytest.importorskip("flwr.supercore.superexec.run_superexec")
    monkeypatch.setattr(
        os, "environ", dict(environment)
    )  # Flower reads its interval by this name, and takes it
    assert run_superexec._get_task_poll_interval() == 0.1
    monkeypatch.undo()
    first = Path(environment["PATH"].split(os.pathsep)[0])
    assert (first / "flwr-clientapp").stat().st_mode & 0o777 == 0o700


def test_a_superlink_has_tls_and_admits_named_nodes_only(
    trial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "versions", lambda: VERSIONS)
    file = trial / "server" / "server.toml"
    launch = start.superlink(file)
    assert "--enable-supernode-auth" in launch.arguments
    assert "--disable-runtime-dependency-installation" in launch.arguments
    assert "--insecure" not in launch.arguments
    for option, name in (("certfile", "server.pem"), ("keyfile", "server.key"), ("ca-certfile", "ca.pem")):
        position = launch.arguments.index(f"--ssl-{option}")
        assert launch.arguments[position + 1] == str(file.parent / name)
    admission = start.admission(file)
    assert [Path(key).stem for key in admission.arguments[4:]] == [f"client-{n}" for n in range(1, 6)]
    submitted = start.submission(file)
    app = Path(submitted.arguments[2])
    assert (app / "pyproject.toml").read_text() == PROJECT
    assert [path.name for path in app.iterdir()] == ["pyproject.toml"]
    assert "insecure" not in (app.parent / "config.toml").read_text()


def test_a_file_without_flower_is_named(trial: Path) -> None:
    for file, begin in (
        (trial / "nodes" / "client-1" / "node.toml", start.supernode),
        (trial / "server" / "server.toml", start.superlink),
    ):
        file.write_text(file.read_text().split("[flower]")[0])
        with pytest.raises(ConfigError, match="no \\[flower\\]"):
            begin(file)
