"""The interface of an engine, and the meter that counts every byte through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedlora_priv.communication.meter import Carries, Kind, Table, by_direction, sort
from protocols.secagg.sizes import Direction


@dataclass(frozen=True)
class Step:
    """Where in a federation messages go to and fro: the round (1-based), its exchange (0-based) and the phase.

    `carries` says what the masked vectors of that exchange are, `proposes` that the message brings the proposal of its
    session and the answer a client's Advertise; they make no other step of it.
    """

    round: int
    phase: str
    exchange: int = 0
    carries: Carries = field(default="values", compare=False)
    proposes: bool = field(default=False, compare=False)

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

    @property
    def absent(self) -> tuple[str, ...]:
        """Those of them that cannot be reached, as far as is known: one that is not there has not been charged."""
        ...

    def exchange(self, messages: Mapping[str, bytes], step: Step) -> Mapping[str, bytes]:
        """Return the answers that came; a client without one is lost for the rest of the round."""
        ...


@dataclass
class Traffic:
    """Bytes of messages by client, direction and kind, as `communication.meter` defines them."""

    table: Table = field(default_factory=Counter)

    @property
    def uploaded(self) -> dict[str, int]:
        """What each client sent."""
        return self._totals("up")

    @property
    def downloaded(self) -> dict[str, int]:
        """What each client was sent."""
        return self._totals("down")

    def by_client(self) -> dict[str, dict[Direction, dict[Kind, int]]]:
        """Return the table as JSON values: by client, direction and kind, all kinds of them."""
        return {
            client_id: by_direction(self.table, client_id)
            for client_id in sorted({c for c, _, _ in self.table})
        }

    def count(self, client_id: str, way: Direction, data: bytes, carries: Carries) -> None:
        """Add one message."""
        for kind, size in sort(data, way, carries).items():
            self.table[client_id, way, kind] += size

    def _totals(self, way: Direction) -> dict[str, int]:
        """Return the sums over kinds."""
        totals: Counter[str] = Counter()
        for (client_id, direction, _), size in self.table.items():
            if direction == way:
                totals[client_id] += size
        return dict(totals)


class Metered:
    """An engine that counts, round by round, the bytes that really went through."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._traffic = Traffic()

    @property
    def client_ids(self) -> tuple[str, ...]:
        """Every client of the engine."""
        return self._engine.client_ids

    @property
    def absent(self) -> tuple[str, ...]:
        """Those that the engine cannot reach."""
        return self._engine.absent

    def exchange(self, messages: Mapping[str, bytes], step: Step) -> Mapping[str, bytes]:
        """Pass the messages on; count them and the answers."""
        answers = self._engine.exchange(messages, step)
        for client_id, data in messages.items():
            self._traffic.count(client_id, "down", data, step.carries)
        for client_id, data in answers.items():
            self._traffic.count(client_id, "up", data, step.carries)
        return answers

    def take(self) -> Traffic:
        """Return what was counted since the last call, and begin again at zero."""
        traffic, self._traffic = self._traffic, Traffic()
        return traffic
