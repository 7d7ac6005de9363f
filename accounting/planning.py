"""Epsilon target -> noise multiplier, in whole steps, before anything is spent.

A plan fixes the number of steps first and the noise second, then prices exactly the steps it plans. Deriving
steps from epochs afterwards overshoots: 7500 steps where 7499 were priced cost 3.000221 for a target of 3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, lru_cache, partial
from typing import Any

from . import canonical, losses, rdp
from .errors import PlanningError
from .events import Adjacency, PoissonGaussian, PrivateEvent
from .mechanisms import Mechanism, Parts
from .pricing import DISCRETISATION, certified_epsilon, check_delta, compose, interval, step_curve

# Of the target, at most this much (times the target, where that is below 1) is left unspent by calibration.
WINDOW = 0.005
SMALLEST_NOISE, LARGEST_NOISE = 0.05, 1e5
# Orders enough to come near.
_SCREEN = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0, 512.0)


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
    it (0.5 % where the target is below 1).

    Raises:
        PlanningError: the target is not positive, already spent, or out of reach.

    >>> 1.56 < calibrate(3.0, delta=1e-5, sample_rate=0.01, steps=10_000) < 1.57
    True
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise PlanningError(f"the target epsilon must be finite and above 0, got {target_epsilon!r}")
    if type(steps) is not int or steps < 1:
        raise PlanningError(f"a plan needs a whole number of steps, 1 or more, got {steps!r}")
    if not 0 < sample_rate <= 1:
        raise PlanningError(f"the sample rate must lie in (0, 1], got {sample_rate!r}")
    check_delta(delta)
    return _calibrate(target_epsilon, delta, sample_rate, steps, compose(spent), adjacency)


@lru_cache(maxsize=256)
def _calibrate(
    target: float, delta: float, sample_rate: float, steps: int, base: Parts, adjacency: Adjacency
) -> float:
    """RDP comes near, our own losses on a coarse grid narrow, dp-accounting's PLD decides, once or seldom more."""
    gaussian = _gaussian_only(base)
    window = WINDOW * min(1.0, target)
    if base and certified_epsilon(base, delta) > target - window:
        raise PlanningError(
            f"epsilon {certified_epsilon(base, delta):.4f} is spent: no room below {target:g}"
        )

    def parts(noise_multiplier: float) -> Parts:
        return (*base, (Mechanism(noise_multiplier, sample_rate, adjacency), steps))

    def screened(noise_multiplier: float) -> float:
        return rdp.epsilon(parts(noise_multiplier), delta, _SCREEN if gaussian else rdp.ORDERS)

    noise = _search(screened, target, window=0.02 * target if gaussian else window, guess=1.0)
    if not gaussian:
        return noise
    noise, narrowed = _narrow(parts, target, delta, noise)
    shift = losses.fast_epsilon(_all_gaussian(parts(noise)), delta, interval(parts(noise), delta)) - narrowed(
        noise
    )
    for _ in range(8):
        # The certifying grid rounds up less than the coarse one, by nearly as much everywhere near here.
        noise = _search(narrowed, target - shift - 0.2 * window, window=0.4 * window, guess=noise)
        certified = step_curve(base, Mechanism(noise, sample_rate, adjacency), delta).epsilon(steps)
        if target - window <= certified <= target:
            return noise
        shift = certified - narrowed(noise)
    raise PlanningError(f"no noise multiplier was found for epsilon {target:g}: change target or steps")


def _narrow(
    parts: Callable[[float], Parts], target: float, delta: float, guess: float
) -> tuple[float, Callable[[float], float]]:
    """A noise multiplier priced a few percent above the target, and the price on a coarse grid that suits it."""

    @cache
    def price(noise_multiplier: float, grid: float) -> float:
        return losses.fast_epsilon(_all_gaussian(parts(noise_multiplier)), delta, grid)

    noise = 0.95 * guess
    # Where RDP is loose its guess is far off, and so is the grid that suits it: approach, then choose again.
    for share in (0.4, 0.1):
        on_grid = partial(price, grid=_coarse_grid(parts(noise)))
        noise = _search(on_grid, (1 + share / 2) * target, window=share * target, guess=noise)
    return noise, partial(price, grid=_coarse_grid(parts(noise)))


def _coarse_grid(parts: Parts) -> float:
    """The grid to search on, not below the certifying one.

    An eighth of one step's typical loss, or ten thousand points over the losses up to ten standard deviations.
    """
    mechanism, _ = _all_gaussian(parts)[-1]
    noise, sample_rate, _ = mechanism
    typical_loss = sample_rate * math.sqrt(math.expm1(min(noise**-2, 2.0)))
    largest_loss = math.log(sample_rate) + (0.5 + 10 * noise) / noise**2
    return DISCRETISATION * max(1, int(max(typical_loss / 8, largest_loss / 10_000) / DISCRETISATION))


def _gaussian_only(parts: Parts) -> bool:
    """Whether PLD can price all that is spent, and so the whole."""
    return all(isinstance(mechanism, Mechanism) for mechanism, _ in parts)


def _all_gaussian(parts: Parts) -> list[tuple[Mechanism, int]]:
    """The parts that PLD can price."""
    return [(mechanism, steps) for mechanism, steps in parts if isinstance(mechanism, Mechanism)]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one client will run, priced before it runs.

    `declared_examples` is the public size that sampling and delta rest on, not a count taken from the data.
    `retry_rounds` are rounds that may be run again; they are calibrated in, so `planned_steps` counts them.
    """

    client_id: str
    declared_examples: int
    planned_batch_size: float
    sample_rate: float
    rounds: int
    retry_rounds: int
    steps_per_round: int
    clip_norm: float
    noise_multiplier: float
    target_epsilon: float
    delta: float
    adjacency: Adjacency = "add-remove"
    sampler: str = "poisson"

    @property
    def planned_steps(self) -> int:
        """The most steps that this plan may take, retries included."""
        return (self.rounds + self.retry_rounds) * self.steps_per_round

    def round_event(self) -> PoissonGaussian:
        """What one round reserves."""
        return PoissonGaussian(
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=self.steps_per_round,
            clip_norm=self.clip_norm,
            adjacency=self.adjacency,
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as the report states it, `planned_steps` included."""
        return {**asdict(self), "planned_steps": self.planned_steps}

    def digest(self) -> str:
        """SHA-256 (hex) of the plan as the report states it; clients write it into each reservation."""
        return plan_digest(self.to_json())


def plan_digest(stated: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a plan in a report; that of `Plan.digest` if nothing was edited."""
    return hashlib.sha256(b"fedlora-priv/plan/1\0" + canonical.dumps(dict(stated)).encode()).hexdigest()


def plan(
    *,
    client_id: str,
    target_epsilon: float,
    delta: float,
    declared_examples: int,
    planned_batch_size: float,
    rounds: int,
    steps_per_round: int,
    clip_norm: float,
    retry_rounds: int = 0,
    spent: Iterable[PrivateEvent] = (),
    adjacency: Adjacency = "add-remove",
) -> Plan:
    """One client's plan, calibrated for all its rounds and retries, after what its ledger has `spent`.

    Raises:
        PlanningError: delta is 1/n or more, the batch is larger than the data, or the target is out of reach.
    """
    require_delta_below(delta, declared_examples)
    if not 0 < planned_batch_size <= declared_examples:
        raise PlanningError(
            f"{client_id}: the planned batch must lie in (0, {declared_examples}], got {planned_batch_size!r}"
        )
    if rounds < 1 or steps_per_round < 1 or retry_rounds < 0:
        raise PlanningError(f"{client_id}: needs rounds >= 1, steps_per_round >= 1 and retry_rounds >= 0")
    sample_rate = planned_batch_size / declared_examples
    steps = (rounds + retry_rounds) * steps_per_round
    noise = calibrate(target_epsilon, delta, sample_rate, steps, spent=spent, adjacency=adjacency)
    return Plan(
        client_id=client_id,
        declared_examples=declared_examples,
        planned_batch_size=float(planned_batch_size),
        sample_rate=sample_rate,
        rounds=rounds,
        retry_rounds=retry_rounds,
        steps_per_round=steps_per_round,
        clip_norm=float(clip_norm),
        noise_multiplier=noise,
        target_epsilon=float(target_epsilon),
        delta=delta,
        adjacency=adjacency,
    )


def require_delta_below(delta: float, declared_examples: int) -> None:
    """Raise PlanningError unless delta < 1/n: at 1/n, publishing one whole example at random is allowed."""
    if type(declared_examples) is not int or declared_examples < 1:
        raise PlanningError(f"declared_examples must be a whole number, 1 or more, got {declared_examples!r}")
    if not 0 < delta < 1 / declared_examples:
        raise PlanningError(
            f"delta {delta:g} must be below 1/n = {1 / declared_examples:.3g}, for n = {declared_examples}"
        )
