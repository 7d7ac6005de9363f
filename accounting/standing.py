"""Where a ledger stands: what it has spent, by run and over its lifetime, and what a limit still leaves room for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .budget import Budget
from .chain import Chain
from .events import PrivateEvent
from .pricing import accountant_for, epsilon


@dataclass(frozen=True, slots=True)
class RunSpent:
    """One run's part of a ledger. `epsilon` is of the run alone; runs compose to the lifetime, they do not add."""

    run: str
    charges: int
    uncommitted: int
    steps: int
    epsilon: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What one client's data set has spent at `delta`, oldest run first, and what is left of `limit`.

    `uncommitted` reservations are charged in full. `rounds_left` is how many more releases of `next_round` are
    certified to stay within the limit; None where no limit or no such release is known.
    """

    client_id: str
    dataset_id: str
    public: bool
    rows: int
    charges: int
    uncommitted: int
    steps: int
    non_private: int
    delta: float
    accountant: str
    epsilon: float
    runs: tuple[RunSpent, ...]
    limit: float | None
    rounds_left: int | None

    def to_json(self) -> dict[str, Any]:
        """The standing as a JSON object."""
        return asdict(self)


def standing(
    chain: Chain, delta: float, *, limit: float | None = None, next_round: PrivateEvent | None = None
) -> Standing:
    """Where a chain stands at `delta` under a lifetime `limit` on epsilon.

    `next_round` is what one more round would release; by default what the last one reserved.

    Raises:
        PricingError: the events do not compose, or cannot be priced at this delta.
    """
    charges = list(chain.charges.values())
    event = next_round or (charges[-1].reserved if charges else None)
    spent = chain.spent()
    room = None
    if limit is not None and event is not None:
        room = Budget(limit, delta).rounds_left(spent, event)
    return Standing(
        client_id=chain.client_id,
        dataset_id=chain.dataset_id,
        public=chain.opening.public,
        rows=len(chain.rows),
        charges=len(charges),
        uncommitted=sum(charge.committed is None for charge in charges),
        steps=sum(event.steps for event in spent),
        non_private=len(chain.notes),
        delta=delta,
        accountant=accountant_for(spent),
        epsilon=epsilon(spent, delta),
        runs=tuple(_run(chain, run, delta) for run in dict.fromkeys(charge.run for charge in charges)),
        limit=limit,
        rounds_left=room,
    )


def _run(chain: Chain, run: str, delta: float) -> RunSpent:
    """One run's part."""
    charges = [charge for charge in chain.charges.values() if charge.run == run]
    return RunSpent(
        run=run,
        charges=len(charges),
        uncommitted=sum(charge.committed is None for charge in charges),
        steps=sum(charge.charged.steps for charge in charges),
        epsilon=epsilon(chain.spent(run), delta),
    )
