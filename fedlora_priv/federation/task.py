"""What a round is about: the global state it starts from, and how uploads travel in it.

Both sides build a `RoundTask`, the server from its own state and each client *from the bytes it loaded*; its
`context` enters every mask. A server that gives one client another model, support or bound gets masks that
do not cancel, never that client's update.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedlora_priv.config import Experiment
from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.channel import UploadChannel
from fedlora_priv.methods.base import Contract, Layout, State
from protocols.errors import ProtocolError
from protocols.sparsify import Support

SUPPORT_BLOB = "support"
STATE_PREFIX = "state/"


@dataclass(frozen=True)
class RoundTask:
    """One round: its number (1-based), the global state at its start, and its upload channel."""

    round: int
    state: State
    channel: UploadChannel

    def state_digest(self) -> bytes:
        """Return 32 bytes over the round's number and every array it starts from, frozen ones included."""
        digest = hashlib.sha256(b"fedlora-priv round state v1" + self.round.to_bytes(4, "big"))
        for name in sorted(self.state):
            array = np.ascontiguousarray(self.state[name], "<f4")
            digest.update(hashlib.sha256(f"{name} {array.shape}".encode()).digest())
            digest.update(hashlib.sha256(array.tobytes()).digest())
        return digest.digest()

    def context(self, experiment: bytes, run: bytes) -> bytes:
        """Return the 32 bytes that bind masks to this model, experiment, run, support and quantiser."""
        parts = (experiment, run, self.state_digest(), self.channel.digest())
        hashed = b"".join(hashlib.sha256(part).digest() for part in parts)
        return hashlib.sha256(b"fedlora-priv context v1" + hashed).digest()

    def to_message(self, layout: Layout) -> wire.Message:
        """Return the message that starts this round; frozen arrays do not travel, everybody has them."""
        moving = {n: a for n, a in self.state.items() if layout.role(n) in self.channel.contract.trains}
        state = {STATE_PREFIX + name: blob for name, blob in wire.pack_arrays(moving).items()}
        fields = {"round": self.round, "bounds": dict(self.channel.bounds)}
        return wire.Message(wire.TRAIN, fields, state | {SUPPORT_BLOB: self.channel.support.to_bytes()})

    @classmethod
    def from_message(
        cls, message: wire.Message, layout: Layout, contract: Contract, initial: State, experiment: Experiment
    ) -> RoundTask:
        """Return the task of a server's message; frozen arrays come from the client's own `initial` state.

        Raises:
            FederationError: the message does not fit this experiment.
        """
        shapes = {n: s for n, s in layout.shapes().items() if layout.role(n) in contract.trains}
        blobs = dict(message.blobs)
        try:
            support = Support.from_bytes(blobs.pop(SUPPORT_BLOB), contract.dimension)
            number = _round_number(message.fields["round"], experiment.federation.rounds)
            bits, clients = experiment.communication.value_bits, experiment.federation.clients
            channel = UploadChannel(
                contract, support, _bounds(message.fields["bounds"], contract), bits, clients
            )
            channel.digest()  # whatever is wrong with the bounds comes out now, before anything is charged
        except (KeyError, ProtocolError) as error:
            raise FederationError(f"the message that starts a round lacks or garbles {error}") from None
        state = wire.unpack_arrays({n.removeprefix(STATE_PREFIX): b for n, b in blobs.items()}, shapes)
        return cls(number, {**initial, **state}, channel)


def _round_number(value: object, rounds: int) -> int:
    """Return the number of a round of this experiment."""
    if type(value) is not int or not 1 <= value <= rounds:
        raise FederationError(f"a round cannot have the number {value!r}; there are rounds 1 to {rounds}")
    return value


def _bounds(fields: object, contract: Contract) -> dict[str, float]:
    """Check that there is one positive finite bound for each array that is uploaded."""
    if not isinstance(fields, Mapping) or set(fields) != set(contract.uploads):
        raise FederationError("the quantisation bounds of a round do not name the arrays that are uploaded")
    bounds = {name: fields[name] for name in contract.uploads}
    for name, bound in bounds.items():
        if not isinstance(bound, float) or not math.isfinite(bound) or bound <= 0:
            raise FederationError(f"the quantisation bound of {name!r} is {bound!r}, not a positive number")
    return bounds
