"""A client's round between two messages, where each message may come to a new process.

What is only in memory (the session's keys, how far the round has got) is handed to whoever keeps a node's state
between two messages, as secret bytes. The home keeps a digest of the latest ones and nothing else: bytes that
somebody kept from earlier, or that belong to another client or run, are refused before a word of them is believed.
Bytes that are lost cost a round at most: what must never be lost (ledger, guard, finished update) is in the home.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.files import write_atomically

_LABEL = "fedlora-priv suspended round v1"


class Suspension:
    """One client's suspended round in one run.

    Args:
        home: the client's folder.
        client_id, run: whose, and in which run (hex).
    """

    def __init__(self, home: Path, client_id: str, run: str) -> None:
        self._path = home / f"suspended-{run}.sha256"
        self._label = f"{_LABEL} {client_id} {run}".encode()

    def note(self, began: wire.Message | None, release: wire.Message | None) -> bytes:
        """Return a round as secret bytes, once the home remembers that they are the latest.

        Args:
            began: the message that began the round; None where there is none in progress.
            release: what `RoundRelease.snapshot` says of it.

        Raises:
            RunFolderError: the home cannot be written.
        """
        suspended = b""
        if began is not None and release is not None:
            blobs = {"began": wire.encode(began), "release": wire.encode(release)}
            suspended = wire.encode(wire.Message("suspended", {}, blobs))
        write_atomically(self._path, self._digest(suspended), mode=0o600)
        return suspended

    def latest(self, suspended: bytes) -> tuple[wire.Message, wire.Message] | None:
        """Return what `note` was given last; None if there was no round in progress.

        Raises:
            FederationError: these are not the latest bytes, or another client's or run's.
        """
        if not suspended:
            return None
        known = self._path.read_bytes() if self._path.exists() else b""
        if not hmac.compare_digest(known, self._digest(suspended)):
            raise FederationError("its state is not the one this client was last in")
        blobs = wire.decode(suspended).blobs
        return wire.decode(blobs["began"]), wire.decode(blobs["release"])

    def _digest(self, suspended: bytes) -> bytes:
        """Return 32 bytes over a suspended round and whose it is."""
        return hashlib.sha256(hashlib.sha256(self._label).digest() + suspended).digest()
