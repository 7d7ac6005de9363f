"""What a client keeps on its own disk: identity, guard, ledger, and the update it has finished.

For private data the home lies outside run folders (``$FEDLORA_HOME/clients/<client_id>``), so deleting a run
folder gives no budget back. Data declared public keeps its home in the run folder: it is a simulation, and
its report says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.errors import DataError, RunFolderError
from fedlora_priv.federation.files import read_arrays, write_arrays, write_atomically
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

    @property
    def identity_path(self) -> Path:
        """Where the client keeps its long-term signing key, readable by its owner alone."""
        return self.path / "identity.key"

    def private_audit_path(self, run: str) -> Path:
        """Where the client notes, for its own auditor alone, what its steps in a run really did."""
        return self.path / f"private-audit-{run}.jsonl"

    def lock(self) -> TextIO:
        """Return the open lock of this home: two processes could each see room in the budget for one round.

        Raises:
            RunFolderError: another process holds it.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise RunFolderError(f"another process uses {self.path}", "wait for it or stop it") from error
        return lock

    def require_same_rows(self, dataset_id: str, rows: bytes, ledger: Path) -> None:
        """Raise unless this client holds the rows that its ledger of the dataset was opened for.

        A row that moves from one client to another has spent the budgets of both, which no ledger shows. The
        rows' digest is kept under the identity key, so the file tells nobody anything.

        Args:
            dataset_id: the dataset's public name.
            rows: a digest of this client's rows. Private.
            ledger: the ledger's file.

        Raises:
            DataError: other rows.
            RunFolderError: the rows are known, but the ledger is gone.
        """
        name = hashlib.sha256(dataset_id.encode()).hexdigest()[:16]
        record = self.path / f"rows-{name}.hmac"
        tag = hmac.digest(self.identity().to_private_bytes(), rows, "sha256")
        if not record.exists():
            write_atomically(record, tag, mode=0o600)
        elif not hmac.compare_digest(record.read_bytes(), tag):
            raise DataError(
                f"{self.path.name} holds other rows of {dataset_id!r} than when its ledger was opened, and a row "
                "that moves between clients has spent both budgets",
                "restore the data as it was; other data need another data.dataset_id",
            )
        elif not ledger.exists():
            raise RunFolderError(
                f"the ledger {ledger} is gone", "restore it: without it the budget is unknown"
            )

    def identity(self) -> Identity:
        """Return the client's long-term identity, made on first use and readable by its owner alone."""
        key = self.identity_path
        if not key.exists():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        except ProtocolError as error:
            raise RunFolderError(str(error), "without it this client cannot tell what it has sent") from error


@dataclass(frozen=True)
class FinishedUpdate:
    """A finished local training: its reservation in the ledger and the noised state it ended with.

    `clip_norm` is what its next step would clip to: a constant, or computed from noised counts. `private_audit` is
    the digest of what the client's private audit file says of it.
    """

    reservation: int
    clip_norm: float
    state: Mapping[str, NDArray[np.float32]]
    private_audit: str | None


class UpdateStore:
    """The last finished update of one run, kept so that a retry re-masks it instead of training again.

    What is stored is noised, so by itself private at the client's own ε. One file: a new round replaces it.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._path = folder / f"update-{run}.npz"

    def load(self, start_digest: bytes) -> FinishedUpdate | None:
        """Return the update that was trained from exactly this start, if there is one."""
        found = self._read()
        return found[1] if found is not None and found[0] == start_digest.hex() else None

    def last(self) -> FinishedUpdate | None:
        """Return the last update, whatever start it was trained from."""
        found = self._read()
        return None if found is None else found[1]

    def _read(self) -> tuple[str, FinishedUpdate] | None:
        """Return the stored start's digest, hex, and update."""
        if not self._path.exists():
            return None
        try:
            header, state = read_arrays(self._path)
            clip_norm = float(header["clip_norm"])
            if not (math.isfinite(clip_norm) and clip_norm > 0):
                raise ValueError("no clip norm")
            update = FinishedUpdate(header["reservation"], clip_norm, state, header.get("private_audit"))
            return header["start"], update
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{self._path} is damaged ({type(error).__name__})",
                "delete that file; the round is then trained again and charged again",
            ) from error

    def save(self, start_digest: bytes, update: FinishedUpdate) -> None:
        """Store an update durably, in place of the one before."""
        header = {
            "start": start_digest.hex(),
            "reservation": update.reservation,
            "clip_norm": update.clip_norm,
            "private_audit": update.private_audit,
        }
        write_arrays(self._path, header, update.state, mode=0o600)
