"""A limit that a client enforces on itself, before it acts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import BudgetExceeded, PricingError
from .events import PrivateEvent
from .ledger import Ledger
from .mechanisms import compose, counted, together
from .pricing import StepCurve, check_delta, epsilon, step_curve


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `epsilon` at `delta` over the whole life of a data set, whatever runs it takes part in.

    In mode `local` one limit serves every adversary view: the server, the released model and colluding
    clients all see what is already private.

    Raises:
        PricingError: epsilon is not finite and above 0, or delta is one that nobody can price at.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if not 0 < self.epsilon < float("inf"):
            raise PricingError(f"a budget's epsilon must be finite and above 0, got {self.epsilon!r}")

    def require(self, ledger: Ledger, event: PrivateEvent) -> None:
        """Return if the ledger's whole history and `event` together stay within the budget.

        Where several processes write one ledger, ask within `Ledger.reserve(require=...)` by `require_events`.

        Guarantee: certified by PLD, or by RDP, which is above it; never an estimate. After a plan for the
        same mechanism was calibrated in this process, or after one search, a call takes milliseconds.

        Raises:
            BudgetExceeded: they do not. Nothing was recorded.
        """
        self.require_events(ledger.spent_events(), event)

    def require_events(self, spent: Iterable[PrivateEvent], event: PrivateEvent) -> None:
        """As `require`, for a history given as events."""
        spent = tuple(spent)
        count, before, curve = self._curve(spent, event)
        if curve.within(before + count, self.epsilon):
            return
        left, needed = self._steps_left(before, curve), curve.epsilon(before + count)
        raise BudgetExceeded(
            f"this release would bring epsilon to {needed:.4f} at delta {self.delta:g}, above the budget of "
            f"{self.epsilon:g}: {epsilon(spent, self.delta):.4f} is spent and {left} of {count} steps "
            "still fit; stop here, or raise the budget knowingly",
            epsilon=needed,
            limit=self.epsilon,
            steps_left=left,
        )

    def rounds_left(self, spent: Iterable[PrivateEvent], event: PrivateEvent) -> int:
        """How often `event` can still be released after what is `spent`, certified as `require` does.

        Raises:
            PricingError: the event has no steps, or does not compose with what is spent.
        """
        count, before, curve = self._curve(tuple(spent), event)
        if count < 1:
            raise PricingError("an event without steps can be released for ever")
        return self._steps_left(before, curve) // count

    def _curve(self, spent: tuple[PrivateEvent, ...], event: PrivateEvent) -> tuple[int, int, StepCurve]:
        """The event's steps, how many of its kind are spent, and epsilon against their number."""
        mechanism, count = counted(event)
        steps = dict(compose((*spent, event)))
        total = steps.pop(mechanism, 0)
        return count, total - count, step_curve(together(steps), mechanism, self.delta)

    def _steps_left(self, before: int, curve: StepCurve) -> int:
        """How many more steps fit."""
        return max(0, curve.affordable_steps(self.epsilon) - before)
