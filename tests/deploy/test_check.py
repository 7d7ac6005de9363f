"""Bad input of a deployment: each is one line on the side that can act, found before Flower starts."""

from __future__ import annotations

import datetime
import socket
from pathlib import Path
from typing import Any

import pytest

from accounting.ledger import Ledger
from fedlora_priv.deploy import check
from fedlora_priv.deploy.bundle import renew
from fedlora_priv.deploy.certificates import new_authority
from fedlora_priv.errors import ConfigError, RunFolderError
from fedlora_priv.federation import provenance
from fedlora_priv.federation.agreement import Agreement
from fedlora_priv.federation.parties import NodeSettings
from fedlora_priv.federation.plans import plan_clients

from .answering import answering, change, failures, free_port
from .conftest import VERSIONS


@pytest.fixture(autouse=True)
def _versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine runs what was agreed on, and Flower is there."""
    monkeypatch.setattr(provenance, "versions", lambda: VERSIONS)
    monkeypatch.setattr(check.importlib.metadata, "version", lambda name: "1.41.0")


@pytest.fixture
def node(trial: Path) -> Path:
    """A node's file, with ports on which nobody listens: not even a federation with the default ones."""
    file = trial / "nodes" / "client-2" / "node.toml"
    return change(file, "flower", port=free_port(), local_port=free_port())


@pytest.fixture
def server(trial: Path) -> Path:
    return change(trial / "server" / "server.toml", "flower", port=free_port())


def test_a_good_node_and_a_good_server_pass_every_check(node: Path, server: Path) -> None:
    assert failures(check.check_server(server)) == {}
    with answering(server.parent) as port:
        change(node, "flower", port=port)
        found = check.check_node(node)
    assert failures(found) == {}
    agreement = Agreement.load(node.parent / "agreement")
    assert agreement.fingerprint in found[0].detail
    assert "80" not in "".join(finding.detail for finding in found if finding.what == "data")


@pytest.mark.parametrize("plain", [True, False])
def test_who_answers_is_told(node: Path, server: Path, trial: Path, plain: bool) -> None:
    """Nobody; somebody without TLS; another host's certificate; one that has expired; another federation's."""
    assert "nothing answers" in failures(check.check_node(node))["server"]
    if plain:
        with answering(None) as port:
            assert "without TLS" in failures(check.check_node(change(node, "flower", port=port)))["server"]
        return
    with answering(server.parent) as port:
        change(node, "flower", port=port)
        later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=200)
        assert "expired" in failures(check.check_node(node, now=later))["server"]
    with answering(server.parent) as port:
        change(node, "flower", port=port)
        earlier = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)
        assert "clock" in failures(check.check_node(node, now=earlier))["server"]
    renew(trial, ["fl.example.org"], 90)
    with answering(server.parent) as port:
        change(node, "flower", port=port)
        assert "is for fl.example.org, not for 127.0.0.1" in failures(check.check_node(node))["server"]
    renew(trial, ["127.0.0.1"], 90)
    (node.parent / "ca.pem").write_bytes(new_authority("wards", datetime.datetime.now(datetime.UTC)).pem)
    with answering(server.parent) as port:
        change(node, "flower", port=port)
        assert "not from this federation" in failures(check.check_node(node))["server"]


@pytest.mark.parametrize(
    ("ahead_s", "said"),
    [(0.0, None), (290.0, None), (-3600.0, "3600 s ahead of"), (-9.0, "s ahead of"), (400.0, "400 s behind")],
)
def test_a_clock_that_flower_would_not_take_is_named(
    node: Path, server: Path, ahead_s: float, said: str | None
) -> None:
    with answering(server.parent, ahead_s=ahead_s) as port:
        found = failures(check.check_node(change(node, "flower", port=port))).get("server")
    assert found is None if said is None else said in str(found).replace("3601", "3600").replace("399", "400")


def test_a_server_without_a_clock_is_not_blamed_for_it(node: Path, server: Path) -> None:
    with answering(server.parent, dated=False) as port:
        assert "server" not in failures(check.check_node(change(node, "flower", port=port)))


def offline(node: Path) -> dict[str, str]:
    return failures(check.check_node(node, connect=False))


def test_a_node_without_its_data(node: Path) -> None:
    rows = node.parent / "rows.jsonl"
    text = rows.read_text()
    rows.unlink()
    assert str(rows) in offline(node)["data"]
    rows.write_text(text.replace('"label": "1"', '"label": "a-secret-diagnosis"'))
    said = offline(node)["data"]
    assert "1 label besides the 2" in said
    assert "secret" not in said
    rows.write_text(text)
    assert "data" not in offline(node)
    assert "names no data" in offline(change(node, data=None))["data"]


def test_a_roster_that_pins_another_key(node: Path, trial: Path) -> None:
    other = trial / "nodes" / "client-3" / "home"
    said = offline(change(node, home=str(other)))["identity"]
    assert "is client-3's, and the roster pins" in said
    assert "for client-2; use the home" in said
    assert "holds no identity key" in offline(change(node, home="nowhere"))["identity"]
    assert not (node.parent / "nowhere").exists()  # a look makes no key
    with pytest.raises(RunFolderError, match="the roster has no client-9"):
        offline(change(node, client_id="client-9"))


def test_a_key_that_flower_does_not_take_or_others_may_read(node: Path) -> None:
    key = node.parent / "home" / "flower.key"
    key.chmod(0o644)
    assert "chmod 600" in offline(node)["key for Flower"]
    key.chmod(0o600)
    key.write_bytes((node.parents[2] / "server" / "server.key").read_bytes())
    assert "P-384" in offline(node)["key for Flower"]
    identity = node.parent / "home" / "identity.key"
    identity.chmod(0o640)
    assert "chmod 600" in offline(node)["identity"]


def test_a_port_that_is_taken(node: Path, server: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1" in offline(change(node, "flower", local_port=port))["port"]
        change(server, "flower", port=port)
        assert "choose another port" in failures(check.check_server(server))["port"]
    change(server, "flower", bind="192.0.2.1")  # no address of this machine
    assert "192.0.2.1" in failures(check.check_server(server))["port"]


def test_another_version_of_the_package_or_of_flower(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "versions", lambda: {**VERSIONS, "fedlora_priv": "0.0.9"})
    monkeypatch.setattr(check.importlib.metadata, "version", lambda name: "1.30.0")
    found = offline(node)
    assert "this machine has fedlora_priv 0.0.9, and the federation agreed on 0.1.0" in found["agreement"]
    assert "Flower is 1.30.0" in found["Flower"]


def test_a_server_with_another_key_or_without_a_nodes(server: Path, trial: Path) -> None:
    pub = server.parent / "nodes" / "client-4.pub"
    pub.write_text("ssh-ed25519 AAAA")
    assert "client-4.pub holds no P-384" in failures(check.check_server(server))["nodes"]
    pub.unlink()
    assert "client-4.pub" in failures(check.check_server(server))["nodes"]
    key = server.parent / "server.key"
    key.write_bytes((trial / "authority" / "ca.key").read_bytes())
    assert "does not belong to its certificate" in failures(check.check_server(server))["certificate"]
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=91)
    assert "certificate" in failures(check.check_server(server, now=later))


def spend(node: Path, run: str, rounds: int) -> None:
    """Charge rounds of a run to the node's ledger."""
    settings = NodeSettings.load(node)
    experiment = Agreement.load(settings.agreement).experiment
    plan = plan_clients(experiment, dict.fromkeys(experiment.client_ids, 80))[settings.client_id]
    opening: dict[str, Any] = {"client_id": settings.client_id, "dataset_id": "wards-2026"}
    path = settings.home / "ledger.sqlite"
    with Ledger.open(path, **opening, partition_id="each party's own rows", public=True) as ledger:
        for number in range(1, rounds + 1):
            ledger.commit(ledger.reserve(plan.round_event(), round=number, run=run))


def test_a_budget_that_other_runs_have_spent(node: Path) -> None:
    assert "budget" not in offline(node)
    spend(node, "ab" * 16, 2)
    assert "earlier runs on the same dataset" in offline(node)["budget"]
    spend(node, Agreement.load(node.parent / "agreement").run.hex(), 1)
    assert "budget" not in offline(node)  # it has begun, and is judged round by round
    (node.parent / "home" / "ledger.sqlite").write_bytes(b"not a ledger")
    assert "restore the ledger" in offline(node)["budget"]


def test_a_partys_own_limit_is_lower_than_the_agreed_one(node: Path) -> None:
    assert "budget" not in offline(change(node, lifetime_epsilon=100.0))
    assert "limit of ε 1" in offline(change(node, lifetime_epsilon=1.0))["budget"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"hom": "home"}, "did you mean"),
        ({"agreement": None}, "agreement is missing"),
        ({"lifetime_epsilon": -1.0}, "greater than 0"),
        ({"flower": {"host": "h", "ca": "ca.pem", "port": 0}}, "flower.port"),
        ({"flower": {"host": "h", "ca": "ca.pem", "insecure": True}}, "insecure"),
    ],
)
def test_a_file_that_says_something_else(node: Path, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check.check_node(change(node, **values))


def test_every_error_is_one_line(node: Path) -> None:
    change(node, home="nowhere", data="nowhere", lifetime_epsilon=0.5)
    found = offline(node)
    assert set(found) == {"identity", "data", "budget"}
    assert all("\n" not in line for line in found.values())
