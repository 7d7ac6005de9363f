"""Each party's folder, from an experiment and the nodes' cards: what `fedlora deploy` writes.

    agreement/        public: experiment, roster, run, versions; every party has its own copy
    authority/        the certificate authority's key: keep it where the server is not
    server/           server.toml, TLS certificate and key, the nodes' public keys, start script
    nodes/client-k/   node.toml, the authority's certificate, start script; no key: the node has its own

For a trial everything is made in one place, the nodes' keys and, of public data, their rows included; that is said by
name, and by a file TRIAL.txt, because whoever makes all keys can play all parties.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from cryptography.hazmat.primitives.serialization import Encoding

from fedlora_priv.config import Experiment
from fedlora_priv.data.sources import Dataset
from fedlora_priv.deploy import certificates, units
from fedlora_priv.deploy.certificates import AUTHORITY_DAYS, SERVER_DAYS, Authority, issue, new_authority
from fedlora_priv.deploy.keys import Card, new_keys, require_owner_only, roster_of, write_private
from fedlora_priv.errors import ConfigError, RunFolderError
from fedlora_priv.federation.agreement import Agreement
from fedlora_priv.federation.files import write_atomically
from fedlora_priv.federation.holdings import agreed_sizes, everybodys, require_common_source
from fedlora_priv.federation.learner import Say
from fedlora_priv.federation.parties import MAX_PORT, SUPERLINK_PORT
from fedlora_priv.federation.runfolder import RUN_BYTES

TRIAL_FILE, ROWS_FILE, EVALUATION_FILE = "TRIAL.txt", "rows.jsonl", "evaluation.jsonl"
LOOPBACK = ("127.0.0.1", "localhost")
TRIAL_NOTE = (
    "The keys of all parties were made on one machine. Whoever has them can play every party, so this is a trial:\n"
    "no trust is distributed. For real, each node runs 'fedlora keys new' at home and sends its card only.\n"
)


@dataclass(frozen=True)
class Plan:
    """What to deploy.

    Args:
        experiment: what all parties run.
        out: a new folder.
        hosts: names and addresses of the server, the first of which nodes call.
        port: of the SuperLink.
        bind: address that it listens on.
        days: how long the server's certificate holds.
        own_data: whether each party brings its own rows; else they hold parts of a public source.
        first_local_port: where all nodes run on one machine, the first of as many ports for their SuperNodes.
    """

    experiment: Experiment
    out: Path
    hosts: Sequence[str]
    port: int = SUPERLINK_PORT
    bind: str = "0.0.0.0"  # noqa: S104 - a server is called from outside; a trial listens on 127.0.0.1
    days: int = SERVER_DAYS
    own_data: bool = True
    first_local_port: int | None = None

    @staticmethod
    def on_one_machine(
        experiment: Experiment,
        out: Path,
        port: int = SUPERLINK_PORT,
        days: int = SERVER_DAYS,
        *,
        own_data: bool = True,
    ) -> Plan:
        """Return the plan of a trial: nothing listens but on 127.0.0.1, the nodes on the ports after the server's."""
        return Plan(experiment, out, LOOPBACK, port, LOOPBACK[0], days, own_data, port + 1)


def deploy(plan: Plan, cards: Sequence[Card], versions: Mapping[str, str]) -> Agreement:
    """Write every party's folder for nodes that have sent their cards; return what they agree on.

    Args:
        plan: what to deploy.
        cards: one of each node.
        versions: of the package and what it computes with, the same everywhere.

    Raises:
        ConfigError: cards, hosts or the experiment do not fit.
        RunFolderError: the folder is not empty, or cannot be written.
    """
    _require_deployable(plan)
    _require_cards(plan.experiment, cards)
    return _write(plan, cards, versions)


def deploy_trial(plan: Plan, versions: Mapping[str, str], say: Say) -> Agreement:
    """Write every party's folder with keys made here and the source's rows split into the nodes' folders.

    Raises:
        ConfigError: the data is not public: a trial shows all parties' rows to one machine.
        FedloraError: as `deploy`, or the data cannot be had.
    """
    _require_deployable(plan)
    require_common_source(plan.experiment)
    holdings = everybodys(plan.experiment, say)
    nodes = plan.out / "nodes"
    cards = [new_keys(nodes / client_id / "home", client_id) for client_id in plan.experiment.client_ids]
    agreement = _write(plan, cards, versions, evaluation=plan.own_data and holdings.evaluation is not None)
    if plan.own_data:
        for client_id, rows in holdings.rows.items():
            _write_rows(nodes / client_id / ROWS_FILE, rows, plan.experiment)
        if holdings.evaluation is not None:
            _write_rows(plan.out / "server" / EVALUATION_FILE, holdings.evaluation, plan.experiment)
    write_atomically(plan.out / TRIAL_FILE, TRIAL_NOTE.encode())
    return agreement


def renew(out: Path, hosts: Sequence[str], days: int) -> Path:
    """Write a new certificate for the server's key, signed by the same authority; return its path.

    Raises:
        ConfigError: a file is damaged, or the authority has expired itself.
        RunFolderError: the authority's key is not here, or readable by others.
    """
    key_file = out / "authority" / "ca.key"
    require_owner_only(key_file)
    require_owner_only(out / "server" / "server.key")
    authority = Authority.load(
        certificates.read(key_file, "the authority's key"),
        certificates.read(out / "authority" / "ca.pem", "the authority's certificate"),
    )
    path = out / "server" / "server.pem"
    key = certificates.load_key(
        certificates.read(out / "server" / "server.key", "the server's key"), "the server's key"
    )
    old = certificates.load_certificate(certificates.read(path, "the server's certificate"), str(path))
    names = list(hosts) or certificates.hosts_of(old)
    made = issue(authority, key.public_key(), names, _now(), days)
    write_atomically(path, made.public_bytes(Encoding.PEM))
    return path


def _require_deployable(plan: Plan) -> None:
    """Raise unless the folder is free and the experiment says what parties apart must agree on."""
    if plan.out.exists() and any(plan.out.iterdir()):
        raise RunFolderError(f"{plan.out} is not empty", "choose a new folder: keys are never overwritten")
    if not plan.hosts:
        raise ConfigError("no host is named that nodes call", "add --host")
    last = (plan.first_local_port or 1) + plan.experiment.federation.clients - 1
    if last > MAX_PORT:
        raise ConfigError(
            f"port {plan.port} leaves no room for {plan.experiment.federation.clients} nodes' ports after it",
            f"choose one that is lower by {last - MAX_PORT} or more",
        )
    if plan.experiment.simulate.dropouts:
        raise ConfigError("simulate.dropouts are acted out by the local engine only", "remove them")
    if plan.own_data:
        agreed_sizes(plan.experiment)
    else:
        require_common_source(plan.experiment)


def _require_cards(experiment: Experiment, cards: Sequence[Card]) -> None:
    """Raise unless there is a card of each of the experiment's clients, and of nobody else."""
    known = {card.client_id for card in cards}
    expected = f"the experiment has client-1 to client-{experiment.federation.clients}, each with one --card"
    for client_id in experiment.client_ids:
        if client_id not in known:
            raise ConfigError(f"there is no card of {client_id}", expected)
    for client_id in sorted(known - set(experiment.client_ids)):
        raise ConfigError(f"there is a card of {client_id}, who is no client of this experiment", expected)


def _write(
    plan: Plan, cards: Sequence[Card], versions: Mapping[str, str], *, evaluation: bool = False
) -> Agreement:
    """Write agreement, authority and all parties' folders.

    Args:
        plan, cards, versions: as in `deploy`.
        evaluation: whether the server gets held-out rows.
    """
    roster, run = roster_of(cards), secrets.token_bytes(RUN_BYTES)
    agreement = Agreement(plan.experiment, roster, run, plan.own_data, dict(versions))
    agreement.save(plan.out / "agreement")
    authority = new_authority(plan.experiment.experiment.name, _now(), max(AUTHORITY_DAYS, plan.days))
    write_private(plan.out / "authority" / "ca.key", authority.key_pem)
    write_atomically(plan.out / "authority" / "ca.pem", authority.pem)
    folders = [_write_server(plan, authority, cards, evaluation=evaluation)]
    for number, client_id in enumerate(roster):
        folders.append(_write_node(plan, client_id, number))
    for folder in folders:
        agreement.save(folder / "agreement")
        write_atomically(folder / "ca.pem", authority.pem)
    return agreement


def _write_server(plan: Plan, authority: Authority, cards: Sequence[Card], *, evaluation: bool) -> Path:
    """Write the server's folder and return it."""
    folder, key = plan.out / "server", certificates.new_key()
    write_private(folder / "server.key", certificates.key_pem(key))
    certificate = issue(authority, key.public_key(), plan.hosts, _now(), plan.days)
    write_atomically(folder / "server.pem", certificate.public_bytes(Encoding.PEM))
    for card in cards:
        write_atomically(folder / "nodes" / f"{card.client_id}.pub", (card.flower + "\n").encode())
    flower = {"host": plan.hosts[0], "bind": plan.bind, "port": plan.port, "nodes": "nodes"}
    files = {"ca": "ca.pem", "certificate": "server.pem", "key": "server.key"}
    settings: dict[str, object] = {"agreement": "agreement", "output": "run"}
    if evaluation:
        settings["evaluation"] = EVALUATION_FILE
    write_atomically(folder / "server.toml", tomli_w.dumps({**settings, "flower": flower | files}).encode())
    units.write(folder, "server", plan.experiment.experiment.name)
    return folder


def _write_node(plan: Plan, client_id: str, number: int) -> Path:
    """Write a node's folder, without a key, and return it; on one machine each has a local port of its own."""
    folder = plan.out / "nodes" / client_id
    settings: dict[str, object] = {"client_id": client_id, "agreement": "agreement", "home": "home"}
    if plan.own_data:
        settings["data"] = ROWS_FILE
    settings["lifetime_epsilon"] = plan.experiment.privacy.ledger_limit
    flower: dict[str, object] = {
        "host": plan.hosts[0],
        "port": plan.port,
        "ca": "ca.pem",
        "key": "home/flower.key",
    }
    if plan.first_local_port is not None:
        flower["local_port"] = plan.first_local_port + number
    write_atomically(folder / "node.toml", tomli_w.dumps({**settings, "flower": flower}).encode())
    units.write(folder, "node", plan.experiment.experiment.name)
    return folder


def _write_rows(path: Path, rows: Dataset, experiment: Experiment) -> None:
    """Write rows as JSON lines with the experiment's own columns."""
    data = experiment.data
    columns: dict[str, Sequence[str]] = {data.text_column: rows.texts}
    if rows.labels is not None:
        columns[data.label_column] = [rows.label_names[label] for label in rows.labels]
    if rows.prompts is not None and data.prompt_column is not None:
        columns[data.prompt_column] = rows.prompts
    lines = (
        json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False)
        for row in zip(*columns.values(), strict=True)
    )
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode(), mode=0o600)


def _now() -> datetime.datetime:
    """Return this machine's time."""
    return datetime.datetime.now(datetime.UTC)
