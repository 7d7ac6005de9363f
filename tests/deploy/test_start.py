"""How parties' processes are started: with TLS and node keys, quietly, and for this federation's app only."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedlora_priv.deploy import start
from fedlora_priv.deploy.app import PROJECT, REFUSED, RUNNERS, require_own, run, write_commands
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
            run(command)
    folder = write_commands(tmp_path / "bin", sys.executable)
    assert {path.name for path in folder.iterdir()} == {*RUNNERS, *REFUSED}
    done = subprocess.run([folder / REFUSED[0]], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode != 0
    assert "refused" in done.stderr


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
    admitted = start.admissions(file)
    assert [Path(command.arguments[3]).stem for command in admitted] == [f"client-{n}" for n in range(1, 6)]
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
