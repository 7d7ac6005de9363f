"""A limit that a client enforces on itself, before it acts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import BudgetExceeded
from .events import PrivateEvent
from .ledger import Ledger
from .pricing import check_delta, compose, counted, epsilon, step_curve, together


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `epsilon` at `delta` over the whole life of a data set, whatever runs it takes part in.

    In mode `local` one limit serves every adversary view: the server, the released model and colluding
    clients all see what is already private.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(f"a budget's epsilon must be finite and above 0, got {self.epsilon!r}")

    def require(self, ledger: Ledger, event: PrivateEvent) -> None:
        """Return if the ledger's whole history and `event` together stay within the budget.

        Guarantee: certified by PLD, or by RDP, which is above it; never an estimate. After a plan for the
        same mechanism was calibrated in this process, or after one search, a call takes milliseconds.

        Raises:
            BudgetExceeded: they do not. Nothing was recorded.
        """
        self.require_events(ledger.spent_events(), event)

    def require_events(self, spent: Iterable[PrivateEvent], event: PrivateEvent) -> None:
        """As `require`, for a history given as events."""
        spent = tuple(spent)
        mechanism, count = counted(event)
        steps = dict(compose((*spent, event)))
        total = steps.pop(mechanism, 0)
        curve = step_curve(together(steps), mechanism, self.delta)
        if curve.within(total, self.epsilon):
            return
        left = max(0, curve.affordable_steps(self.epsilon) - (total - count))
        needed = curve.epsilon(total)
        raise BudgetExceeded(
            f"this release would bring epsilon to {needed:.4f} at delta {self.delta:g}, above the budget of "
            f"{self.epsilon:g}: {epsilon(spent, self.delta):.4f} is spent and {left} of {count} steps "
            "still fit; stop here, or raise the budget knowingly",
            epsilon=needed,
            limit=self.epsilon,
            steps_left=left,
        )
