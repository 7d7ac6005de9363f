"""What a round is about: the global state it starts from, what was found by then, and how uploads travel first.

Both sides build a `RoundTask`, the server from its own state and each client *from the bytes it loaded*; its
`context` enters every mask. A server that gives one client another model, support, bound, announcement or finding gets
masks that do not cancel, never that client's update.

What travels down is whatever differs from the state that the first round began with, which everybody has (`start`).
Shapes travel along, for what a method has added to the base weights grows; each is checked against the layout before
a byte of its array is looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from fedlora_priv.allocation.findings import PREFIX, Findings
from fedlora_priv.config import Experiment
from fedlora_priv.errors import FederationError
from fedlora_priv.federation import start, wire
from fedlora_priv.federation.allocating import told
from fedlora_priv.federation.exchange import BOUNDS_BLOB, SUPPORT_BLOB, Exchange, Planned, support_blob
from fedlora_priv.methods import residual
from fedlora_priv.methods.base import Method, Shared
from fedlora_priv.methods.layout import Layout, Shapes, State


@dataclass(frozen=True)
class RoundTask:
    """One round: its number (1-based), the state that everybody starts from, and the exchanges that are known by then.

    Args:
        findings: what its allocation follows from beside the file.
        first: the first exchange.
        bands: what wider tiers send besides, each in an exchange of its own.
    """

    round: int
    findings: Findings
    state: State
    first: Exchange
    bands: tuple[Exchange, ...] = ()

    @property
    def known(self) -> tuple[Exchange, ...]:
        """The exchanges before which nothing has to be announced."""
        return (self.first, *self.bands)

    @cached_property
    def state_digest(self) -> bytes:
        """32 bytes over the round's number, its findings and every array it starts from, frozen ones included."""
        label = b"fedlora-priv round state v2" + self.round.to_bytes(4, "big") + self.findings.digest()
        return wire.arrays_digest(label, self.state)

    def context(self, experiment: bytes, run: bytes, exchange: Exchange) -> bytes:
        """Return the 32 bytes that bind the masks of an exchange to it, this state, this experiment and run."""
        parts = (experiment, run, self.state_digest, exchange.digest())
        hashed = b"".join(hashlib.sha256(part).digest() for part in parts)
        return hashlib.sha256(b"fedlora-priv context v2" + hashed).digest()

    def to_message(self, begun: State) -> wire.Message:
        """Return the message that starts this round; what is as in `begun` does not travel, everybody has it."""
        shapes, state = start.packed(self.state, begun)
        channels = {
            exchange.number: exchange.values for exchange in self.known if exchange.leg.carries == "values"
        }
        fields = {
            "round": self.round,
            "shapes": shapes,
            "state_sha256": self.state_digest.hex(),
        }
        how = {support_blob(j): channel.support.to_bytes() for j, channel in channels.items()}
        if channels:
            how[BOUNDS_BLOB] = channels[0].bounds_to_bytes()  # bands have the first exchange's
        return wire.Message(wire.TRAIN, fields, state | how | self.findings.to_blobs())

    @classmethod
    def from_message(
        cls, message: wire.Message, layout: Layout, method: Method, begun: State, experiment: Experiment
    ) -> RoundTask:
        """Return the task of a server's message; what did not travel comes from the client's own `begun` state.

        Raises:
            FederationError: the message does not fit this experiment, or the client began from other arrays; or what
                the server has found cannot have been.
        """
        fields, blobs = message.fields, dict(message.blobs)
        missing = {"round", "shapes", "state_sha256"} - set(fields)
        if missing:
            raise FederationError(f"the message that starts a round lacks {min(missing)}")
        supports = {name: blobs.pop(name) for name in message.blobs if name.startswith(SUPPORT_BLOB)}
        bounds = blobs.pop(BOUNDS_BLOB, b"")
        number = _round_number(fields["round"], experiment.federation.rounds)
        found = {name: blobs.pop(name) for name in message.blobs if name.startswith(PREFIX)}
        findings = told(experiment, layout, number, found)
        planned = Planned(experiment, layout, method.at(number).contract(layout), number, findings)
        first, *bands = planned.begun(bounds, supports)
        shapes = _shapes(fields["shapes"], layout, begun, base=method.changes_base)
        state = start.unpacked(blobs, shapes, begun)
        task = cls(number, findings, state, first, tuple(bands))
        if task.state_digest.hex() != fields["state_sha256"]:
            raise FederationError(
                "server and client do not have the same arrays where none has travelled",
                "start both from the same weights, with the same experiment file and library versions",
            )
        density = experiment.communication.download_density
        if density < 1:
            moves = start.moving(method, layout, experiment.federation.rounds)
            start.require_masked(state, begun, moves, density)
        return task


def begin(method: Method, layout: Layout, initial: State, experiment: Experiment) -> State:
    """Return the global state before the first round: all parties compute it from the model as it was loaded."""
    return method.begin(layout, initial, Shared(experiment.experiment.seed, 0))


def _round_number(value: object, rounds: int) -> int:
    """Return the number of a round of this experiment."""
    if type(value) is not int or not 1 <= value <= rounds:
        raise FederationError(f"a round cannot have the number {value!r}; there are rounds 1 to {rounds}")
    return value


def _shapes(fields: object, layout: Layout, begun: State, *, base: bool) -> Shapes:
    """Return the shapes of what has travelled, each one that an array of the state can have.

    Args:
        base: whether the state may have gained a residual of the base weights.
    """
    if not isinstance(fields, Mapping):
        raise FederationError("the message that starts a round garbles its shapes")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in fields.items():
        if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
            raise FederationError(f"array {name!r} of the global state cannot have the shape {shape!r}")
        shapes[name] = tuple(shape)
    allowed: dict[str, tuple[int, ...]] = {name: array.shape for name, array in begun.items()}
    if base:
        allowed |= residual.shapes(layout, shapes)
    for name, shape in shapes.items():
        if allowed.get(name) != shape:
            raise FederationError(
                f"the global state has no array {name!r} of shape {shape} in this experiment"
            )
    return shapes
