"""The default engine: every client in this process, answering in turn; losses are acted out on request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fedlora_priv.config_federation import Dropout
from fedlora_priv.engines.base import Step


class Client(Protocol):
    """Whoever answers bytes with bytes."""

    @property
    def client_id(self) -> str:
        """The client's name."""
        ...

    def handle(self, data: bytes) -> bytes:
        """Return the answer to a message."""
        ...


class LocalEngine:
    """Calls the clients one after another.

    Args:
        clients: the federation's clients.
        dropouts: which client is lost in which round, before it answers which phase; it is back, with its
            own disk as it left it, in the next round. Lost in Advertise it has trained, and is not heard.
        on_answer: called with (client_id, step) after each answer; drives the progress bar.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        dropouts: Sequence[Dropout] = (),
        on_answer: Callable[[str, Step], None] = lambda client_id, step: None,
    ) -> None:
        self._clients = {client.client_id: client for client in clients}
        self._dropouts: dict[Step, set[str]] = defaultdict(set)
        for dropout in dropouts:
            self._dropouts[Step(dropout.round, dropout.phase, dropout.exchange)].add(dropout.client_id)
        self._on_answer = on_answer
        self._lost: tuple[int, set[str]] = (0, set())

    @property
    def client_ids(self) -> tuple[str, ...]:
        """The clients in the order they were given."""
        return tuple(self._clients)

    @property
    def absent(self) -> tuple[str, ...]:
        """Nobody: all are in this process."""
        return ()

    def exchange(self, messages: Mapping[str, bytes], step: Step) -> Mapping[str, bytes]:
        """Deliver to everybody who is not lost, and return the answers."""
        lost = self._lost[1] if self._lost[0] == step.round else set()
        lost = lost | self._dropouts[step]
        unheard = self._dropouts[Step(step.round, "advertise", step.exchange)] if step.proposes else set()
        self._lost = (step.round, lost | unheard)
        answers = {}
        for client_id, data in messages.items():
            if client_id in lost:
                continue
            answer = self._clients[client_id].handle(data)
            if client_id not in unheard:
                answers[client_id] = answer
                self._on_answer(client_id, step)
        return answers
