"""The run folder: begun, resumed or refused; never two processes in it, never another experiment's.

run.toml        the experiment, every value resolved
run.json        the run's random id and the experiment's digest
roster.json     the clients' public identity keys
metrics.jsonl   one line a round
checkpoints/    the server's public state after the last rounds
ledger.jsonl, report.json, report.html, adapter/        once the run has finished
partition.json  public data only: which rows each client held, once the run has finished
clients/, ledger.sqlite                                 public data only: the simulated clients' own disks
"""

from __future__ import annotations

import fcntl
import json
import secrets
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from fedlora_priv.config import Experiment
from fedlora_priv.errors import RunFolderError
from fedlora_priv.federation.files import write_atomically
from fedlora_priv.federation.home import ClientHome, private_root

RUN_BYTES = 16
LEDGER_FILES = {"ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"}
PREPARATIONS = {".lock", "run.toml", "run.json", "run.json.writing", "roster.json", "clients", *LEDGER_FILES}
"""What a run that has not begun may have left behind; nothing in it has been spent."""


@dataclass(frozen=True)
class RunFolder:
    """The run folder of one experiment, held under a lock until `close` or the end of the process."""

    path: Path
    run: bytes
    public: bool
    _lock: TextIO
    _aside: Path | None = None

    @classmethod
    def open(cls, experiment: Experiment, again: bool = False, run: bytes | None = None) -> RunFolder:
        """Return the experiment's run folder, new or unfinished.

        Args:
            experiment: what is to be run; its `output` names the folder.
            again: set a finished run aside first (renamed, kept) and begin anew.
            run: the id that all parties have agreed on; None to draw one.

        Raises:
            RunFolderError: it cannot be written, is in use, has finished, or belongs to something else.
        """
        path = Path(experiment.experiment.output).expanduser()
        aside = None
        if again and finished(path):
            aside = path.rename(_free_name(path))
        folder = replace(cls._locked(path, experiment, run), _aside=aside)
        if finished(path):
            folder.close()
            raise RunFolderError(
                f"the run in {path} has finished",
                f"see it with 'fedlora report {path}', or run it once more with --again",
            )
        write_atomically(path / "run.toml", experiment.to_toml().encode())
        return folder

    @classmethod
    def _locked(cls, path: Path, experiment: Experiment, run: bytes | None) -> RunFolder:
        """Make or find the folder, lock it, and check whose it is."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_strangers(path)
            lock = (path / ".lock").open("w")
        except OSError as error:
            raise RunFolderError(
                f"cannot write the run folder {path} ({error.strerror})", "choose another experiment.output"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(path, _run_id(path, experiment, run), experiment.data.public, lock)
        except BlockingIOError as error:
            lock.close()
            raise RunFolderError(f"another process is running in {path}", "wait for it or stop it") from error
        except BaseException:
            lock.close()
            raise

    @property
    def fresh(self) -> bool:
        """Whether no round of this run has begun."""
        return not begun(self.path)

    def discard(self) -> None:
        """Take back the preparations of a run that never began, and put back what was set aside for it."""
        _clear(self.path)
        (self.path / ".lock").unlink(missing_ok=True)
        self.path.rmdir()
        if self._aside is not None:
            self._aside.rename(self.path)

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()

    def client_home(self, client_id: str) -> ClientHome:
        """Return where that client keeps its own things: here only if the data is declared public."""
        return client_home(self.path, client_id, public=self.public)

    def ledger_path(self, client_id: str) -> Path:
        """Return the ledger of that client's data; the simulated clients of public data share one file."""
        return ledger_path(self.path, client_id, public=self.public)


def client_home(run_folder: Path, client_id: str, *, public: bool) -> ClientHome:
    """Return where a client keeps its own things, whether or not they exist: in the run folder only if public."""
    return ClientHome((run_folder if public else private_root()) / "clients" / client_id)


def ledger_path(run_folder: Path, client_id: str, *, public: bool) -> Path:
    """Return where the ledger of a client's data is, whether or not it exists."""
    if public:
        return run_folder / "ledger.sqlite"
    return client_home(run_folder, client_id, public=False).ledger_path


def finished(path: Path) -> bool:
    """Return whether the folder's report has been written, which is the last thing that a run does."""
    return (path / "run.json").exists() and (path / "report.json").exists()


def _refuse_strangers(path: Path) -> None:
    """Raise RunFolderError if the folder holds files that no run has put there."""
    if not (path / "run.json").exists() and {file.name for file in path.iterdir()} - PREPARATIONS:
        raise RunFolderError(f"{path} holds files but is no run folder", "choose another experiment.output")


def begun(path: Path) -> bool:
    """Return whether a run in this folder has got past its preparations."""
    return (path / "checkpoints").exists()


def _run_id(path: Path, experiment: Experiment, agreed: bytes | None) -> bytes:
    """Return the id of the run in this folder: where none has begun the agreed one, or one drawn anew."""
    digest = experiment.digest()
    marker = path / "run.json"
    if not marker.exists():
        run = agreed or secrets.token_bytes(RUN_BYTES)
        write_atomically(marker, json.dumps({"run": run.hex(), "experiment_sha256": digest}).encode())
        return run
    try:
        stored = json.loads(marker.read_text())
        run, known = bytes.fromhex(stored["run"]), stored["experiment_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{marker} is damaged", "choose another experiment.output") from error
    same = known == digest and agreed in (None, run)
    if not same and not begun(path):
        _clear(path)
        return _run_id(path, experiment, agreed)
    if known != digest:
        raise RunFolderError(
            f"{path} belongs to another experiment{_differences(path, experiment)}",
            "choose another experiment.output, or restore the values it was begun with",
        )
    if not same:
        raise RunFolderError(
            f"{path} belongs to another run of this experiment", "choose another folder for this run"
        )
    return run


def _differences(path: Path, experiment: Experiment) -> str:
    """Return which values differ from those of the folder's run.toml, as far as that can be read."""
    try:
        known = _flat(tomllib.loads((path / "run.toml").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return ""
    asked = _flat(tomllib.loads(experiment.to_toml()))
    keys = sorted(key for key in known.keys() | asked.keys() if known.get(key) != asked.get(key))
    return "".join(f"; {key} was {known.get(key)!r}, is {asked.get(key)!r}" for key in keys)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a TOML table with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _clear(path: Path) -> None:
    """Remove the preparations of a run that never began, so that another experiment may use the folder."""
    for name in PREPARATIONS - {".lock"}:
        found = path / name
        if found.is_dir():
            shutil.rmtree(found)
        else:
            found.unlink(missing_ok=True)


def _free_name(path: Path) -> Path:
    """Return the first of path.1, path.2, ... that does not exist."""
    number = 1
    while (candidate := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate
