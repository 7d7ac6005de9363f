"""The interface of an engine, and the meter that counts every byte through it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """Where in a federation messages go to and fro: the round (1-based), its exchange (0-based) and the phase."""

    round: int
    phase: str
    exchange: int = 0

    @property
    def name(self) -> str:
        """The phase, and of which exchange if it is not the first: how losses are listed."""
        return f"{self.phase} of exchange {self.exchange}" if self.exchange else self.phase


class Engine(Protocol):
    """Delivers one message to each of some clients and collects the answers."""

    @property
    def client_ids(self) -> tuple[str, ...]:
        """Every client that the federation was set up with."""
        ...

    def exchange(self, messages: Mapping[str, bytes], step: Step) -> Mapping[str, bytes]:
        """Return the answers that came; a client without one is lost for the rest of the round."""
        ...


@dataclass
class Traffic:
    """Bytes of messages by client: what each client sent (uploaded) and was sent (downloaded)."""

    uploaded: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    downloaded: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class Metered:
    """An engine that counts, round by round, the bytes that really went through."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._traffic = Traffic()

    @property
    def client_ids(self) -> tuple[str, ...]:
        """Every client of the engine."""
        return self._engine.client_ids

    def exchange(self, messages: Mapping[str, bytes], step: Step) -> Mapping[str, bytes]:
        """Pass the messages on; count them and the answers."""
        answers = self._engine.exchange(messages, step)
        for client_id, data in messages.items():
            self._traffic.downloaded[client_id] += len(data)
        for client_id, data in answers.items():
            self._traffic.uploaded[client_id] += len(data)
        return answers

    def take(self) -> Traffic:
        """Return what was counted since the last call, and begin again at zero."""
        traffic, self._traffic = self._traffic, Traffic()
        return traffic
