"""What `fedlora deploy` writes: who gets which secret, what all agree on, and what it refuses to write."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from fedlora_priv.config import Experiment
from fedlora_priv.data.sources import own_evaluation, own_rows
from fedlora_priv.deploy.bundle import TRIAL_FILE, Plan, deploy, deploy_trial, renew
from fedlora_priv.deploy.certificates import hosts_of
from fedlora_priv.deploy.keys import Card, new_keys
from fedlora_priv.errors import ConfigError, EnvironmentProblem, RunFolderError
from fedlora_priv.federation.agreement import Agreement
from fedlora_priv.federation.holdings import everybodys
from fedlora_priv.federation.parties import NodeSettings, ServerSettings

from .conftest import VERSIONS

PRIVATE: dict[str, Any] = {"data": {"public": False}}


@pytest.fixture
def cards(tmp_path: Path) -> list[Card]:
    return [new_keys(tmp_path / f"at-home-{number}", f"client-{number}") for number in range(1, 6)]


def secrets_in(folder: Path) -> set[str]:
    """The files that hold a private key, by content and by mode."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    by_content = {str(path.relative_to(folder)) for path in files if b"PRIVATE KEY" in path.read_bytes()}
    by_name = {str(path.relative_to(folder)) for path in files if path.suffix == ".key"}
    assert by_content <= by_name
    assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o600 for name in by_name)
    return by_name


def test_for_real_no_private_key_of_a_node_is_anywhere(
    experiment: Callable[..., Experiment], cards: list[Card], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    agreement = deploy(Plan(experiment(**PRIVATE), out, ["fl.example.org"]), cards, VERSIONS)
    assert secrets_in(out) == {"authority/ca.key", "server/server.key"}
    assert not (out / TRIAL_FILE).exists()
    for card in cards:
        folder = out / "nodes" / card.client_id
        assert Agreement.load(folder / "agreement") == agreement
        settings = NodeSettings.load(folder / "node.toml")
        assert settings.client_id == card.client_id
        assert settings.flower is not None
        assert (settings.flower.host, settings.flower.key) == (
            "fl.example.org",
            folder / "home" / "flower.key",
        )
        assert agreement.roster[card.client_id] == card.identity
        assert (out / "server" / "nodes" / f"{card.client_id}.pub").read_text().strip() == card.flower
    assert agreement.own_data
    assert Agreement.load(out / "server" / "agreement").fingerprint == agreement.fingerprint


def test_a_trial_says_so_and_splits_the_rows_without_loss(
    experiment: Callable[..., Experiment], trial: Path
) -> None:
    split = everybodys(experiment(), lambda line: None)
    assert "trial" in (trial / TRIAL_FILE).read_text()
    ports = set()
    for client_id, rows in split.rows.items():
        settings = NodeSettings.load(trial / "nodes" / client_id / "node.toml")
        assert settings.data is not None
        assert own_rows(experiment(), settings.data) == rows
        assert stat.S_IMODE(settings.data.stat().st_mode) == 0o600
        assert settings.flower is not None
        ports.add(settings.flower.local_port)
    assert len(ports) == 5
    server = ServerSettings.load(trial / "server" / "server.toml")
    assert server.flower is not None
    assert server.flower.bind == "127.0.0.1"
    assert server.evaluation is not None
    assert own_evaluation(experiment(), server.evaluation) == split.evaluation
    nodes = {
        f"nodes/client-{number}/home/{key}.key" for number in range(1, 6) for key in ("identity", "flower")
    }
    assert secrets_in(trial) == {"authority/ca.key", "server/server.key"} | nodes


def test_two_deployments_of_one_experiment_are_two_runs(
    experiment: Callable[..., Experiment], cards: list[Card], tmp_path: Path
) -> None:
    plan = Plan(experiment(), tmp_path / "a", ["fl.example.org"])
    one, other = deploy(plan, cards, VERSIONS), deploy(replace(plan, out=tmp_path / "b"), cards, VERSIONS)
    assert one.run != other.run
    assert one.fingerprint != other.fingerprint
    assert one.roster == other.roster


@pytest.mark.parametrize("file", ["experiment.toml", "roster.json", "agreement.json"])
def test_what_was_agreed_on_cannot_be_changed_by_one_party(trial: Path, file: str) -> None:
    path = trial / "agreement" / file
    before = Agreement.load(trial / "agreement")
    text = path.read_text()
    if file == "experiment.toml":
        changed = text.replace("rounds = 2", "rounds = 3")
    elif file == "roster.json":
        changed = json.dumps({**json.loads(text), "client-1": before.roster["client-1"][::-1].hex()})
    else:
        changed = json.dumps({**json.loads(text), "run": "00" * 16})
    assert changed != text
    path.write_text(changed)
    if file == "agreement.json":  # nothing but the fingerprint, which people compare, can tell
        assert Agreement.load(path.parent).fingerprint != before.fingerprint
    else:
        with pytest.raises(RunFolderError):
            Agreement.load(path.parent)
    path.unlink()
    with pytest.raises((RunFolderError, ConfigError)):
        Agreement.load(path.parent)


def test_where_it_runs_is_each_partys_own(trial: Path) -> None:
    """The device is no part of what is agreed on: it does not change what is computed."""
    path = trial / "agreement" / "experiment.toml"
    before = Agreement.load(path.parent)
    device = before.experiment.training.device
    other = "cpu" if device != "cpu" else "auto"
    path.write_text(path.read_text().replace(f'device = "{device}"', f'device = "{other}"'))
    after = Agreement.load(path.parent)
    assert after.experiment.training.device == other
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"data": {"dataset_id": "x", "declared_examples_per_client": 80, "labels": ["0", "1"]}}, None),
        ({"data": {"declared_examples_per_client": None, "declared_examples": [80, 60, 90, 40, 20]}}, None),
        (
            {"data": {"public": True, "dataset_id": "x", "declared_examples_per_client": None}},
            "declared_examples",
        ),
        ({"federation": {"clients": 4}}, "a card of client-5, who is no client"),
        ({"federation": {"clients": 6}}, "no card of client-6"),
        (
            {"simulate": {"dropouts": [{"round": 1, "client_id": "client-1", "phase": "mask"}]}},
            "local engine",
        ),
    ],
)
def test_what_parties_apart_cannot_agree_on_is_refused(
    experiment: Callable[..., Experiment],
    cards: list[Card],
    tmp_path: Path,
    sections: dict[str, Any],
    reason: str | None,
) -> None:
    plan = Plan(experiment(**sections), tmp_path / "out", ["fl.example.org"])
    if reason is None:
        deploy(plan, cards, VERSIONS)
        return
    with pytest.raises((ConfigError, RunFolderError), match=reason):
        deploy(plan, cards, VERSIONS)


def test_a_trial_of_private_rows_is_refused(experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not public"):
        deploy_trial(
            Plan(experiment(**PRIVATE), tmp_path / "out", ["127.0.0.1"]), VERSIONS, lambda line: None
        )
    assert not (tmp_path / "out").exists()


def test_a_trial_whose_nodes_would_have_no_ports_is_refused(
    experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    def plan(port: int) -> Plan:
        return Plan.on_one_machine(experiment(), tmp_path / "out", port)

    with pytest.raises(ConfigError, match="lower by 1 or more"):
        deploy_trial(plan(65_531), VERSIONS, lambda line: None)
    assert not (tmp_path / "out").exists()
    deploy_trial(plan(65_530), VERSIONS, lambda line: None)
    last = NodeSettings.load(tmp_path / "out" / "nodes" / "client-5" / "node.toml").flower
    assert last is not None
    assert last.local_port == 65_535


def test_a_folder_that_holds_something_is_left_alone(
    experiment: Callable[..., Experiment], cards: list[Card], trial: Path
) -> None:
    before = {path: path.read_bytes() for path in trial.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match="not empty"):
        deploy(Plan(experiment(), trial, ["fl.example.org"]), cards, VERSIONS)
    assert {path: path.read_bytes() for path in trial.rglob("*") if path.is_file()} == before


def test_a_renewed_certificate_is_for_the_same_key(trial: Path) -> None:
    path = trial / "server" / "server.pem"
    old = x509.load_pem_x509_certificate(path.read_bytes())
    key = (trial / "server" / "server.key").read_bytes()
    assert renew(trial, [], 30) == path
    new = x509.load_pem_x509_certificate(path.read_bytes())
    assert new.public_key() == old.public_key()
    assert new.serial_number != old.serial_number
    assert hosts_of(new) == hosts_of(old)
    assert (trial / "server" / "server.key").read_bytes() == key
    renew(trial, ["other.example.org"], 30)
    assert hosts_of(x509.load_pem_x509_certificate(path.read_bytes())) == ["other.example.org"]
    (trial / "authority" / "ca.key").unlink()
    with pytest.raises(RunFolderError, match="no private key"):
        renew(trial, [], 30)


def test_another_version_is_named(trial: Path) -> None:
    agreement = Agreement.load(trial / "agreement")
    agreement.require_versions({**VERSIONS, "something": "more"})
    with pytest.raises(
        EnvironmentProblem, match=r"fedlora_priv 0\.0\.9, and the federation agreed on 0\.1\.0"
    ):
        agreement.require_versions({"fedlora_priv": "0.0.9", "code_sha256": "cd" * 32})
    with pytest.raises(EnvironmentProblem, match="code_sha256 cdcdcdcdcdcdcdcd, and"):
        agreement.require_versions({**VERSIONS, "code_sha256": "cd" * 32})


def test_start_scripts_name_one_command_and_no_secret(trial: Path) -> None:
    for folder, role in ((trial / "server", "server"), (trial / "nodes" / "client-1", "node")):
        script, unit = folder / "start.sh", folder / f"fedlora-{role}.service"
        assert script.stat().st_mode & stat.S_IXUSR
        assert f"exec fedlora {role} start {role}.toml" in script.read_text()
        assert "--insecure" not in script.read_text() + unit.read_text()
        assert "ProtectSystem=strict" in unit.read_text()
