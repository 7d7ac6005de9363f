"""What all parties of a federation across machines have agreed on: experiment, roster, run, versions.

Each party keeps its own copy, which reached it outside the server, and compares its fingerprint with the others' (by
telephone: it is short). The server has one too, and its word for any of it is never taken: the experiment decides
noise, rounds and budget, the roster who is who, and the run's id is in every mask and every charge, so a server that
began the run again under another id would find no client that sums with another, and no round that a ledger has not
charged to the run it knows.

experiment.toml   every value resolved
roster.json       the clients' public keys
agreement.json    the run's id, whose rows are trained on, the versions that all run, and digests of the two above
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora_priv.config import Experiment
from fedlora_priv.errors import EnvironmentProblem, RunFolderError
from fedlora_priv.federation.files import write_atomically
from fedlora_priv.federation.runfolder import RUN_BYTES
from protocols.errors import ProtocolError
from protocols.secagg.identity import Roster

FORMAT = 1
FINGERPRINT_HEX = 32
EXPERIMENT_FILE, ROSTER_FILE, AGREEMENT_FILE = "experiment.toml", "roster.json", "agreement.json"


@dataclass(frozen=True)
class Agreement:
    """What all parties of one run have agreed on; public.

    Args:
        experiment: the experiment; where its files go and on which device it runs is each party's own affair.
        roster: everybody's pinned key.
        run: the run's id, 16 bytes.
        own_data: whether each party brings its own rows; else they hold parts of a public source.
        versions: of the package, its code and what it computes with, which an audit compares with every ledger's.

    Raises:
        RunFolderError: the roster is not of the experiment's clients.
    """

    experiment: Experiment
    roster: Roster
    run: bytes
    own_data: bool
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        expected, pinned = set(self.experiment.client_ids), set(self.roster)
        if expected != pinned:
            wrong = sorted(expected ^ pinned)[0]
            raise RunFolderError(
                f"the roster does not match the experiment: {wrong} is {'missing' if wrong in expected else 'extra'}",
                f"the clients are client-1 to client-{self.experiment.federation.clients}",
            )

    @property
    def fingerprint(self) -> str:
        """32 hex digits in groups of four, over all of it: what parties read to each other."""
        digest = hashlib.sha256(b"fedlora-priv agreement v1\0" + _canonical(self._fields()).encode())
        return grouped(digest.hexdigest()[:FINGERPRINT_HEX])

    def save(self, folder: Path) -> None:
        """Write the three files.

        Raises:
            RunFolderError: they cannot be written.
        """
        write_atomically(folder / EXPERIMENT_FILE, self.experiment.to_toml().encode())
        keys = {client_id: key.hex() for client_id, key in self.roster.items()}
        write_atomically(folder / ROSTER_FILE, (json.dumps(keys, indent=2) + "\n").encode())
        text = json.dumps({"format": FORMAT, **self._fields()}, indent=2, sort_keys=True) + "\n"
        write_atomically(folder / AGREEMENT_FILE, text.encode())

    @staticmethod
    def load(folder: Path) -> Agreement:
        """Return the agreement that `save` wrote.

        Raises:
            RunFolderError: a file is missing, damaged, or not the one that was agreed on.
            ConfigError: the experiment cannot be read.
        """
        experiment = Experiment.load(folder / EXPERIMENT_FILE)
        try:
            stored = json.loads((folder / AGREEMENT_FILE).read_text(encoding="utf-8"))
            roster = Roster.load(folder / ROSTER_FILE)
            run, versions = bytes.fromhex(stored["run"]), dict(stored["versions"])
            if stored["format"] != FORMAT or len(run) != RUN_BYTES or type(stored["own_data"]) is not bool:
                raise ValueError("a field has another form")
        except OSError as error:
            raise RunFolderError(
                f"{error.filename} cannot be read ({error.strerror})", "restore it from the agreement of all"
            ) from error
        except (ValueError, KeyError, TypeError, ProtocolError) as error:
            raise RunFolderError(f"the agreement in {folder} is damaged ({error})", "restore it") from error
        agreement = Agreement(experiment, roster, run, stored["own_data"], versions)
        _require_same(agreement._fields(), stored, folder)
        return agreement

    def require_versions(self, found: Mapping[str, str]) -> None:
        """Raise unless this machine runs what everybody does: an audit fails otherwise, when ε has been spent.

        Raises:
            EnvironmentProblem: names the first difference.
        """
        for name in sorted(self.versions, key=lambda name: name == "code_sha256"):  # the plainer reason first
            if self.versions[name] != found.get(name):
                raise EnvironmentProblem(
                    f"this machine has {name} {found.get(name, 'not at all')[:16]}, and the federation agreed on "
                    f"{self.versions[name][:16]}",
                    "install the agreed version: a ledger row written by another one fails the audit",
                )

    def _fields(self) -> dict[str, Any]:
        """Return what the fingerprint is over."""
        keys = {client_id: key.hex() for client_id, key in self.roster.items()}
        return {
            "experiment_sha256": self.experiment.digest(),
            "roster_sha256": hashlib.sha256(_canonical(keys).encode()).hexdigest(),
            "run": self.run.hex(),
            "own_data": self.own_data,
            "versions": dict(self.versions),
        }


def grouped(digits: str) -> str:
    """Return digits in groups of four, as people compare them.

    >>> grouped("00112233aabb")
    '0011 2233 aabb'
    """
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def _require_same(fields: Mapping[str, Any], stored: Mapping[str, Any], folder: Path) -> None:
    """Raise unless experiment and roster are those that agreement.json was made for."""
    for name, file in (("experiment_sha256", EXPERIMENT_FILE), ("roster_sha256", ROSTER_FILE)):
        if fields[name] != stored.get(name):
            raise RunFolderError(
                f"{folder / file} is not the one that was agreed on",
                "restore it; whoever wants another one needs a new agreement of all parties",
            )


def _canonical(value: Any) -> str:
    """Return JSON with one form only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
