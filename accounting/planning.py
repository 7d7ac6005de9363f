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

from . import canonical, rdp
from .errors import PlanningError
from .events import Adjacency, PoissonGaussian, PrivateEvent
from .pricing import DISCRETISATION, check_delta, compose, pld_epsilon, step_curve
from .rdp import Mechanism, Parts

# Of the target, at most this much (times the target, where that is below 1) is left unspent by calibration.
WINDOW = 0.005
SMALLEST_NOISE, LARGEST_NOISE = 0.05, 1e5


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
    """RDP brackets, a coarse PLD narrows, the certifying PLD decides."""
    window = WINDOW * min(1.0, target)
    if base and pld_epsilon(base, delta) > target - window:
        raise PlanningError(f"epsilon {pld_epsilon(base, delta):.4f} is spent: no room below {target:g}")

    def mechanism(noise_multiplier: float) -> Mechanism:
        return Mechanism(noise_multiplier, sample_rate, adjacency)

    def screened(noise_multiplier: float) -> float:
        return rdp.epsilon((*base, (mechanism(noise_multiplier), steps)), delta)

    @cache
    def narrowed(noise_multiplier: float, coarseness: int) -> float:
        return pld_epsilon((*base, (mechanism(noise_multiplier), steps)), delta, coarseness)

    noise, shift = 0.95 * _search(screened, target, window=0.02 * target, guess=1.0), 0.0
    # Where RDP is loose its guess is far off, and so is the grid that suits it: approach, then choose again.
    for share in (0.4, 0.1):
        price = partial(narrowed, coarseness=_coarseness(mechanism(noise)))
        noise = _search(price, (1 + share / 2) * target, window=share * target, guess=noise)
    price = partial(narrowed, coarseness=_coarseness(mechanism(noise)))
    for _ in range(8):
        noise = _search(price, target + shift - 0.2 * window, window=0.4 * window, guess=noise)
        certified = step_curve(base, mechanism(noise), delta).epsilon(steps)
        if target - window <= certified <= target:
            return noise
        shift = price(noise) - certified  # the wider grid rounds up more: let it aim higher by that much
    raise PlanningError(f"no noise multiplier was found for epsilon {target:g}: change target or steps")


def _coarseness(mechanism: Mechanism) -> int:
    """How much wider the search's grid may be than the certifying one.

    An eighth of one step's typical loss, or ten thousand points over the losses up to ten standard deviations.
    """
    noise, sample_rate, _ = mechanism
    typical_loss = sample_rate * math.sqrt(math.expm1(min(noise**-2, 2.0)))
    largest_loss = math.log(sample_rate) + (0.5 + 10 * noise) / noise**2
    return max(1, int(max(typical_loss / 8, largest_loss / 10_000) / DISCRETISATION))


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
