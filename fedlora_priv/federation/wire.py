"""Messages between server and client, and their bytes.

A message is a kind, a small JSON header and named blobs::

    uint32 header length (little endian) ‖ header, canonical JSON ‖ the blobs one after another

The header lists each blob's name and length; a message whose lengths do not add up is refused whole. The
secure-aggregation messages travel inside as blobs: their own codec, signatures and versions are `protocols`'.

The message that begins an exchange carries the proposal of its session, and its answer the client's advertisement:
who takes part is known by then, and a message may cost seconds (docs/decisions/0080).
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora_priv.errors import FederationError

VERSION = 4
"""Raised whenever what some message has in it changes: parties of two releases then refuse each other at once."""
MAX_HEADER_BYTES = 1 << 20

# server → client
TRAIN = "train"  # a round begins: global state, findings, support, bounds
EXCHANGE = "exchange"  # a further exchange of the round begins: what was made of the sums so far, bounds
PHASE = "phase"  # one phase of secure aggregation (both directions)
UPLOAD = "upload"  # insecure mode only: send the quantised upload unmasked
PERSONAL = (
    "personal"  # how good is what this client makes of a global state (both directions): see `personal`
)
CLOSE = "close"  # the run has ended: send ledger rows and a fresh anchor
# client → server
TRAINED = "trained"
READY = "ready"  # for the exchange that was announced
REFUSED = "refused"  # with a code, never a text
STATEMENT = "statement"

PROPOSAL = "proposal"
"""The blob of TRAIN and EXCHANGE that proposes the exchange's session; none where sums are not masked."""
ADVERTISEMENT = "advertisement"
"""The blob of TRAINED and READY that answers it."""


@dataclass(frozen=True)
class Message:
    """One message: kind, header fields (JSON values), named blobs."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def with_blob(self, name: str, blob: bytes) -> Message:
        """Return the message with one more blob."""
        return replace(self, blobs={**self.blobs, name: blob})

    def without_blob(self, name: str) -> tuple[Message, bytes | None]:
        """Return the message without a blob, and the blob if it has one."""
        blobs = dict(self.blobs)
        blob = blobs.pop(name, None)
        return replace(self, blobs=blobs), blob


def encode(message: Message) -> bytes:
    """Return the bytes of a message."""
    header = {
        "version": VERSION,
        "kind": message.kind,
        "fields": dict(message.fields),
        "blobs": [[name, len(blob)] for name, blob in message.blobs.items()],
    }
    head = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return b"".join([struct.pack("<I", len(head)), head, *message.blobs.values()])


def decode(data: bytes) -> Message:
    """Return the message of these bytes.

    Raises:
        FederationError: the bytes are no message of this version; nothing was interpreted.
    """
    try:
        (size,) = struct.unpack_from("<I", data)
        if size > min(MAX_HEADER_BYTES, len(data) - 4):
            raise ValueError("header length")
        header = json.loads(data[4 : 4 + size])
        if header["version"] != VERSION:
            raise ValueError("version")
        blobs = _cut(memoryview(data)[4 + size :], header["blobs"])
        return Message(str(header["kind"]), dict(header["fields"]), blobs)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FederationError(
            f"a federation message could not be read ({error}); both sides must run the same version"
        ) from None


def _cut(body: memoryview, table: list[list[Any]]) -> dict[str, bytes]:
    """Cut the body into the blobs that the header lists; every byte must belong to one."""
    lengths = [length for _, length in table]
    if any(type(length) is not int or length < 0 for length in lengths) or sum(lengths) != len(body):
        raise ValueError("blob lengths")
    ends = np.cumsum([0, *lengths]).tolist()
    blobs = {str(name): bytes(body[a:b]) for (name, _), a, b in zip(table, ends, ends[1:], strict=False)}
    if len(blobs) != len(table):
        raise ValueError("blob names")
    return blobs


def pack_arrays(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, bytes]:
    """Return float32 arrays as little-endian blobs, in sorted order of their names."""
    return {name: np.ascontiguousarray(arrays[name], "<f4").tobytes() for name in sorted(arrays)}


def without_prefix(blobs: Mapping[str, bytes], prefix: str) -> dict[str, bytes]:
    """Return blobs under their names without a prefix that all of them have.

    Raises:
        FederationError: one has not; two names could then mean one array.
    """
    for name in blobs:
        if not name.startswith(prefix):
            raise FederationError(f"a message has a blob {name!r} where only {prefix!r} belongs")
    return {name.removeprefix(prefix): blob for name, blob in blobs.items()}


def arrays_digest(label: bytes, arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return 32 bytes that differ whenever a name, a shape or a value does; `label` says what they are of."""
    digest = hashlib.sha256(label)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], "<f4")
        digest.update(hashlib.sha256(f"{name} {array.shape}".encode()).digest())
        digest.update(hashlib.sha256(array.tobytes()).digest())
    return digest.digest()


def unpack_arrays(
    blobs: Mapping[str, bytes], shapes: Mapping[str, tuple[int, ...]], what: str
) -> dict[str, NDArray[np.float32]]:
    """Return the arrays of exactly these names and shapes; `what` names them all in a refusal.

    Raises:
        FederationError: a name is missing or too many, a size does not fit, or a value is not finite.
    """
    if set(blobs) != set(shapes):
        raise FederationError(
            f"{what} in a message has other arrays than this experiment's model; "
            "check that server and clients run the same experiment file"
        )
    arrays = {}
    for name, shape in shapes.items():
        if len(blobs[name]) != 4 * math.prod(shape):
            raise FederationError(f"array {name!r} of {what} has the wrong size for shape {shape}")
        arrays[name] = np.frombuffer(blobs[name], "<f4").reshape(shape).astype(np.float32)
        if not np.isfinite(arrays[name]).all():
            raise FederationError(f"array {name!r} of {what} is not finite; training has diverged")
    return arrays
