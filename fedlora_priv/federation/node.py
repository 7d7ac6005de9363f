"""A federation across machines, party by party: a node that holds only its own rows, and a server that holds none.

Both read one small TOML file of their own beside the agreement of all parties (`fedlora_priv.federation.agreement`):

    node.toml     who I am, where my rows, my model and my home are, and what I allow my ledger to amount to
    server.toml   where the run folder, the model and the public held-out rows are

Paths are relative to the file that names them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from pydantic import Field

from fedlora_priv import config_file
from fedlora_priv.config import Experiment
from fedlora_priv.config_base import Section
from fedlora_priv.errors import ConfigError, DataError, RunFolderError
from fedlora_priv.federation.agreement import Agreement, grouped
from fedlora_priv.federation.home import ClientHome
from fedlora_priv.federation.runfolder import RunFolder
from protocols.secagg.identity import Roster

if TYPE_CHECKING:
    from fedlora_priv.federation.client import FederationClient
    from fedlora_priv.federation.setup import Parts

Say = Callable[[str], None]
PartyT = TypeVar("PartyT", bound="_Party")


class _Party(Section):
    """What the files of nodes and servers have in common."""

    agreement: str = Field(min_length=1, description="Folder of the agreement of all parties.")
    model: str | None = Field(
        default=None, min_length=1, description="Folder of the model on this machine. Default: model.source."
    )
    evaluation: str | None = Field(
        default=None,
        min_length=1,
        description="File of public held-out rows, if the experiment declares them public.",
    )

    @classmethod
    def load(cls, file: Path) -> Self:
        """Return a party's settings, their paths absolute.

        Raises:
            ConfigError: the file cannot be read, or says something that it cannot say.
        """
        read = config_file.build(cls, config_file.read(file), (), origin=file.name)
        paths = {
            name: str((file.parent / Path(getattr(read, name)).expanduser()).resolve())
            for name in cls._paths()
            if getattr(read, name) is not None
        }
        return read.model_copy(update=paths)

    @classmethod
    def _paths(cls) -> tuple[str, ...]:
        """The names of settings that are paths."""
        return ("agreement", "model", "evaluation")

    def agreed(self) -> Agreement:
        """Return the agreement, if this machine runs the agreed versions.

        Raises:
            FedloraError: as `Agreement.load` and `Agreement.require_versions`.
        """
        from fedlora_priv.federation.provenance import versions  # reads every source file once

        agreement = Agreement.load(Path(self.agreement))
        agreement.require_versions(versions())
        return agreement


class NodeSettings(_Party):
    """A node's own file, node.toml; nobody else needs to see it."""

    client_id: str = Field(min_length=1, description="Who this is, as in the roster.")
    home: str = Field(
        default="home", min_length=1, description="Folder of identity, ledger, guard and stored updates."
    )
    data: str | None = Field(
        default=None,
        min_length=1,
        description="File, or folder with train.*, of this party's own rows. Left out only where the agreement is "
        "about parts of a public source.",
    )
    lifetime_epsilon: float | None = Field(
        default=None,
        gt=0,
        description="This party's own limit on what its ledger may amount to over all runs; the agreed one holds too.",
    )

    @classmethod
    def _paths(cls) -> tuple[str, ...]:
        return (*super()._paths(), "home", "data")


class ServerSettings(_Party):
    """The server's own file, server.toml."""

    output: str = Field(default="run", min_length=1, description="The run folder.")

    @classmethod
    def _paths(cls) -> tuple[str, ...]:
        return (*super()._paths(), "output")


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
        say: told what happens.

    Raises:
        DataError: its rows are missing or malformed.
        BudgetError: its ledger has no room for a run that has not begun.
        RunFolderError: its key is not the pinned one, or another process uses its home.
        FedloraError: anything else that would keep it from training privately; nothing has been spent.
    """
    seat_home = ClientHome(home)
    require_identity(seat_home, client_id, roster)
    if data is not None and not data.exists():
        raise DataError(
            f"there is no {data}", "it should hold this party's own rows: mount it or mend the path"
        )
    from fedlora_priv.federation.holdings import one_clients
    from fedlora_priv.federation.setup import Seat, build, make_client
    from fedlora_priv.federation.state_check import StateCheck

    parts = build(experiment, one_clients(experiment, client_id, data, evaluation, say), say, model)
    if rehearse:
        for line in parts.rehearse().lines():
            say(line)
    agreed_limit = experiment.privacy.ledger_limit
    limit = agreed_limit if lifetime_epsilon is None else min(agreed_limit, lifetime_epsilon)
    seat = Seat(client_id, run, seat_home, seat_home.ledger_path, limit)
    trainer = parts.trainers[client_id]
    accept = StateCheck(trainer.model, device=trainer.device)
    return make_client(parts, seat, roster, accept, begun=False)


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
        home=Path(settings.home),
        data=_path(settings.data),
        run=agreement.run,
        roster=agreement.roster,
        lifetime_epsilon=settings.lifetime_epsilon,
        model=_path(settings.model),
        evaluation=_path(settings.evaluation),
        rehearse=rehearse,
        say=say,
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
    experiment = _into(agreement.experiment, settings.output)
    folder = RunFolder.open(experiment, run=agreement.run)
    try:
        evaluation = _path(settings.evaluation)
        holdings = nobodys(experiment, own_data=agreement.own_data, evaluation=evaluation, say=say)
        parts = build(experiment, holdings, say, _path(settings.model))
        return ServerSide(parts, folder, agreement.roster)
    except BaseException:
        folder.close()
        raise


def require_identity(home: ClientHome, client_id: str, roster: Roster) -> None:
    """Raise unless the home holds the key that everybody has pinned for this client.

    Raises:
        RunFolderError: it holds none or another, or nobody has pinned one.
    """
    if client_id not in roster:
        raise RunFolderError(f"the roster has no {client_id}", f"its clients are {', '.join(roster)}")
    if not home.identity_path.exists():
        raise RunFolderError(
            f"{home.path} holds no identity key",
            f"restore it, or make one with 'fedlora keys new {home.path}'",
        )
    own, pinned = home.identity().public_bytes, roster[client_id]
    if own != pinned:
        raise RunFolderError(
            f"the key in {home.path} is {grouped(own.hex()[:16])}…, and the roster pins {grouped(pinned.hex()[:16])}… "
            f"for {client_id}",
            "use the home that the roster was made from, or have all parties agree on a new roster",
        )


def require_data(settings: NodeSettings, agreement: Agreement) -> None:
    """Raise unless the node brings rows where the agreement says so.

    Raises:
        ConfigError: it brings none, or some that nobody has agreed on.
    """
    if agreement.own_data and settings.data is None:
        raise ConfigError(
            "node.toml names no data, and each party brings its own rows",
            "set data to the file or folder with them",
        )
    if not agreement.own_data and settings.data is not None:
        raise ConfigError(
            "node.toml names data, and the agreement is about parts of a public source",
            "remove data, or have all parties agree on rows of their own",
        )


def _into(experiment: Experiment, output: str) -> Experiment:
    """Return an experiment whose run folder is this machine's; its digest stays what it is."""
    section = experiment.experiment.model_copy(update={"output": output})
    return experiment.model_copy(update={"experiment": section})


def _path(text: str | None) -> Path | None:
    """Return a path that may be left out."""
    return None if text is None else Path(text)
