"""What a client keeps on its own disk: identity, guard, ledger, and the update it has finished.

For private data the home lies outside run folders (``$FEDLORA_HOME/clients/<client_id>``), so deleting a run
folder gives no budget back. Data declared public keeps its home in the run folder: it is a simulation, and
its report says so.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.errors import RunFolderError
from fedlora_priv.federation.files import write_atomically
from protocols.errors import ProtocolError
from protocols.secagg.guard import SqliteGuard
from protocols.secagg.identity import Identity

HOME_VARIABLE = "FEDLORA_HOME"


def private_root() -> Path:
    """Return the folder of clients' homes for private data: ``$FEDLORA_HOME`` or ``~/.fedlora``."""
    return Path(os.environ.get(HOME_VARIABLE) or "~/.fedlora").expanduser()


@dataclass(frozen=True)
class ClientHome:
    """The paths of one client's durable things."""

    path: Path

    @property
    def ledger_path(self) -> Path:
        """Where a client with private data keeps its ledger."""
        return self.path / "ledger.sqlite"

    def identity(self) -> Identity:
        """Return the client's long-term identity, made on first use and readable by its owner alone."""
        key = self.path / "identity.key"
        if not key.exists():
            write_atomically(key, Identity.generate().to_private_bytes(), mode=0o600)
        try:
            return Identity.from_private_bytes(key.read_bytes())
        except ProtocolError as error:
            raise RunFolderError(
                f"{key} is damaged", "restore it from a backup: others have pinned it"
            ) from error

    def guard(self, scope: str) -> SqliteGuard:
        """Return the client's once-only record of secure-aggregation outputs; `scope` names the run."""
        try:
            return SqliteGuard(self.path / "guard.sqlite", scope=scope)
        except sqlite3.Error as error:
            raise RunFolderError(
                f"{self.path / 'guard.sqlite'} is damaged ({error})",
                "restore it; without it this client cannot tell what it has sent",
            ) from error


@dataclass(frozen=True)
class FinishedUpdate:
    """A finished local training: its reservation in the ledger and the noised state it ended with."""

    reservation: int
    state: Mapping[str, NDArray[np.float32]]


class UpdateStore:
    """The last finished update of one run, kept so that a retry re-masks it instead of training again.

    What is stored is noised, so by itself private at the client's own ε. One file: a new round replaces it.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._path = folder / f"update-{run}.npz"

    def load(self, start_digest: bytes) -> FinishedUpdate | None:
        """Return the update that was trained from exactly this start, if there is one."""
        if not self._path.exists():
            return None
        try:
            with np.load(io.BytesIO(self._path.read_bytes()), allow_pickle=False) as stored:
                header = json.loads(bytes(stored["header"]).decode())
                if header["start"] != start_digest.hex():
                    return None
                names = [name for name in stored.files if name != "header"]
                return FinishedUpdate(header["reservation"], {name: stored[name] for name in names})
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise RunFolderError(
                f"{self._path} is damaged ({type(error).__name__})",
                "delete that file; the round is then trained again and charged again",
            ) from error

    def save(self, start_digest: bytes, update: FinishedUpdate) -> None:
        """Store an update durably, in place of the one before."""
        header = json.dumps({"start": start_digest.hex(), "reservation": update.reservation}).encode()
        buffer = io.BytesIO()
        np.savez(buffer, header=np.frombuffer(header, np.uint8), **update.state)  # type: ignore[arg-type]
        write_atomically(self._path, buffer.getvalue(), mode=0o600)
