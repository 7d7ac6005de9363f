"""What whoever deploys reads on the terminal: for every bad input one line on stderr, and the exit code of its kind."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedlora_priv.cli import app
from fedlora_priv.deploy import check, start
from fedlora_priv.deploy.keys import new_keys
from fedlora_priv.federation import provenance

from .answering import answering, change, free_port
from .conftest import VERSIONS, experiment_text

CONFIG, DATA, BUDGET, FEDERATION, FOLDER, MACHINE = 2, 3, 4, 5, 6, 7
"""Exit codes, as docs/configuration.md lists them."""


@pytest.fixture(autouse=True)
def _versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine runs what was agreed on, and Flower is there."""
    monkeypatch.setattr(provenance, "versions", lambda: VERSIONS)
    monkeypatch.setattr(check.importlib.metadata, "version", lambda name: "1.41.0")


@pytest.fixture
def file(tiny_data: Path, tmp_path: Path) -> Path:
    """The experiment's file."""
    path = tmp_path / "wards.toml"
    path.write_text(experiment_text(tiny_data, {}))
    return path


@pytest.fixture
def node(trial: Path) -> Path:
    """A node's file, with ports on which nobody listens: not even a federation with the default ones."""
    file = trial / "nodes" / "client-2" / "node.toml"
    return change(file, "flower", port=free_port(), local_port=free_port())


@pytest.fixture
def server(trial: Path) -> Path:
    return change(trial / "server" / "server.toml", "flower", port=free_port())


def fedlora(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, code: int, text: str) -> None:
    """One line, on stderr, that says so."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert text in result.stderr
    assert "Traceback" not in result.stderr


# --- keys ----------------------------------------------------------------------------------------------------


def test_keys_that_were_made_are_shown_and_pinned(tmp_path: Path) -> None:
    cards = [tmp_path / f"client-{number}.card.json" for number in (1, 2)]
    made = [
        fedlora("keys", "new", card.with_suffix(".home"), card.name[:8], "--card", card) for card in cards
    ]
    shown = fedlora("keys", "show", *cards)
    pinned = fedlora("keys", "roster", *cards, "--out", tmp_path / "roster.json")
    assert [result.exit_code for result in (*made, shown, pinned)] == [0] * 4
    lines = shown.stdout.splitlines()
    assert [result.stdout.splitlines()[0] for result in made] == lines == pinned.stdout.splitlines()[:2]
    assert "never send it" in " ".join(made[0].stdout.split())  # a long path moves where lines are broken
    assert set(json.loads((tmp_path / "roster.json").read_text())) == {"client-1", "client-2"}


def test_bad_input_of_keys(tmp_path: Path) -> None:
    card, home = tmp_path / "one.card.json", tmp_path / "home"
    card.write_text(new_keys(home, "client-1").to_text())
    refused(
        fedlora("keys", "new", tmp_path / "x", "ward 7", "--card", tmp_path / "x.json"), CONFIG, "client-N"
    )
    refused(
        fedlora("keys", "new", home, "client-1", "--card", tmp_path / "x.json"), FOLDER, "never overwritten"
    )
    refused(fedlora("keys", "new", tmp_path / "x", "client-1", "--card", card), CONFIG, "is there already")
    refused(fedlora("keys", "new", card, "client-1", "--card", tmp_path / "x.json"), FOLDER, "one.card.json")
    assert not (tmp_path / "x").exists()
    for command in ("show", "roster"):
        refused(fedlora("keys", command, tmp_path / "none.json"), CONFIG, "none.json cannot be read")
        refused(fedlora("keys", command, home / "flower.key"), CONFIG, "is not a node's card")
        refused(fedlora("keys", command, home), CONFIG, "cannot be read")
    bad = {**json.loads(card.read_text()), "flower": "ssh-ed25519 AAAA"}
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    refused(fedlora("keys", "show", tmp_path / "bad.json"), CONFIG, "no P-384 public key in OpenSSH's format")
    refused(fedlora("keys", "roster", card, card, "--out", tmp_path / "r.json"), CONFIG, "two cards")
    assert not (tmp_path / "r.json").exists()
    (tmp_path / "r.json").write_text("mine")
    refused(fedlora("keys", "roster", card, "--out", tmp_path / "r.json"), CONFIG, "is there already")
    assert (tmp_path / "r.json").read_text() == "mine"


# --- deploy --------------------------------------------------------------------------------------------------


def test_bad_input_of_deploy(file: Path, trial: Path, tmp_path: Path) -> None:
    out, card = tmp_path / "out", tmp_path / "card.json"
    card.write_text(new_keys(tmp_path / "home", "client-1").to_text())
    to = ("--out", out)
    refused(fedlora("deploy", tmp_path / "none.toml", *to), CONFIG, "no experiment file")
    refused(fedlora("deploy", file, *to), CONFIG, "--host")
    refused(fedlora("deploy", file, *to, "--host", "a.org"), CONFIG, "no card of client-1")
    refused(fedlora("deploy", file, *to, "--host", "a.org", "--card", card), CONFIG, "no card of client-2")
    refused(fedlora("deploy", file, *to, "--host", "a.org", "--card", file), CONFIG, "not a node's card")
    refused(
        fedlora("deploy", file, *to, "--for-trial", "--host", "a.org"), CONFIG, "leave out --card and --host"
    )
    refused(fedlora("deploy", file, *to, "--for-trial", "--port", 65_535), CONFIG, "no room for 5 nodes")
    refused(fedlora("deploy", file, *to, "--for-trial", "--set", "data.public=false"), CONFIG, "not public")
    refused(fedlora("deploy", file, "--out", trial, "--for-trial"), FOLDER, "not empty")
    refused(fedlora("deploy", file, "--out", file, "--for-trial"), FOLDER, "wards.toml")
    assert not out.exists()


def test_bad_input_of_a_renewal(file: Path, trial: Path, tmp_path: Path) -> None:
    renew = ("deploy", file, "--renew", "--out")
    refused(fedlora(*renew, tmp_path / "none"), FOLDER, "no private key")
    refused(fedlora(*renew, trial, "--host", "two words"), CONFIG, "neither a host name nor an address")
    key = trial / "authority" / "ca.key"
    key.chmod(0o644)
    refused(fedlora(*renew, trial), FOLDER, "chmod 600")
    key.chmod(0o600)
    certificate = trial / "authority" / "ca.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    refused(fedlora(*renew, trial), CONFIG, "not a certificate in PEM")
    certificate.unlink()
    refused(fedlora(*renew, trial), CONFIG, "ca.pem cannot be read")


# --- node ----------------------------------------------------------------------------------------------------


def lose_rows(node: Path) -> None:
    (node.parent / "rows.jsonl").unlink()


def garble_rows(node: Path) -> None:
    (node.parent / "rows.jsonl").write_text("Mrs Miller has a fever\n")


def other_home(node: Path) -> None:
    change(node, home=str(node.parents[1] / "client-3" / "home"))


def readable_key(node: Path) -> None:
    (node.parent / "home" / "flower.key").chmod(0o644)


def pem_key(node: Path) -> None:
    shutil.copy(node.parents[2] / "server" / "server.key", node.parent / "home" / "flower.key")


def no_key(node: Path) -> None:
    (node.parent / "home" / "flower.key").unlink()


def no_agreement(node: Path) -> None:
    shutil.rmtree(node.parent / "agreement")


def other_roster(node: Path) -> None:
    path = node.parent / "agreement" / "roster.json"
    keys = json.loads(path.read_text())
    path.write_text(json.dumps({**keys, "client-1": keys["client-3"], "client-3": keys["client-1"]}))


def stranger(node: Path) -> None:
    change(node, client_id="client-9")


def spent(node: Path) -> None:
    change(node, lifetime_epsilon=0.5)


def unreadable(node: Path) -> None:
    node.write_text("client_id = client-2")


def misspelt(node: Path) -> None:
    change(node, lifetime_epsilonn=1.0)


BAD_NODES = [
    (lose_rows, DATA, "there is no"),
    (garble_rows, DATA, "rows.jsonl"),
    (other_home, FOLDER, "the roster pins"),
    (readable_key, FOLDER, "chmod 600"),
    (pem_key, CONFIG, "P-384"),
    (no_key, FOLDER, "no private key"),
    (no_agreement, CONFIG, "experiment.toml"),
    (other_roster, FOLDER, "roster.json is not the one that was agreed on"),
    (stranger, FOLDER, "no client-9"),
    (spent, BUDGET, "limit of ε 0.5"),
    (unreadable, CONFIG, "not valid TOML"),
    (misspelt, CONFIG, "did you mean"),
]


@pytest.mark.parametrize("command", ["check", "start"])
@pytest.mark.parametrize(
    ("spoil", "code", "text"), BAD_NODES, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_node_that_cannot_start_says_why(
    node: Path, server: Path, command: str, spoil: Callable[[Path], None], code: int, text: str
) -> None:
    spoil(node)
    options = ["--offline"] if command == "check" else []
    with answering(server.parent) as port:
        if command == "start" and spoil not in (unreadable, misspelt):
            change(node, "flower", port=port)
        result = fedlora("node", command, node, *options)
    refused(result, code, text)
    assert "Miller" not in result.output


def test_a_node_without_a_file(tmp_path: Path) -> None:
    for command in ("check", "start"):
        refused(fedlora("node", command, tmp_path / "node.toml"), CONFIG, "no node's file (node.toml)")
        refused(fedlora("node", command, tmp_path), CONFIG, "is a folder")


def test_a_node_whose_port_or_server_or_version_is_another(
    node: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(fedlora("node", "check", node), MACHINE, "server: nothing answers at 127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        change(node, "flower", local_port=taken.getsockname()[1])
        refused(fedlora("node", "check", node, "--offline"), MACHINE, "choose another port")
    change(node, "flower", local_port=free_port())
    with answering(server.parent, ahead_s=-60) as port:
        change(node, "flower", port=port)
        refused(fedlora("node", "check", node), MACHINE, "ahead of the server's")
    monkeypatch.setattr(provenance, "versions", lambda: {**VERSIONS, "fedlora_priv": "0.0.9"})
    refused(fedlora("node", "check", node, "--offline"), MACHINE, "has fedlora_priv 0.0.9")


def test_a_node_that_can_start_is_told_so(node: Path, server: Path) -> None:
    with answering(server.parent) as port:
        change(node, "flower", port=port)
        result = fedlora("node", "check", node)
        as_json = fedlora("node", "check", node, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["OK"] * 8
    found = json.loads(as_json.stdout)
    assert [set(one) for one in found] == [{"what", "status", "detail"}] * 8
    lose_rows(node)
    as_json = fedlora("node", "check", node, "--json", "--offline")
    refused(as_json, DATA, "data: there is no")
    assert [one["what"] for one in json.loads(as_json.stdout) if one["status"] == "FAIL"] == ["data"]


# --- server --------------------------------------------------------------------------------------------------


FLOWERS_COMMANDS = """\
import os, sys
from pathlib import Path

def app(arguments, *, standalone_mode):
    folder = Path(os.environ["FLWR_HOME"])
    with (folder / "called").open("a") as called:
        print(*arguments, file=called)
    print((folder / "said").read_text())
    if code := int((folder / "code").read_text()):
        sys.exit(code)
"""


def flower_says(server: Path, said: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put something in the place of Flower's own commands that says this for each call and notes how it was called."""
    folder = start.flower_folder(server)
    package = folder / "fake" / "flwr" / "cli"
    package.mkdir(parents=True, exist_ok=True)
    (package / "app.py").write_text(FLOWERS_COMMANDS)
    for place in (package, package.parent):
        (place / "__init__.py").touch()
    (folder / "said").write_text(said)
    (folder / "code").write_text(str(code))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "fake"), str(Path(__file__).parents[2])]))


def called(server: Path) -> list[str]:
    return (start.flower_folder(server) / "called").read_text().splitlines()


ADMITTED = '{"success": true, "node-id": 7}'
KNOWN = '{"success": false, "error-message": "Using it\\n\\n[code: 23] Public key already in use."}'
OTHERS = '{"success": false, "error-message": "Using it\\n\\n[code: 24] Not today."}'


def test_admission_is_counted_and_its_refusal_is_one_line(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(fedlora("server", "admit", server), MACHINE, "server: nothing answers at 127.0.0.1")
    with answering(server.parent) as port:
        change(server, "flower", port=port)
        flower_says(server, ADMITTED, 0, monkeypatch)
        assert "admitted 5 nodes' keys" in fedlora("server", "admit", server).stdout
        assert all(line.endswith("federation --format json") for line in called(server))
        assert [Path(line.split()[2]).stem for line in called(server)] == [f"client-{n}" for n in range(1, 6)]
        flower_says(server, KNOWN, 0, monkeypatch)
        assert "every node's key is admitted already" in fedlora("server", "admit", server).stdout
        flower_says(server, OTHERS, 0, monkeypatch)
        refused(
            fedlora("server", "admit", server), FEDERATION, "did not admit client-1: [code: 24] Not today"
        )
        flower_says(server, '{"success": false, "error-message": ""}', 0, monkeypatch)
        refused(fedlora("server", "admit", server), FEDERATION, "did not admit client-1: no reason given")
        flower_says(server, ADMITTED, 1, monkeypatch)  # it ends after the first
        refused(fedlora("server", "admit", server), FEDERATION, "did not admit client-2")
        flower_says(server, ADMITTED + ADMITTED, 0, monkeypatch)  # no key can be told from another's answer
        refused(fedlora("server", "admit", server), FEDERATION, "10 answers for 5 keys")
        flower_says(server, "╭─ Error ─╮\n", 1, monkeypatch)
        refused(fedlora("server", "admit", server), FEDERATION, "did not admit client-1: ╭─ Error ─╮")
        (server.parent / "nodes" / "client-4.pub").unlink()
        refused(fedlora("server", "admit", server), CONFIG, "client-4.pub")


@pytest.mark.parametrize(
    ("said", "code", "text"),
    [
        ("fedlora: round 1 of 2\nfedlora: finished: run\n", 0, ""),
        (
            "fedlora: stopped (6): run/ is in use; wait for it\nERROR: Exit Code: 201\n",
            FOLDER,
            "run/ is in use",
        ),
        (
            "fedlora: finished: run\nfedlora: stopped (5): no round gave a sum\n",
            FEDERATION,
            "no round gave a sum",
        ),
        ("fedlora: stopped (99): of a later version\n", 70, "of a later version"),
        ("fedlora: round 1 of 2\nTraceback (most recent call last):\n", FEDERATION, "before it was complete"),
        ("Connection to the SuperLink is unavailable\n", FEDERATION, "before it was complete"),
        ("", FEDERATION, "before it was complete"),
    ],
)
def test_a_run_leaves_with_what_ended_it(
    server: Path, said: str, code: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's own command leaves with 0 whatever became of the run."""
    with answering(server.parent) as port:
        change(server, "flower", port=port)
        flower_says(server, KNOWN, 0, monkeypatch)
        script = start.flower_folder(server) / "bin" / "flwr"  # first on PATH
        script.parent.mkdir()
        script.write_text(f"#!/bin/sh\nexec cat {script.parent}/log\n")
        script.chmod(0o700)
        (script.parent / "log").write_text(said)
        result = fedlora("server", "run", server)
    assert result.exit_code == code, result.output
    assert all(line in result.stdout for line in said.splitlines())
    if code == 70:
        assert text in result.stderr
    elif code:
        refused(result, code, text)


def test_a_server_that_cannot_start_says_why(server: Path, trial: Path, tmp_path: Path) -> None:
    for command in ("check", "start", "admit", "run"):
        refused(fedlora("server", command, tmp_path / "x.toml"), CONFIG, "no server's file (server.toml)")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = change(server, "flower", port=taken.getsockname()[1]).read_text()
        for command in ("check", "start"):
            refused(fedlora("server", command, server), MACHINE, "choose another port")
    server.write_text(before)
    change(server, "flower", port=free_port(), host="fl.example.org")
    refused(fedlora("server", "start", server), MACHINE, "not for fl.example.org")
    change(server, "flower", host="127.0.0.1")
    shutil.copy(trial / "authority" / "ca.key", server.parent / "server.key")
    refused(fedlora("server", "start", server), CONFIG, "does not belong to its certificate")
    (server.parent / "server.key").write_text("no key")
    refused(fedlora("server", "start", server), CONFIG, "not an unencrypted elliptic-curve key")
    (server.parent / "agreement" / "agreement.json").write_text("{}")
    refused(fedlora("server", "check", server), FOLDER, "the agreement in")


def test_an_expired_certificate_is_named_on_both_sides(
    server: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = check.datetime.datetime.now(check.datetime.UTC) + check.datetime.timedelta(days=91)
    with answering(server.parent) as port:
        change(node, "flower", port=port)
        monkeypatch.setattr(check, "_clock", lambda: late)
        refused(fedlora("node", "check", node), MACHINE, "fedlora deploy --renew")
    refused(fedlora("server", "check", server), MACHINE, "fedlora deploy --renew")


def test_what_is_started_is_flower_with_its_own_environment(
    node: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`start` becomes Flower's program; or says that it is not there."""
    seen: list[tuple[str, ...]] = []

    def become(program: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
        seen.append(arguments)

    monkeypatch.setattr(os, "execve", become)
    monkeypatch.setattr(shutil, "which", lambda name, path: name)
    result = fedlora("server", "start", server)
    assert (result.exit_code, result.stderr) == (0, "")
    assert seen[0][0] == "flower-superlink"
    monkeypatch.setattr(shutil, "which", lambda name, path: None)
    refused(fedlora("server", "start", server), MACHINE, "pip install 'fedlora-priv[flower]'")
    assert len(seen) == 1
