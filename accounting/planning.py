"""A client's plan: whole steps first, then the noise that they cost, before anything is spent.

A plan fixes the number of steps first and the noise second, then prices exactly the steps it plans. Deriving
steps from epochs afterwards overshoots: 7500 steps where 7499 were priced cost 3.000221 for a target of 3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import canonical
from .adaptive_clip import AdaptiveClip
from .calibration import calibrate
from .errors import PlanningError
from .events import AdaptiveClipPoissonGaussian, Adjacency, PoissonGaussian, PrivateEvent
from .pricing import epsilon

ClientEvent = PoissonGaussian | AdaptiveClipPoissonGaussian
"""What a client that follows a plan releases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one client will run, priced before it runs.

    `declared_examples` is the public size that sampling and delta rest on, not a count taken from the data.
    `retry_rounds` are rounds that may be run again; they are calibrated in, so `planned_steps` counts them.
    `noise_multiplier` is that of the gradients. With `adaptive_clip` each step releases a noised count besides,
    `clip_norm` is where the clip norm begins, and the price is that of gradients and counts together.
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
    adaptive_clip: AdaptiveClip | None = None

    @property
    def planned_steps(self) -> int:
        """The most steps that this plan may take, retries included."""
        return (self.rounds + self.retry_rounds) * self.steps_per_round

    def round_event(self, clip_norm: float | None = None) -> ClientEvent:
        """What one round reserves; `clip_norm` is where an adaptive one has got to, if it is not the plan's."""
        stated: dict[str, Any] = {
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self.sample_rate,
            "steps": self.steps_per_round,
            "clip_norm": self.clip_norm if clip_norm is None else clip_norm,
            "adjacency": self.adjacency,
        }
        if self.adaptive_clip is None:
            return PoissonGaussian(**stated)
        return AdaptiveClipPoissonGaussian(**stated, count_noise_stddev=self.adaptive_clip.count_noise_stddev)

    def to_json(self) -> dict[str, Any]:
        """The plan as the report states it, `planned_steps` included; a fixed clip norm has no `adaptive_clip`."""
        stated = {**asdict(self), "planned_steps": self.planned_steps}
        if self.adaptive_clip is None:
            del stated["adaptive_clip"]
        return stated

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Plan:
        """The plan that a report states; its `planned_steps`, which follow from the rest, are left out.

        Raises:
            PlanningError: it has other fields than a plan has.
        """
        values = {name: value for name, value in stated.items() if name != "planned_steps"}
        try:
            if isinstance(adaptive := values.get("adaptive_clip"), Mapping):
                values["adaptive_clip"] = AdaptiveClip(**adaptive)
            return cls(**values)
        except TypeError as error:
            raise PlanningError(f"not the fields of a plan: {error}") from error

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
    adaptive_clip: AdaptiveClip | None = None,
) -> Plan:
    """One client's plan, calibrated for all its rounds and retries, after what its ledger has `spent`.

    With `adaptive_clip` the calibrated noise is divided between gradients and counts, and what is really added
    to both is priced once more.

    Raises:
        PlanningError: delta is 1/n or more, the batch is larger than the data, or the target is out of reach.
    """
    require_delta_below(delta, declared_examples)
    if not 0 < planned_batch_size <= declared_examples:
        raise PlanningError(
            f"{client_id}: the planned batch must lie in (0, {declared_examples}], got {planned_batch_size!r}; lower it"
        )
    if rounds < 1 or steps_per_round < 1 or retry_rounds < 0:
        raise PlanningError(f"{client_id}: needs rounds >= 1, steps_per_round >= 1 and retry_rounds >= 0")
    sample_rate = planned_batch_size / declared_examples
    steps = (rounds + retry_rounds) * steps_per_round
    spent = tuple(spent)
    noise = calibrate(target_epsilon, delta, sample_rate, steps, spent=spent, adjacency=adjacency)
    made = Plan(
        client_id=client_id,
        declared_examples=declared_examples,
        planned_batch_size=float(planned_batch_size),
        sample_rate=sample_rate,
        rounds=rounds,
        retry_rounds=retry_rounds,
        steps_per_round=steps_per_round,
        clip_norm=float(clip_norm),
        noise_multiplier=noise if adaptive_clip is None else adaptive_clip.gradient_noise(noise),
        target_epsilon=float(target_epsilon),
        delta=delta,
        adjacency=adjacency,
        adaptive_clip=adaptive_clip,
    )
    if adaptive_clip is not None:
        _check_adaptive(made, adaptive_clip, spent)
    return made


def _check_adaptive(made: Plan, adaptive_clip: AdaptiveClip, spent: tuple[PrivateEvent, ...]) -> None:
    """Raise PlanningError unless the clip norm begins in its range and the split noise meets the target."""
    low, high = adaptive_clip.smallest_clip_norm, adaptive_clip.largest_clip_norm
    if not low <= made.clip_norm <= high:
        raise PlanningError(
            f"{made.client_id}: the clip norm begins at {made.clip_norm:g}, outside [{low:g}, {high:g}]"
        )
    cost = epsilon((*spent, replace(made.round_event(), steps=made.planned_steps)), made.delta)
    if cost > made.target_epsilon:
        raise PlanningError(
            f"{made.client_id}: gradients and counts together cost {cost:.6f}, above {made.target_epsilon:g}"
        )


def require_delta_below(delta: float, declared_examples: int) -> None:
    """Raise PlanningError unless delta < 1/n: at 1/n, publishing one whole example at random is allowed."""
    if type(declared_examples) is not int or declared_examples < 1:
        raise PlanningError(f"declared_examples must be a whole number, 1 or more, got {declared_examples!r}")
    if not 0 < delta < 1 / declared_examples:
        raise PlanningError(
            f"delta {delta:g} must be below 1/n = {1 / declared_examples:.3g}, for n = {declared_examples}"
        )
