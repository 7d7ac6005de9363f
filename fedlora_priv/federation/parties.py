"""What each party of a federation across machines says of its own machine: node.toml and server.toml.

    node.toml     who I am, where my rows, my model and my home are, what I allow my ledger to amount to, whom I call
    server.toml   where the run folder, the model and the public held-out rows are, where I answer, whom I admit

Nothing in them enters the result or the digest of the experiment; that is in the agreement of all parties. Paths are
relative to the file that names them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Self, TypeVar

from pydantic import Field

from fedlora_priv import config_file
from fedlora_priv.config import Experiment
from fedlora_priv.config_base import Section
from fedlora_priv.errors import ConfigError
from fedlora_priv.federation.agreement import Agreement

FilePath = Annotated[Path, Field(strict=False)]
MAX_PORT = 65_535
Port = Annotated[int, Field(ge=1, le=MAX_PORT)]
SectionT = TypeVar("SectionT", bound=Section)

SUPERLINK_PORT = 8000
SUPERNODE_PORT = 9094


class NodeLink(Section):
    """How a node reaches the server by Flower: [flower] of node.toml."""

    host: str = Field(min_length=1, description="Name or address of the server, as in its certificate.")
    port: Port = Field(default=SUPERLINK_PORT, description="Port of the SuperLink.")
    ca: FilePath = Field(description="PEM file of the authority that the server's certificate is from.")
    key: FilePath = Field(
        default=Path("home/flower.key"), description="This node's own key for Flower (OpenSSH, P-384)."
    )
    local_port: Port = Field(
        default=SUPERNODE_PORT, description="Port on 127.0.0.1 by which the SuperNode and its app talk."
    )


class ServerLink(Section):
    """Where the server answers by Flower, and whom it admits: [flower] of server.toml."""

    host: str = Field(min_length=1, description="Name or address that nodes call, as in the certificate.")
    bind: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: Port = Field(
        default=SUPERLINK_PORT, description="Port of the SuperLink; the only one that is open."
    )
    ca: FilePath = Field(description="PEM file of the authority.")
    certificate: FilePath = Field(description="PEM file of the server's certificate.")
    key: FilePath = Field(description="PEM file of the server's private key.")
    nodes: FilePath = Field(description="Folder with each node's public key for Flower, <client_id>.pub.")


class Party(Section):
    """What the files of nodes and servers have in common."""

    called: ClassVar[str] = "file"

    agreement: FilePath = Field(description="Folder of the agreement of all parties.")
    model: FilePath | None = Field(
        default=None, description="Folder of the model on this machine. Default: model.source."
    )
    evaluation: FilePath | None = Field(
        default=None, description="File of public held-out rows, if the experiment declares them public."
    )

    @classmethod
    def load(cls, file: Path) -> Self:
        """Return a party's settings, their paths absolute.

        Raises:
            ConfigError: the file cannot be read, or says something that it cannot say.
        """
        read = config_file.build(cls, config_file.read(file, cls.called), (), origin=file.name)
        return _resolved(read, file.resolve().parent)

    def agreed(self) -> Agreement:
        """Return the agreement, if this machine runs the agreed versions.

        Raises:
            FedloraError: as `Agreement.load` and `Agreement.require_versions`.
        """
        from fedlora_priv.federation.provenance import versions  # reads every source file once

        agreement = Agreement.load(self.agreement)
        agreement.require_versions(versions())
        return agreement


class NodeSettings(Party):
    """A node's own file, node.toml; nobody else needs to see it."""

    called: ClassVar[str] = "node's file (node.toml)"

    client_id: str = Field(min_length=1, description="Who this is, as in the roster.")
    home: FilePath = Field(
        default=Path("home"), description="Folder of keys, ledger, guard and stored updates; back it up."
    )
    data: FilePath | None = Field(
        default=None,
        description="File, or folder with train.*, of this party's own rows. Left out only where the agreement is "
        "about parts of a public source.",
    )
    lifetime_epsilon: float | None = Field(
        default=None,
        gt=0,
        description="This party's own limit on what its ledger may amount to over all runs; the agreed one holds too.",
    )
    flower: NodeLink | None = Field(default=None, description="How it reaches the server by Flower.")

    def limit(self, experiment: Experiment) -> float:
        """Return the ε that this party's ledger may reach: the agreed one, or its own if that is lower."""
        agreed = experiment.privacy.ledger_limit
        return agreed if self.lifetime_epsilon is None else min(agreed, self.lifetime_epsilon)


class ServerSettings(Party):
    """The server's own file, server.toml."""

    called: ClassVar[str] = "server's file (server.toml)"

    output: FilePath = Field(default=Path("run"), description="The run folder.")
    flower: ServerLink | None = Field(default=None, description="Where it answers by Flower.")


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


def _resolved(section: SectionT, folder: Path) -> SectionT:
    """Return a section whose paths, and those of sections in it, are absolute."""
    changed: dict[str, Path | Section] = {}
    for name, value in section:
        if isinstance(value, Path):
            changed[name] = (folder / value.expanduser()).resolve()
        elif isinstance(value, Section):
            changed[name] = _resolved(value, folder)
    return section.model_copy(update=changed)
