"""A client that outlives its process: whatever it will need again is on disk before anything leaves."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from examples.custom_system.agreement import CONTEXT, POLICY, QUANTISER
from protocols.prg import SecretStream
from protocols.secagg.client import SecAggClient
from protocols.secagg.guard import SqliteGuard
from protocols.secagg.identity import Identity, Roster

_NOTHING_ASKED = bytes(32)


class Participant:
    """The client whose identity, roster, vector, guard and state are in `folder`, named like the client.

    A restarted process goes on where the last one stopped: it restores the snapshot, and answers a request
    that it had answered already with the very same bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._state = folder / "state"
        self._ring = _stored_ring(folder)
        self._asked, self._answer = _NOTHING_ASKED, b""
        make: Callable[..., SecAggClient] = SecAggClient
        if self._state.exists():
            stored = self._state.read_bytes()
            size = int.from_bytes(stored[:4], "big")
            self._asked, self._answer = stored[4:36], stored[36 : 36 + size]
            make = functools.partial(SecAggClient.restore, stored[36 + size :])
        self._client = make(
            client_id=self.name,
            identity=Identity.from_private_bytes((folder / "identity.key").read_bytes()),
            roster=Roster.load(folder / "roster.json"),
            policy=POLICY,
            guard=SqliteGuard(folder / "guard.sqlite"),
            context=CONTEXT,
        )

    @property
    def phase(self) -> str:
        """What it sends next, or "done" or "refused"."""
        return self._client.phase

    def answer(self, request: bytes) -> bytes:
        """Return the answer to a request of the server, once the state that follows is on disk.

        Raises:
            ProtocolError: this client refuses; it is out of the session, also after a restart.
        """
        asked = hashlib.sha256(request).digest()
        if asked != self._asked:
            try:
                self._asked, self._answer = asked, self._step(request)
            finally:  # a refusal is remembered too, or a restart would let the server try again
                self._store()
        return self._answer

    def _step(self, request: bytes) -> bytes:
        """Take the phase's step."""
        match self._client.phase:
            case "advertise":
                return self._client.advertise(request)
            case "share":
                return self._client.share(request)
            case "mask":
                return self._client.mask(request, self._ring)
            case "confirm":
                return self._client.confirm(request)
            case _:
                return self._client.reveal(request)

    def _store(self) -> None:
        """Replace the state on disk; it is as secret as the vector."""
        content = len(self._answer).to_bytes(4, "big") + self._asked + self._answer + self._client.snapshot()
        write_secret(self._state, content)


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all. Encrypt it where disks are shared."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _stored_ring(folder: Path) -> NDArray[np.uint32]:
    """Return the client's integers: rounded once and kept, so that a restarted client masks the same ones."""
    path = folder / "ring"
    if not path.exists():
        ring = QUANTISER.quantise(np.load(folder / "vector.npy"), SecretStream())
        write_secret(path, ring.astype("<u4").tobytes())
    return np.frombuffer(path.read_bytes(), dtype="<u4").astype(np.uint32)
