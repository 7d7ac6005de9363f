"""What one training run takes out of a ledger: noise planned first, every step reserved before it is taken.

Steps are reserved a stretch at a time, from one checkpoint to the next. A crash then costs the steps since the
last checkpoint, not the rest of the run: what was reserved stays charged, and whoever resumes plans the remaining
steps on top of it, with more noise where that is needed to stay within the budget.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from accounting.budget import Budget
from accounting.calibration import calibrate
from accounting.chain import Chain
from accounting.errors import AccountingError, BudgetExceeded
from accounting.events import PoissonGaussian
from accounting.ledger import Ledger
from accounting.pricing import epsilon
from fedlora_priv.errors import BudgetError


@dataclass(frozen=True)
class PrivacySpent:
    """What a ledger says of one run; nothing here is private.

    Attributes:
        epsilon, delta: the guarantee for everything charged to the data, this run and all before it.
        run_epsilon: the part of this run alone, at the same delta.
        steps: charged in this run, those of crashed attempts included.
        noise_multipliers: of the run's steps; more than one where a resumed run had to add noise.
        sample_rate, clip_norm: of the run's steps.
        declared_examples: the public number of examples that delta and the sample rate rest on.
    """

    epsilon: float
    delta: float
    run_epsilon: float
    steps: int
    noise_multipliers: tuple[float, ...]
    sample_rate: float
    clip_norm: float
    declared_examples: int

    def __str__(self) -> str:
        noise = ", then ".join(f"{noise:g}" for noise in self.noise_multipliers)
        return (
            f"ε = {self.epsilon:.4f} at δ = {self.delta:g}, for each example (add or remove one row), against "
            f"whoever sees the model or its checkpoints; {self.run_epsilon:.4f} by this run: {self.steps} Poisson "
            f"batches at rate {self.sample_rate:g} of {self.declared_examples} examples, clip norm "
            f"{self.clip_norm:g}, noise multiplier {noise or 'none'}"
        )


@dataclass
class Spending:
    """One run's account with a ledger.

    Args:
        ledger: open, of the data that is trained on.
        budget: what everything that is charged to that data may cost, earlier runs included.
        sample_rate, clip_norm: of every step.
        run: the run's id, hex; a new one unless a run is resumed.

    Raises:
        BudgetError: from every method, where the ledger is damaged or the budget has no room.
    """

    ledger: Ledger
    budget: Budget
    sample_rate: float
    clip_norm: float
    run: str = field(default_factory=lambda: secrets.token_hex(16))
    _noise_multiplier: float | None = None
    _reservation: int | None = None
    _steps_left: int = 0

    def plan(self, steps: int) -> float:
        """Return the noise multiplier at which `steps` more steps stay within the budget; 1 or more steps.

        A resumed run keeps its noise while that fits, so that a run without crashes is as planned at first.
        """
        with _clear_errors():
            spent = self.ledger.spent_events()
            if earlier := self._noise_so_far():
                self._noise_multiplier = earlier[-1]
                with suppress(BudgetExceeded):
                    self.budget.require_events(spent, self._event(steps))
                    return self._noise_multiplier
            self._noise_multiplier = calibrate(
                self.budget.epsilon, self.budget.delta, self.sample_rate, steps, spent=spent
            )
        return self._noise_multiplier

    def before_step(self, ahead: int) -> None:
        """Have the next step reserved: where none is left, reserve `ahead` steps, durably."""
        if self._steps_left == 0:
            if ahead < 1:
                raise BudgetError(
                    "all planned steps have been taken", "plan for more of them: raise max_steps"
                )
            event = self._event(ahead)

            def require(chain: Chain) -> None:
                self.budget.require_events(chain.spent(), event)

            with _clear_errors():
                number = len(self.ledger.charges(run=self.run)) + 1
                self._reservation = self.ledger.reserve(event, round=number, run=self.run, require=require)
            self._steps_left = ahead
        self._steps_left -= 1

    def after_step(self, private_audit: Callable[[int, int], str | None]) -> None:
        """Commit what was reserved, once its last step is taken.

        Args:
            private_audit: given the number of the stretch and its reservation, returns the digest of what the
                client notes of it for its own auditor, or None.
        """
        if self._steps_left == 0 and self._reservation is not None:
            with _clear_errors():
                charge = self.ledger.chain.charges[self._reservation]
                digest = private_audit(charge.round, self._reservation)
                self.ledger.commit(self._reservation, private_audit=digest)
            self._reservation = None

    def statement(self) -> dict[str, Any]:
        """Return what a checkpoint should say of the ledger, for `resume`; nothing private."""
        with _clear_errors():
            return {"run": self.run, "rows": len(self.ledger.rows()), "head": self.ledger.head()}

    def resume(self, statement: Mapping[str, Any], steps_taken: int) -> None:
        """Go on with the run of a checkpoint, if this ledger is the one that its steps were charged to."""
        run, rows, head = (statement.get(name) for name in ("run", "rows", "head"))
        if not (isinstance(run, str) and isinstance(rows, int) and rows > 0):
            raise BudgetError("the checkpoint's record of the ledger is damaged", "start a new run")
        with _clear_errors():
            held = self.ledger.rows()
            charged = sum(charge.charged.steps for charge in self.ledger.charges(run=run))
        if len(held) < rows or held[rows - 1].digest != head or charged < steps_taken:
            raise BudgetError(
                f"this ledger does not hold the {steps_taken} steps that led to the checkpoint",
                "open the ledger that they were charged to; without it what they cost is unknown",
            )
        self.run = run

    def spent(self, declared_examples: int) -> PrivacySpent:
        """Return what is charged by now, uncommitted reservations in full."""
        with _clear_errors():
            events = self.ledger.spent_events(self.run)
            return PrivacySpent(
                epsilon=epsilon(self.ledger.spent_events(), self.budget.delta),
                delta=self.budget.delta,
                run_epsilon=epsilon(events, self.budget.delta),
                steps=sum(event.steps for event in events),
                noise_multipliers=self._noise_so_far(),
                sample_rate=self.sample_rate,
                clip_norm=self.clip_norm,
                declared_examples=declared_examples,
            )

    def _event(self, steps: int) -> PoissonGaussian:
        """Return `steps` steps at the planned noise."""
        if self._noise_multiplier is None:
            raise BudgetError("no noise was planned", "plan the steps before they are taken")
        return PoissonGaussian(
            noise_multiplier=self._noise_multiplier,
            sample_rate=self.sample_rate,
            steps=steps,
            clip_norm=self.clip_norm,
        )

    def _noise_so_far(self) -> tuple[float, ...]:
        """Return the noise multipliers of this run's reservations, each once, in order."""
        events = (charge.reserved for charge in self.ledger.charges(run=self.run))
        return tuple(dict.fromkeys(e.noise_multiplier for e in events if isinstance(e, PoissonGaussian)))


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Turn what accounting refuses into the error that this package reports."""
    try:
        yield
    except AccountingError as error:
        raise BudgetError(str(error)) from error
