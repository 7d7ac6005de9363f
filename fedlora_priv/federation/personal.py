"""What stays at each client (FedSA-LoRA: B and head): the model it makes of a global state, and how good that is.

Where arrays stay at home there is no one model to evaluate: client k's is the global state with its own arrays, those
of its last finished update. The server sends a state, never asks for an array, and gets one number back:

    PERSONAL(round, keep, global arrays) → PERSONAL(quality)

The number is measured on public held-out rows, so it is post-processing of updates that the ledger has charged. A
client measures one state a round and no other, however often it is restarted: a server that could choose states
freely would learn, answer by answer, what stays at home. Where no row may be evaluated there is no number.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedlora_priv.engines.base import Engine, Step
from fedlora_priv.errors import FederationError, RunFolderError
from fedlora_priv.federation import wire
from fedlora_priv.federation.files import write_atomically
from fedlora_priv.federation.home import FinishedUpdate, UpdateStore
from fedlora_priv.methods.base import Method
from fedlora_priv.methods.layout import Layout, Role, Shapes, State

if TYPE_CHECKING:
    from fedlora_priv.federation.client import ClientSetup

LABEL = b"fedlora-priv personal state v1"


class OwnModel(Protocol):
    """A client's model as it is at one state; what needs torch."""

    def quality(self, state: State) -> float | None:
        """Return accuracy or perplexity on public rows; None where none may be evaluated."""
        ...

    def keep(self, state: State) -> None:
        """Save the adapter in the client's home."""
        ...


class Personal:
    """One client's own arrays, and its answers about the model that they make.

    Args:
        setup: what the client knew before the first message.
        begun: the global state before the first round.
        updates: its finished updates.
        require_charged: raises FederationError unless the ledger has charged an update.
    """

    def __init__(
        self,
        setup: ClientSetup,
        begun: State,
        updates: UpdateStore,
        require_charged: Callable[[FinishedUpdate], None],
    ) -> None:
        self._setup = setup
        self._begun = begun
        self._updates = updates
        self._require_charged = require_charged
        self._method = setup.method.at(1)
        self._home = home_roles(setup.method, setup.layout)
        self._asked = setup.home.path / f"measured-{setup.run.hex()}.json"

    def own(self, state: State) -> State:
        """Return a state with this client's own arrays where they stay at home; as they are before its first update.

        Raises:
            FederationError: they are not finite, or the ledger has not charged them.
        """
        last = self._updates.last() if self._home else None
        if last is None:
            return state
        self._require_charged(last)
        mine = self._method.personal(self._setup.layout, state, last.state)
        if not all(np.isfinite(array).all() for array in mine.values()):
            raise FederationError("what stays at this client is not finite: its training has diverged")
        return mine

    def answer(self, message: wire.Message) -> wire.Message:
        """Measure the model that a global state makes here, and keep it if it is the last.

        Raises:
            FederationError: nothing stays at home, there is no such round, or another state was measured in it.
        """
        if self._setup.own_model is None or not self._home:
            raise FederationError("nothing stays at this client, so its model is the global one")
        number, keep = message.fields.get("round"), message.fields.get("keep")
        shapes = travelling(self._setup.layout, self._home, self._begun)
        state = {**self._begun, **wire.unpack_arrays(message.blobs, shapes, "the global state")}
        self._require_once(number, wire.arrays_digest(LABEL, state))
        mine = self.own(state)
        if keep is True:
            self._setup.own_model.keep(mine)
        return wire.Message(wire.PERSONAL, {"quality": self._setup.own_model.quality(mine)})

    def _require_once(self, number: object, digest: bytes) -> None:
        """Raise unless a state may be measured in that round, and remember it."""
        federation = self._setup.experiment.federation
        if type(number) is not int or not 1 <= number <= federation.rounds:
            raise FederationError(f"there is no round {number!r} to measure")
        asked = self._read_asked()
        if asked.setdefault(str(number), digest.hex()) != digest.hex():
            raise FederationError("another state was measured in this round")
        write_atomically(self._asked, json.dumps(asked).encode(), mode=0o600)

    def _read_asked(self) -> dict[str, str]:
        """Return the digests of the states that were measured, hex, by round."""
        if not self._asked.exists():
            return {}
        try:
            return dict(json.loads(self._asked.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise RunFolderError(
                f"{self._asked} is damaged",
                "restore it: without it this client cannot tell what it has measured",
            ) from error


def home_roles(method: Method, layout: Layout) -> frozenset[Role]:
    """Return the roles of arrays that stay at each client; a schedule's phases all have the same."""
    return method.at(1).contract(layout).stays_home & {layout.role(name) for name in layout.shapes()}


def travelling(layout: Layout, home: frozenset[Role], state: State) -> Shapes:
    """Return the shapes of the arrays of a state that do not stay at home."""
    return {name: array.shape for name, array in state.items() if layout.role(name) not in home}


def ask(
    engine: Engine, layout: Layout, home: frozenset[Role], state: State, number: int, *, keep: bool = False
) -> dict[str, float]:
    """Return how good each client's own model is at a global state, by client; whoever does not say is left out.

    Args:
        engine: delivers the question.
        layout, home: which arrays there are, and the roles that stay at home.
        state: the global state.
        number: the round that gave it.
        keep: whether clients are to save their models: the run has ended.
    """
    message = wire.encode(question(layout, home, state, number, keep=keep))
    step = Step(number + 1, "keep") if keep else Step(number, "personal")  # who was lost is back afterwards
    answers = engine.exchange(dict.fromkeys(engine.client_ids, message), step)
    return dict(sorted(_numbers(answers).items()))


def question(layout: Layout, home: frozenset[Role], state: State, number: int, *, keep: bool) -> wire.Message:
    """Return the message that asks a client how good its own model is, as `ask` sends it."""
    arrays = wire.pack_arrays({name: state[name] for name in travelling(layout, home, state)})
    return wire.Message(wire.PERSONAL, {"round": number, "keep": keep}, arrays)


def _numbers(answers: Mapping[str, bytes]) -> dict[str, float]:
    """Return the answers that are finite numbers."""
    numbers = {}
    for client_id, data in answers.items():
        with contextlib.suppress(FederationError):
            message = wire.decode(data)
            quality = message.fields.get("quality")
            if message.kind == wire.PERSONAL and isinstance(quality, float) and math.isfinite(quality):
                numbers[client_id] = quality
    return numbers
