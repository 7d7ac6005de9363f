"""Epsilon target -> noise multiplier: the search, and its certificate.

RDP comes near in milliseconds; our own loss distributions on a coarse grid come closer; one evaluation of theirs
on the certifying grid says how much that differs; then dp-accounting's PLD certifies, as a rule once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache, lru_cache, partial
from typing import NamedTuple

from . import losses, rdp
from .errors import PlanningError
from .events import Adjacency, PrivateEvent
from .mechanisms import Mechanism, Parts, compose
from .pricing import DISCRETISATION, certified_epsilon, check_delta, interval, step_curve

# Of the target, at most this much (times the target, where that is below 1) is left unspent by calibration.
WINDOW = 0.005
SMALLEST_NOISE, LARGEST_NOISE = 0.05, 1e5
# Orders enough to come near.
_SCREEN = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 512.0)


class Estimate(NamedTuple):
    """A noise multiplier, and the epsilon that it is expected to be certified at."""

    noise_multiplier: float
    epsilon: float


def calibrate(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    *,
    spent: Iterable[PrivateEvent] = (),
    adjacency: Adjacency = "add-remove",
) -> float:
    """The noise multiplier at which `steps` Poisson-sampled steps, after what is `spent`, meet the target.

    Guarantee: PLD at discretisation 1e-4 prices the result at most at `target_epsilon`, and within 0.005 of
    it (0.5 % where the target is below 1). Where `spent` holds what PLD cannot price, RDP prices it instead.

    Raises:
        PlanningError: the target is not positive, already spent, or out of reach.

    >>> 1.56 < calibrate(3.0, delta=1e-5, sample_rate=0.01, steps=10_000) < 1.57
    True
    """
    return _calibrate(_task(target_epsilon, delta, sample_rate, steps, spent, adjacency))


def estimate(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    *,
    spent: Iterable[PrivateEvent] = (),
    adjacency: Adjacency = "add-remove",
) -> Estimate:
    """What `calibrate` would return, several times sooner, because nothing is certified.

    The same figure, but where the first certificate falls outside the window and moves the noise a little. For
    comparing plans, never for running one. Raises PlanningError, as `calibrate` does.
    """
    task = _task(target_epsilon, delta, sample_rate, steps, spent, adjacency)
    noise, price, shift = _approach(task)
    return Estimate(noise, price(noise) + shift)


class _Task(NamedTuple):
    """What is calibrated; `base` is what is spent."""

    target: float
    delta: float
    sample_rate: float
    steps: int
    base: Parts
    adjacency: Adjacency

    @property
    def window(self) -> float:
        """How far below the target the result may lie."""
        return WINDOW * min(1.0, self.target)

    @property
    def gaussian(self) -> bool:
        """Whether PLD can price all that is spent, and so the whole."""
        return all(isinstance(mechanism, Mechanism) for mechanism, _ in self.base)

    def mechanism(self, noise_multiplier: float) -> Mechanism:
        """One step at this noise."""
        return Mechanism(noise_multiplier, self.sample_rate, self.adjacency)

    def parts(self, noise_multiplier: float) -> Parts:
        """What is spent, and all steps at this noise."""
        return (*self.base, (self.mechanism(noise_multiplier), self.steps))

    def fast_epsilon(self, noise_multiplier: float, grid: float) -> float:
        """The price by our own loss distributions, on a grid."""
        parts = [(step, count) for step, count in self.parts(noise_multiplier) if isinstance(step, Mechanism)]
        return losses.fast_epsilon(parts, self.delta, grid)


def _task(
    target: float,
    delta: float,
    sample_rate: float,
    steps: int,
    spent: Iterable[PrivateEvent],
    adjacency: Adjacency,
) -> _Task:
    """The task, if it makes sense."""
    if not (math.isfinite(target) and target > 0):
        raise PlanningError(f"the target epsilon must be finite and above 0, got {target!r}")
    if type(steps) is not int or steps < 1:
        raise PlanningError(f"a plan needs a whole number of steps, 1 or more, got {steps!r}")
    if not 0 < sample_rate <= 1:
        raise PlanningError(f"the sample rate must lie in (0, 1], got {sample_rate!r}")
    task = _Task(target, delta, sample_rate, steps, compose(spent), adjacency)
    check_delta(delta, "pld" if task.gaussian else "rdp")
    return task


@lru_cache(maxsize=256)
def _calibrate(task: _Task) -> float:
    """The estimate, corrected until it is certified."""
    noise, price, _ = _approach(task)
    for _ in range(8):
        certified = step_curve(task.base, task.mechanism(noise), task.delta).epsilon(task.steps)
        if task.target - task.window <= certified <= task.target:
            return noise
        noise = _aim(task, price, certified - price(noise), noise)
    raise PlanningError(f"no noise multiplier was found for epsilon {task.target:g}: change target or steps")


@lru_cache(maxsize=256)
def _approach(task: _Task) -> tuple[float, Callable[[float], float], float]:
    """A noise multiplier, a cheap price, and what that lacks to the certifying price near there."""
    if task.base and (spent := certified_epsilon(task.base, task.delta)) > task.target - task.window:
        raise PlanningError(f"epsilon {spent:.4f} is spent: no room below {task.target:g}")
    orders = _SCREEN if task.gaussian else rdp.ORDERS

    def screened(noise_multiplier: float) -> float:
        return rdp.epsilon(task.parts(noise_multiplier), task.delta, orders)

    if not task.gaussian:
        return _aim(task, screened, 0.0, 1.0), screened, 0.0
    if screened(LARGEST_NOISE) < task.target:
        noise = 0.95 * _search(screened, task.target, window=0.02 * task.target, guess=1.0)
    else:  # at a finite order RDP has a floor, whatever the noise: begin with a Gaussian's rule of thumb
        noise = task.sample_rate * math.sqrt(2 * task.steps * math.log(1 / task.delta)) / task.target
    on_grid = cache(task.fast_epsilon)
    # Where RDP is loose its guess is far off, and so is the grid that suits it: approach, then choose again.
    for share in (0.4, 0.1):
        price = partial(on_grid, grid=_coarse_grid(task.mechanism(noise)))
        noise = _search(price, (1 + share / 2) * task.target, window=share * task.target, guess=noise)
    price = partial(on_grid, grid=_coarse_grid(task.mechanism(noise)))
    # The certifying grid rounds up less than the coarse one, by nearly as much everywhere near here.
    shift = task.fast_epsilon(noise, interval(task.parts(noise), task.delta)) - price(noise)
    return _aim(task, price, shift, noise), price, shift


def _aim(task: _Task, price: Callable[[float], float], shift: float, guess: float) -> float:
    """The noise multiplier whose price and shift together meet the middle of the window."""
    aim = task.target - shift - 0.2 * task.window
    return _search(price, aim, window=0.4 * task.window, guess=guess)


def _coarse_grid(mechanism: Mechanism) -> float:
    """The grid to search on, not below the certifying one.

    An eighth of one step's typical loss, at most .01, or ten thousand points over all losses if that is wider.
    """
    noise, sample_rate, _ = mechanism
    typical_loss = sample_rate * math.sqrt(math.expm1(min(noise**-2, 2.0)))
    largest_loss = math.log(sample_rate) + (0.5 + 10 * noise) / noise**2
    return DISCRETISATION * max(
        1, int(max(min(typical_loss / 8, 0.01), largest_loss / 10_000) / DISCRETISATION)
    )


def _search(price: Callable[[float], float], target: float, *, window: float, guess: float) -> float:
    """A noise multiplier priced in [target - window, target]: secants in log-log, kept in a bracket."""
    low, high = math.log(SMALLEST_NOISE), math.log(LARGEST_NOISE)
    aim, at, slope = math.log(target - window / 2), math.log(guess), -1.2
    last: tuple[float, float] | None = None
    for _ in range(60):
        # Rounded up, so that the number in a report is short; priced as rounded.
        noise = math.ceil(math.exp(at) * 1e6) / 1e6
        cost = price(noise)
        if target - window <= cost <= target:
            return noise
        low, high = (max(low, at), high) if cost > target else (low, min(high, at))
        excess = min(max(math.log(max(cost, 1e-300)) - aim, -5.0), 5.0)
        if last and last[0] != at and (last[1] - excess) / (last[0] - at) < 0:
            slope = (last[1] - excess) / (last[0] - at)
        last, proposal = (at, excess), at + min(max(-excess / slope, -0.5), 0.5)
        at = proposal if low < proposal < high else (low + high) / 2
    raise PlanningError(
        f"no noise multiplier in [{SMALLEST_NOISE:g}, {LARGEST_NOISE:g}] meets epsilon {target:g}: "
        "change the target, the steps or the sample rate"
    )
