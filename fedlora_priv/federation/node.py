"""A federation across machines, party by party: a node that holds only its own rows, and a server that holds none.

Each reads one small TOML file of its own (`fedlora_priv.federation.parties`) beside the agreement of all parties
(`fedlora_priv.federation.agreement`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora_priv.config import Experiment
from fedlora_priv.errors import DataError, RunFolderError
from fedlora_priv.federation.agreement import grouped
from fedlora_priv.federation.home import ClientHome
from fedlora_priv.federation.parties import NodeSettings, ServerSettings, require_data
from fedlora_priv.federation.runfolder import RunFolder
from fedlora_priv.federation.standby import Standby
from protocols.secagg.identity import Roster

if TYPE_CHECKING:
    from fedlora_priv.federation.client import FederationClient
    from fedlora_priv.federation.setup import Parts

Say = Callable[[str], None]


def open_node(
    experiment: Experiment,
    client_id: str,
    *,
    home: Path,
    data: Path | None,
    run: bytes,
    roster: Roster,
    lifetime_epsilon: float | None = None,
    model: Path | None = None,
    evaluation: Path | None = None,
    rehearse: bool = False,
    fingerprint: str | None = None,
    say: Say = lambda line: None,
) -> FederationClient:
    """Return a client in a process that loads no rows but its own.

    Args:
        experiment: as agreed; its digest is in every mask.
        client_id: who this is.
        home: where it keeps identity, ledger, guard and stored updates.
        data: file or folder with its own rows; None for its part of a public source.
        run: the run's id, as agreed.
        roster: everybody's keys, as they reached this party outside the server.
        lifetime_epsilon: its own limit, if it has one.
        model: where the model is on this machine, if not at `model.source`.
        evaluation: file of public held-out rows; a node measures on them only what stays at home (FedSA-LoRA).
        rehearse: whether to rehearse private steps with this model on this machine first; once is enough.
        fingerprint: of the agreement; if given, the home keeps what `open_standby` needs.
        say: told what happens.

    Raises:
        DataError: its rows are missing or malformed.
        BudgetError: its ledger has no room for a run that has not begun.
        RunFolderError: its key is not the pinned one, or another process uses its home.
        FedloraError: anything else that would keep it from training privately; nothing has been spent.
    """
    seat_home = ClientHome(home)
    require_identity(seat_home, client_id, roster)
    _require_rows(data)
    from fedlora_priv.federation.holdings import one_clients
    from fedlora_priv.federation.seats import Seat, StateChecks, make_client
    from fedlora_priv.federation.setup import build

    parts = build(experiment, one_clients(experiment, client_id, data, evaluation, say), say, model)
    if rehearse:
        for line in parts.rehearse().lines():
            say(line)
    limit = min(experiment.privacy.ledger_limit, lifetime_epsilon or math.inf)
    seat = Seat(client_id, run, seat_home, seat_home.ledger_path, limit)
    client = make_client(parts, seat, roster, StateChecks(parts), begun=False)
    if fingerprint is not None:
        _standby(parts, client_id, fingerprint).save(seat_home)
    return client


def _standby(parts: Parts, client_id: str, fingerprint: str) -> Standby:
    """Return what a client's home keeps for `open_standby`."""
    own, plan = parts.trainers[client_id].layout, parts.plans[client_id]
    return Standby(fingerprint, parts.layout, own, parts.initial, plan, parts.dataset_id, parts.partition_id)


def _require_rows(data: Path | None) -> None:
    """Raise DataError where the place that a party names for its own rows is empty."""
    if data is not None and not data.exists():
        raise DataError(
            f"there is no {data}", "it should hold this party's own rows: mount it or mend the path"
        )


def open_node_file(file: Path, *, rehearse: bool = False, say: Say = lambda line: None) -> FederationClient:
    """Return the client that a node.toml describes.

    Raises:
        FedloraError: as `open_node`; or file and agreement do not fit together.
    """
    settings = NodeSettings.load(file)
    agreement = settings.agreed()
    require_data(settings, agreement)
    return open_node(
        agreement.experiment,
        settings.client_id,
        home=settings.home,
        data=settings.data,
        run=agreement.run,
        roster=agreement.roster,
        lifetime_epsilon=settings.limit(agreement.experiment),
        model=settings.model,
        evaluation=settings.evaluation,
        rehearse=rehearse,
        fingerprint=agreement.fingerprint,
        say=say,
    )


def open_standby_file(file: Path) -> FederationClient | None:
    """Return the client of a node.toml without its model, for messages that neither train nor measure.

    None where the home keeps nothing for it: no full client was opened under this agreement yet.

    Raises:
        FedloraError: the file, the agreement or the home cannot be used.
    """
    settings = NodeSettings.load(file)
    agreement = settings.agreed()
    home = ClientHome(settings.home)
    require_identity(home, settings.client_id, agreement.roster)
    standby = Standby.load(home, agreement.fingerprint)
    if standby is None:
        return None
    experiment = agreement.experiment
    limit = settings.limit(experiment)
    return standby.client(
        experiment, home, run=agreement.run, roster=agreement.roster, lifetime_epsilon=limit
    )


@dataclass(frozen=True)
class ServerSide:
    """What a server runs with: parts without a row of any client, its run folder, and the agreed roster."""

    parts: Parts
    folder: RunFolder
    roster: Roster


def open_server(file: Path, *, say: Say = lambda line: None) -> ServerSide:
    """Return what the server of a server.toml runs with; whoever has it closes the folder.

    Raises:
        FedloraError: the run folder is in use or another run's, or the model cannot be had.
    """
    from fedlora_priv.federation.holdings import nobodys
    from fedlora_priv.federation.setup import build

    settings = ServerSettings.load(file)
    agreement = settings.agreed()
    experiment = _into(agreement.experiment, str(settings.output))
    folder = RunFolder.open(experiment, run=agreement.run)
    try:
        evaluation = settings.evaluation
        holdings = nobodys(experiment, own_data=agreement.own_data, evaluation=evaluation, say=say)
        parts = build(experiment, holdings, say, settings.model)
        return ServerSide(parts, folder, agreement.roster)
    except BaseException:
        folder.close()
        raise


def require_listed(client_id: str, roster: Roster) -> None:
    """Raise unless the roster has such a client.

    Raises:
        RunFolderError: it has none of that name.
    """
    if client_id not in roster:
        raise RunFolderError(f"the roster has no {client_id}", f"its clients are {', '.join(roster)}")


def require_identity(home: ClientHome, client_id: str, roster: Roster) -> None:
    """Raise unless the home holds the key that everybody has pinned for this client.

    Raises:
        RunFolderError: it holds none or another, or nobody has pinned one.
    """
    require_listed(client_id, roster)
    if not home.identity_path.exists():
        raise RunFolderError(
            f"{home.path} holds no identity key",
            f"put the home there that 'fedlora keys new' made for {client_id}; a new key needs a new agreement",
        )
    own, pinned = home.identity().public_bytes, roster[client_id]
    if own != pinned:
        whose = next(
            (f"{other}'s" for other in roster if roster[other] == own), f"{grouped(own.hex()[:16])}…"
        )
        raise RunFolderError(
            f"the key in {home.path} is {whose}, and the roster pins {grouped(pinned.hex()[:16])}… for {client_id}",
            "use the home that the roster was made from, or have all parties agree on a new roster",
        )


def _into(experiment: Experiment, output: str) -> Experiment:
    """Return an experiment whose run folder is this machine's; its digest stays what it is."""
    section = experiment.experiment.model_copy(update={"output": output})
    return experiment.model_copy(update={"experiment": section})
