"""Events -> epsilon at delta.

Two accountants, both upper bounds:

- `pld` certifies: privacy loss distributions (dp-accounting, pessimistic, discretisation 1e-4). It prices
  Gaussians on the whole data set and on Poisson samples, and nothing else;
- `rdp` screens: our own formulas (`rdp.py`), looser and far cheaper, for every mechanism.

Unless one is asked for, `pld` prices where it can price all of the events, else `rdp` all of them: one figure
has one accountant, and `accountant_for` names it.

Central-limit ("GDP") approximations are absent on purpose: they under-report.

Any list of events reduces to `Parts`: how many steps of which mechanisms (`mechanisms.py`). Per-step
distributions are cached, and k steps are one power in Fourier space, not k convolutions. Epsilon grows with
steps, so one certified point covers every smaller number of steps: that is what `StepCurve` remembers, and why
a running check costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Literal

from . import rdp
from .errors import PricingError
from .events import Event
from .losses import largest_loss
from .mechanisms import AnyMechanism, Mechanism, Parts, compose, counted, together

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Accountant = Literal["pld", "rdp"]
DISCRETISATION = 1e-4
# Below it the round-off of the Fourier transforms (~1e-16 a point, ~1e6 points) is no longer negligible.
SMALLEST_PLD_DELTA = 1e-9
# A power of a transform multiplies its round-off by the steps. Against transforms in 64-bit mantissas delta was off
# by up to 1.25 * 2^-53 a step, either way; three times that is charged to delta.
_ROUND_OFF = 2.0**-51


def accountant_for(events: Iterable[Event]) -> Accountant:
    """The accountant that prices these events where none is asked for."""
    return _accountant(compose(events))


def _accountant(parts: Parts) -> Accountant:
    """PLD if it can price every part."""
    return "pld" if all(isinstance(mechanism, Mechanism) for mechanism, _ in parts) else "rdp"


def epsilon(events: Iterable[Event], delta: float, accountant: Accountant | None = None) -> float:
    """Epsilon at `delta` of all the events together; 0.0 for none.

    Guarantee: never below the true epsilon, under the adjacency, unit and views that the events state, for
    mechanisms that may be chosen from earlier results as long as their parameters are not.

    Raises:
        PricingError: see `compose`; delta outside (0, 1), too small for PLD, or used up by rounding bounds; or
            PLD was asked for and cannot price one of the events.

    >>> from accounting.events import Gaussian
    >>> round(epsilon([Gaussian(noise_multiplier=10.0, steps=100, clip_norm=1.0)], delta=1e-5), 3)
    4.377
    """
    parts = compose(events)
    accountant = accountant or _accountant(parts)
    check_delta(delta, accountant)
    if accountant == "rdp":
        return rdp.epsilon(parts, delta)
    if _accountant(parts) == "rdp":
        raise PricingError("PLD prices Gaussians on all data or on Poisson samples only: use 'rdp'")
    if not parts:
        return 0.0
    *base, (mechanism, steps) = parts
    return step_curve(tuple(base), mechanism, delta).epsilon(steps)


def delta_of(events: Iterable[Event], epsilon: float) -> float:
    """Delta at `epsilon` of all the events together, by the accountant that prices them; 0.0 for none."""
    parts = compose(events)
    if not parts:
        return 0.0
    if _accountant(parts) == "rdp":
        return rdp.delta(parts, epsilon)
    return min(1.0, float(distribution(parts).get_delta_for_epsilon(epsilon)) + round_off(parts))


def running_bound(events: Iterable[Event], delta: float) -> float:
    """An upper bound on epsilon at `delta` without any new PLD work: for a progress line, not for a claim.

    The smaller of RDP and the PLD points this process has certified at as many steps or more.
    """
    running = RunningBound(delta)
    for event in events:
        running.add(event)
    return running.epsilon


class RunningBound:
    """As `running_bound`, for a history that grows: an event is added in microseconds."""

    def __init__(self, delta: float) -> None:
        check_delta(delta, "rdp")
        self._delta = delta
        self._steps: dict[AnyMechanism, int] = {}

    def add(self, event: Event) -> None:
        """Take in one more event."""
        mechanism, steps = counted(event)
        self._steps[mechanism] = self._steps.get(mechanism, 0) + steps

    @property
    def epsilon(self) -> float:
        """The bound for all events so far. Raises PricingError where they do not compose."""
        parts = together(self._steps)
        if not parts:
            return 0.0
        bound = rdp.epsilon(parts, self._delta)
        if _accountant(parts) == "rdp":
            return bound
        *base, (mechanism, steps) = parts
        return min(bound, step_curve(tuple(base), mechanism, self._delta).known_bound(steps))


def check_delta(delta: float, accountant: Accountant = "pld") -> None:
    """Raise PricingError unless `accountant` can price at this delta."""
    if accountant not in ("pld", "rdp"):
        raise PricingError(f"accountant must be 'pld' or 'rdp', got {accountant!r}")
    if not 0 < delta < 1:
        raise PricingError(f"delta must lie strictly between 0 and 1, got {delta!r}")
    if accountant == "pld" and delta < SMALLEST_PLD_DELTA:
        raise PricingError(f"delta {delta:g} is below {SMALLEST_PLD_DELTA:g}, PLD's round-off: use 'rdp'")


class StepCurve:
    """Certified epsilon at delta against the steps of one mechanism, on top of a fixed `base` of others.

    Points are computed when first asked for and kept; `within` answers most questions from monotonicity.
    """

    def __init__(self, base: Parts, mechanism: AnyMechanism, delta: float) -> None:
        check_delta(delta, _accountant((*base, (mechanism, 1))))
        self.base, self.mechanism, self.delta = base, mechanism, delta
        self._points: dict[int, float] = {}

    def epsilon(self, steps: int) -> float:
        """Certified epsilon at `steps` steps."""
        if steps not in self._points:
            self._points[steps] = certified_epsilon(self._parts(steps), self.delta)
        return self._points[steps]

    def known_bound(self, steps: int) -> float:
        """The smallest certified epsilon at this many steps or more; infinity if none is known."""
        return min((value for at, value in self._points.items() if at >= steps), default=math.inf)

    def within(self, steps: int, limit: float) -> bool:
        """Whether `steps` steps are certified to cost at most `limit`.

        RDP accepts cheaply. Beyond its reach the exact last affordable step is found, once.
        """
        if self.known_bound(steps) <= limit or self.within_rdp(steps, limit):
            return True
        if any(at <= steps and value > limit for at, value in self._points.items()):
            return False
        return steps <= self.affordable_steps(limit)

    def affordable_steps(self, limit: float) -> int:
        """The largest number of steps certified to cost at most `limit`; 0 if there is none."""
        low, high = self._bracket(limit)
        while high - low > 1:
            middle = self._between(low, high, limit)
            if self.epsilon(middle) <= limit:
                low = middle
            else:
                high = middle
        return low

    def _bracket(self, limit: float) -> tuple[int, int]:
        """Steps that fit and steps that do not, from what is known, from RDP, then by stepping outwards."""
        low = max((at for at, value in self._points.items() if value <= limit), default=0)
        low = max(low, self._rdp_steps(limit))
        over = [at for at, value in self._points.items() if value > limit]
        high = min(over, default=low + low // 8 + 1)
        while self.epsilon(high) <= limit:
            low, high = high, 2 * high
        return low, high

    def _rdp_steps(self, limit: float) -> int:
        """A number of steps that RDP affords: the last one, up to a factor of 2^-10."""
        low, high = 0, 1
        while self.within_rdp(high, limit):
            low, high = high, 2 * high
        while high - low > 1 + low // 1024:
            middle = (low + high) // 2
            low, high = (middle, high) if self.within_rdp(middle, limit) else (low, middle)
        return low

    def within_rdp(self, steps: int, limit: float) -> bool:
        """Whether RDP alone shows that `steps` steps cost at most `limit`."""
        return rdp.epsilon(self._parts(steps), self.delta) <= limit

    def _between(self, low: int, high: int, limit: float) -> int:
        """The next step to try: where the log-log chord meets the limit, but never far off one end."""
        if low == 0:
            return (low + high) // 2
        bottom, top = self.epsilon(low), self.epsilon(high)
        share = math.log(limit / bottom) / math.log(top / bottom) if 0 < bottom < top < math.inf else 0.5
        guess = int(low * math.pow(high / low, share))
        return min(max(guess, low + 1), high - 1)

    def _parts(self, steps: int) -> Parts:
        """The base with this many steps on top."""
        return (*self.base, (self.mechanism, steps)) if steps else self.base


@lru_cache(maxsize=4096)
def step_curve(base: Parts, mechanism: AnyMechanism, delta: float) -> StepCurve:
    """The process-wide curve of a mechanism on a base at delta, so that planning warms up the budget."""
    return StepCurve(base, mechanism, delta)


def certified_epsilon(parts: Parts, delta: float) -> float:
    """Epsilon at delta by PLD if it can price all parts, else by RDP."""
    return pld_epsilon(parts, delta) if _accountant(parts) == "pld" else rdp.epsilon(parts, delta)


def pld_epsilon(parts: Parts, delta: float) -> float:
    """PLD epsilon at delta of parts that are all Gaussian, after the transforms' round-off is charged to delta.

    Where that would take more than half of delta (a million steps at 1e-9), it is RDP's: above the truth as well.
    """
    if not parts:
        return 0.0
    if (left := delta - round_off(parts)) < delta / 2:
        return rdp.epsilon(parts, delta)
    return float(_composed(parts, interval(parts, delta)).get_epsilon_for_delta(left))


def round_off(parts: Parts) -> float:
    """How far below the truth round-off may have put any delta of the parts' composed distribution."""
    return _ROUND_OFF * sum(steps for _, steps in parts)


def distribution(parts: Parts) -> PrivacyLossDistribution:
    """The privacy loss distribution of all the parts together, which must be Gaussian and not empty."""
    return _composed(parts, interval(parts, SMALLEST_PLD_DELTA))


def interval(parts: Parts, delta: float) -> float:
    """The discretisation: 1e-4, coarser by tens where memory and time would explode.

    That is from epsilon 100 on, and where one step's losses reach beyond 35 (with a noise multiplier below .35).
    """
    reach = max(largest_loss(mechanism) for mechanism, _ in parts if isinstance(mechanism, Mechanism))
    size = max(rdp.epsilon(parts, delta) / 100, reach / 35)
    return DISCRETISATION * float(10 ** max(0, math.ceil(math.log10(size)) if size > 1 else 0))


@lru_cache(maxsize=8)
def _composed(parts: Parts, grid: float) -> PrivacyLossDistribution:
    """The distribution on a grid: every mechanism to the power of its steps, convolved."""
    powers = [_single_step(mechanism, grid).self_compose(steps) for mechanism, steps in parts]
    return reduce(lambda one, other: one.compose(other), powers)


@lru_cache(maxsize=32)
def _single_step(mechanism: AnyMechanism, grid: float) -> PrivacyLossDistribution:
    """The privacy loss distribution of one step, rounded up on a grid."""
    if not isinstance(mechanism, Mechanism):
        raise PricingError(f"PLD has no price for {mechanism.kind}: use 'rdp'")
    # dp-accounting takes seconds to import: only those who price by PLD pay for it.
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    build: Callable[..., PrivacyLossDistribution] = privacy_loss_distribution.from_gaussian_mechanism
    relation = NeighboringRelation.REPLACE_ONE if mechanism.adjacency == "replace-one" else None
    return build(
        standard_deviation=mechanism.noise_multiplier,
        sampling_prob=mechanism.sample_rate,
        value_discretization_interval=grid,
        neighboring_relation=relation or NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
