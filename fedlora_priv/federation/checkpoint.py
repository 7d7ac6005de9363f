"""What the server keeps after each round: its public state and the history of the run.

One file a round, written atomically; the last two are kept. Nothing in it is secret: it is a function of the
experiment file and of sums that were already released.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedlora_priv.allocation.findings import Findings
from fedlora_priv.errors import FederationError, RunFolderError
from fedlora_priv.federation.files import read_arrays, write_arrays
from fedlora_priv.federation.round_record import ExchangeRecord, RoundRecord
from fedlora_priv.federation.server import ServerState

VERSION = 6
KEPT = 2
_STORED = ("state", "spreads", "scores", "moments")
"""Named arrays of a `ServerState`; an array's name in the file begins with which of them it belongs to."""
_VOTED = "voted"


@dataclass
class History:
    """What has happened so far in a run.

    Args:
        metrics: one row a round, as in metrics.jsonl.
        records: one record a round.
        anchors: for each client the last signed ledger anchor that it attached to a confirmation (hex).
        quality_before: accuracy or perplexity of the initial state, if it may be reported.
    """

    metrics: list[dict[str, Any]] = field(default_factory=list)
    records: list[RoundRecord] = field(default_factory=list)
    anchors: dict[str, str] = field(default_factory=dict)
    quality_before: float | None = None


def save(folder: Path, server: ServerState, history: History) -> None:
    """Write the checkpoint of the round that `server` has just finished, then drop old ones.

    Raises:
        RunFolderError: it cannot be written; the checkpoint before it is untouched.
    """
    header = {
        "version": VERSION,
        "round": server.round,
        "findings": asdict(server.findings),
        "history": asdict(history),
    }
    arrays = {f"{of}/{name}": array for of in _STORED for name, array in getattr(server, of).items()}
    if server.voted is not None:
        arrays[_VOTED] = server.voted
    write_arrays(_path(folder, server.round), header, arrays)
    for old in _stored(folder)[:-KEPT]:
        old.unlink()


def load(folder: Path) -> tuple[ServerState, History] | None:
    """Return the newest checkpoint, or None before the first round.

    Raises:
        RunFolderError: it is damaged, or of another version of this package.
    """
    stored = _stored(folder)
    if not stored:
        return None
    try:
        header, arrays = read_arrays(stored[-1])
        if header["version"] != VERSION:
            raise RunFolderError(
                f"the checkpoint {stored[-1]} has format {header['version']}, and this version reads {VERSION}",
                "finish the run with the version that began it, or choose another experiment.output",
            )
        voted = arrays.pop(_VOTED, None)
        parts: dict[str, dict[str, Any]] = {of: {} for of in _STORED}
        for path, array in arrays.items():
            of, _, name = path.partition("/")
            parts[of][name] = array
        findings = _findings(header["findings"])
        server = ServerState(header["round"], voted=voted, findings=findings, **parts)
        history = header["history"]
        records = [_record(record) for record in history.pop("records")]
        return server, History(records=records, **history)
    except (ValueError, KeyError, TypeError, FederationError) as error:
        raise RunFolderError(
            f"the checkpoint {stored[-1]} is damaged ({type(error).__name__})",
            "delete it to resume from the one before; a round whose stored updates are gone by then is lost",
        ) from error


def _path(folder: Path, number: int) -> Path:
    """Return the checkpoint file of that round."""
    return folder / f"round-{number:05d}.npz"


def _stored(folder: Path) -> list[Path]:
    """Return the checkpoints there are, oldest first."""
    return sorted(folder.glob("round-*.npz"))


def _findings(value: dict[str, Any]) -> Findings:
    """Return the findings that JSON holds."""
    return Findings(tuple(value["scores"]), tuple((client_id, rank) for client_id, rank in value["ranks"]))


def _record(value: dict[str, Any]) -> RoundRecord:
    """Return the record that JSON holds, its tuples and its exchanges restored."""
    pairs = {key: [(a, b) for a, b in value[key]] for key in ("lost", "refused")}
    exchanges = [
        ExchangeRecord(**{**one, "survivors": tuple(one["survivors"])}) for one in value["exchanges"]
    ]
    restored = {
        **pairs,
        "survivors": tuple(value["survivors"]),
        "exchanges": exchanges,
        "findings": _findings(value["findings"]),
        "faded": tuple(value["faded"]),
    }
    return RoundRecord(**{**value, **restored})
