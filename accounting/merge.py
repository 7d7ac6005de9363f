"""Several clients' ledgers -> what a federation may claim.

    Merged        whose chains there are: the longest of each; copies are recognised, contradictions refused
    Merged.claim  disjoint data: the largest epsilon of any chain, at the one delta
                  overlapping data: the events of all chains composed at that delta, never epsilons added
                  by adversary view, and for a person with several rows if their number is known

`a | b` is associative and commutative, so it does not matter who collects the ledgers, or in which order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .chain import Chain, replay, shares_noise
from .entries import Row
from .errors import LedgerError, MergeError
from .event_fields import VIEWS, View
from .events import PrivateEvent
from .groups import as_group
from .pricing import epsilon

Key = tuple[str, str]  # client_id, dataset_id
DISJOINT = "maximum over disjoint clients"
OVERLAPPING = "events of overlapping clients composed"


@dataclass(frozen=True, slots=True)
class FederationClaim:
    """What is promised for a row, or for all `rows_each` rows of a person, against whoever has this `view`.

    `rows_each` None: how many rows a person has is unknown, and nothing is promised for persons. `clients` has
    each chain's own epsilon. `max_colluders` bounds the view "colluding-clients"; None: all the others.
    """

    unit: str
    adjacency: str
    view: View
    epsilon: float
    delta: float
    basis: str
    rows_each: int | None
    max_colluders: int | None
    clients: Mapping[Key, float]

    def to_json(self) -> dict[str, Any]:
        """The claim as a JSON object."""
        return {
            "unit": self.unit,
            "adjacency": self.adjacency,
            "view": self.view,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "basis": self.basis,
            "rows_each": self.rows_each,
            "max_colluders": self.max_colluders,
            "clients": [
                {"client_id": client_id, "dataset_id": dataset_id, "epsilon": value}
                for (client_id, dataset_id), value in self.clients.items()
            ],
        }


@dataclass(frozen=True, slots=True)
class Merged:
    """Chains by (client_id, dataset_id), in order of the keys; at most one each."""

    chains: Mapping[Key, Chain]

    @classmethod
    def of(cls, chains: Iterable[Chain]) -> Merged:
        """The chains together. Of two copies of one chain the longer counts.

        Raises:
            LedgerError: two chains of one key contradict each other; names the first row that differs.
        """
        longest: dict[Key, Chain] = {}
        for chain in chains:
            key = chain.client_id, chain.dataset_id
            longest[key] = _longer(longest[key], chain) if key in longest else chain
        return cls(dict(sorted(longest.items())))

    @classmethod
    def read(cls, rows: Iterable[Row | str]) -> Merged:
        """The chains of one exported ledger. Raises LedgerError if it is not whole."""
        return cls.of(replay(rows).values())

    def __or__(self, other: Merged) -> Merged:
        return Merged.of([*self.chains.values(), *other.chains.values()])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Merged) and self._heads() == other._heads()

    def __hash__(self) -> int:
        return hash(tuple(self._heads().items()))

    def spent(self, run: str | None = None) -> dict[Key, tuple[PrivateEvent, ...]]:
        """What each chain charges: over its lifetime, or in one run."""
        return {key: chain.spent(run) for key, chain in self.chains.items()}

    def claim(
        self,
        delta: float,
        view: View = "server",
        *,
        run: str | None = None,
        overlapping: bool = False,
        rows_each: int | None = None,
    ) -> FederationClaim:
        """The federation's claim at `delta` against one view, over the chains' lifetimes or for one run.

        `overlapping` declares that a row may be in several chains. `rows_each` is how many rows one person has
        at most; None where that is unknown.

        Raises:
            MergeError: nothing was charged, units or adjacencies differ, or an event does not protect against
                this view.
            PricingError: an event has no price for overlapping data or for several rows.
        """
        spent = {key: events for key, events in self.spent(run).items() if events}
        unit, adjacency = _one_kind(event for events in spent.values() for event in events)
        colluders: list[int] = []
        for (client_id, _), events in spent.items():
            for event in events:
                if view not in event.views:
                    raise MergeError(f"{client_id}: {event.kind} promises nothing against {view!r}")
                if event.max_colluders is not None:
                    colluders.append(event.max_colluders)
        held = {key: as_group(events, 1 if rows_each is None else rows_each) for key, events in spent.items()}
        return FederationClaim(
            unit=unit,
            adjacency=adjacency,
            view=view,
            epsilon=federation_epsilon(held.values(), delta, overlapping=overlapping),
            delta=delta,
            basis=OVERLAPPING if overlapping else DISJOINT,
            rows_each=rows_each,
            max_colluders=min(colluders, default=None),
            clients={key: epsilon(events, delta) for key, events in held.items()},
        )

    def views(self, run: str | None = None) -> tuple[View, ...]:
        """The views against which everything that was charged protects."""
        charged = [event for events in self.spent(run).values() for event in events]
        return tuple(view for view in VIEWS if all(view in event.views for event in charged))

    def _heads(self) -> dict[Key, tuple[int, str]]:
        """How many rows each chain has, and the digest of the last."""
        return {key: (len(chain.rows), chain.head) for key, chain in self.chains.items()}


def federation_epsilon(
    holdings: Iterable[tuple[PrivateEvent, ...]], delta: float, *, overlapping: bool = False
) -> float:
    """Epsilon at `delta` of a row that is in one of the holdings, or, if they overlap, in all of them.

    Raises:
        PricingError: events that do not compose.
        MergeError: overlapping holdings whose noise is shared.
    """
    holdings = list(holdings)
    if not overlapping:
        return max((epsilon(events, delta) for events in holdings), default=0.0)
    together = [event for events in holdings for event in events]
    if len(holdings) > 1 and any(shares_noise(event) for event in together):
        # Two of its copies enter one sum under one noise: twice the sensitivity costs four times, not twice.
        raise MergeError(
            "clients that share noise and rows cannot be merged: a row held twice moves one sum twice; remove the "
            "duplicates, or price it by a larger clip norm"
        )
    return epsilon(together, delta)


def _one_kind(events: Iterable[PrivateEvent]) -> tuple[str, str]:
    """The unit and the adjacency of all the events."""
    kinds = {(event.unit, event.adjacency) for event in events}
    if not kinds:
        raise MergeError("the ledgers charge nothing, so there is nothing to claim")
    if len(kinds) > 1:
        listed = ", ".join(f"{unit} under {adjacency}" for unit, adjacency in sorted(kinds))
        raise MergeError(f"one claim needs one unit and one adjacency, the ledgers have {listed}")
    return kinds.pop()


def _longer(one: Chain, other: Chain) -> Chain:
    """The longer of two copies of a chain; the shorter must be its beginning."""
    shorter, longer = sorted((one, other), key=lambda chain: len(chain.rows))
    for place, row in enumerate(shorter.rows):
        if row != longer.rows[place]:
            raise LedgerError(
                f"two ledgers of {one.client_id!r}, {one.dataset_id!r} differ from here on: one of them was "
                "rolled back and written anew, or forged",
                row=place,
            )
    return longer
