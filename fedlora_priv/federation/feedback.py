"""What a client still owes: all that it was to send and no sum of the run has had (`communication.error_feedback`).

A round begins by owing its update on top of what was owed, and sends of that what its support and its bits let through:

    owed ← owed + update       once the update is finished, stored and charged
    owed ← owed − sent         at each sum that this client has confirmed (insecure: that it has uploaded to)

So what a lost round or a lost band leaves behind comes with the next one. The second line is durable before the answer
leaves. A round that begins again, after a crash of anybody, owes what was owed before it, and the update once.

Every coordinate that some round sends has its place, so a residual waits where rounds send different arrays in turn.

The file is private data, at rest in the client's home and nowhere else: what masks hide from the server can be told
from it. It is made of noised updates of this run, each charged in full before it is owed, so what is sent of it is
post-processing of what the ledger has. It goes when the run ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.errors import FederationError, RunFolderError
from fedlora_priv.federation.files import read_arrays, write_arrays
from fedlora_priv.federation.vectors import dimension, flatten, unflatten, zeros
from fedlora_priv.methods.layout import Shapes, State
from protocols.errors import LocalProtocolError
from protocols.feedback import ErrorFeedback
from protocols.private import PrivateAtClient


@dataclass(frozen=True)
class _Owed:
    """What is owed in a round, and what was before it began."""

    round: int
    before: ErrorFeedback = field(repr=False)
    now: ErrorFeedback = field(repr=False)


class Feedback:
    """One client's residual in one run.

    Args:
        folder: the client's home.
        run: hex id of the run.
        shapes: every array that some round sends.
    """

    def __init__(self, folder: Path, run: str, shapes: Shapes) -> None:
        self._path = folder / f"residual-{run}.npz"
        self._shapes = shapes
        self._dimension = dimension(shapes)
        self._owed: _Owed | None = None

    def begin(self, round: int, update: State, accounted_as: str) -> None:
        """Owe an update, in a round that begins for the first time or again.

        Args:
            update: what the round's method uploads of it, before any coordinate is left out.
            accounted_as: the ledger's row that has charged its noise.

        Raises:
            LocalProtocolError: the update is not finite.
            RunFolderError: the residual is damaged, or cannot be written.
        """
        before = self._before(round)
        now = ErrorFeedback.restore(before.snapshot(), self._dimension)
        owed = now.compensate(PrivateAtClient(self._flat(update), accounted_as))
        now.record(owed, np.zeros(self._dimension))  # nothing is certain to arrive yet
        self._write(_Owed(round, before, now))

    def resume(self, round: int) -> None:
        """Go on in a round that another process has begun.

        Raises:
            FederationError: none has.
            RunFolderError: the residual is damaged.
        """
        self._owed = self._read()
        if self._owed is None or self._owed.round != round:
            raise FederationError(f"what is owed in round {round} was not kept")

    def owed(self, accounted_as: str) -> State:
        """Return what is owed now, float32; a function of charged updates, of which the last is named."""
        return unflatten(self._shapes, self._residual(accounted_as).values.astype(np.float32))

    def sent(self, sums: Mapping[str, NDArray[np.float64]], accounted_as: str) -> None:
        """Owe less by what has been sent, and remember it for good.

        Args:
            sums: this client's own part of a sum, by name; zero where nothing travelled.

        Raises:
            RunFolderError: the residual cannot be written.
        """
        owed, mine = self._current(), self._residual(accounted_as)
        owed.now.record(mine, self._flat(sums).astype(np.float64))
        self._write(owed)

    def forget(self) -> None:
        """Remove what is owed: the run has ended."""
        self._path.unlink(missing_ok=True)

    def _before(self, round: int) -> ErrorFeedback:
        """Return what was owed before a round."""
        last = self._read()
        if last is None:
            return ErrorFeedback(self._dimension)
        return last.now if last.round < round else last.before

    def _residual(self, accounted_as: str) -> PrivateAtClient:
        """Return what is owed now: it and no further update."""
        nothing = PrivateAtClient(np.zeros(self._dimension), accounted_as)
        return self._current().now.compensate(nothing)

    def _current(self) -> _Owed:
        """Return what is owed in the round in progress."""
        if self._owed is None:
            raise FederationError("nothing is owed before a round has begun")
        return self._owed

    def _flat(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the named arrays as one vector, with zeros for those that this round does not send."""
        return flatten(self._shapes, {**zeros(self._shapes), **arrays})

    def _write(self, owed: _Owed) -> None:
        """Store it durably, for its owner alone."""
        snapshots = {"before": owed.before.snapshot(), "now": owed.now.snapshot()}
        arrays = {name: np.frombuffer(snapshot, np.uint8) for name, snapshot in snapshots.items()}
        write_arrays(self._path, {"round": owed.round}, arrays, mode=0o600)
        self._owed = owed

    def _read(self) -> _Owed | None:
        """Return what is stored; None before the first round."""
        if not self._path.exists():
            return None
        try:
            header, arrays = read_arrays(self._path)
            before, now = (
                ErrorFeedback.restore(arrays[name].tobytes(), self._dimension) for name in ("before", "now")
            )
            return _Owed(int(header["round"]), before, now)
        except (ValueError, KeyError, TypeError, LocalProtocolError) as error:
            raise RunFolderError(
                f"{self._path} is damaged ({type(error).__name__})",
                "delete that file; what earlier rounds left out is then lost, and nothing else",
            ) from error
