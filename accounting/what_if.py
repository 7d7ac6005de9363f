"""What if: how much noise other numbers of rounds, batches, participation and targets would take.

Nothing is reserved and nothing certified; a plan with the same numbers would find the same noise and certify it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from .calibration import estimate
from .errors import PlanningError
from .events import PrivateEvent
from .planning import Plan


@dataclass(frozen=True, slots=True)
class Row:
    """One answer for one client.

    `participation` is the share of rounds that the client takes part in, known beforehand: rosters are public,
    so it saves steps and amplifies nothing. `mean_noise_stddev` is the noise's standard deviation on each
    coordinate of a step's mean gradient, in the unit of measure of the clip norm: what accuracy suffers from; with
    adaptive clipping both are of the gradients, while the clip norm is where it begins. `epsilon`
    is what the steps, retries included, are expected to be certified at. All None where the target is out of
    reach, and `problem` says why.
    """

    rounds: int
    planned_batch_size: float
    participation: float
    target_epsilon: float
    steps: int
    sample_rate: float
    noise_multiplier: float | None
    mean_noise_stddev: float | None
    epsilon: float | None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object."""
        return asdict(self)


def what_if(
    plan: Plan,
    *,
    rounds: Sequence[int] | None = None,
    planned_batch_sizes: Sequence[float] | None = None,
    participations: Sequence[float] = (1.0,),
    target_epsilons: Sequence[float] | None = None,
    spent: Iterable[PrivateEvent] = (),
) -> tuple[Row, ...]:
    """One row for every combination of the alternatives to a client's plan; what is not given stays.

    Some tens to hundreds of milliseconds a row.

    Raises:
        PlanningError: an alternative that makes no sense, such as a batch larger than the data.
    """
    spent = tuple(spent)
    rows = []
    for number, batch, participation, target in product(
        rounds or (plan.rounds,),
        planned_batch_sizes or (plan.planned_batch_size,),
        participations,
        target_epsilons or (plan.target_epsilon,),
    ):
        _check(plan, number, batch, participation)
        taken = math.ceil(participation * number - 1e-9) + plan.retry_rounds
        row = Row(
            rounds=number,
            planned_batch_size=float(batch),
            participation=float(participation),
            target_epsilon=float(target),
            steps=taken * plan.steps_per_round,
            sample_rate=batch / plan.declared_examples,
            noise_multiplier=None,
            mean_noise_stddev=None,
            epsilon=None,
        )
        rows.append(_answer(plan, row, spent))
    return tuple(rows)


def around(plan: Plan, spent: Iterable[PrivateEvent] = ()) -> tuple[Row, ...]:
    """The plan itself, then it with more and fewer rounds at three targets, then other batches and participation.

    Halves and doubles, where they make sense.
    """
    spent = tuple(spent)
    targets = [plan.target_epsilon * factor for factor in (0.5, 1, 2)]
    numbers = sorted({max(1, round(plan.rounds * factor)) for factor in (0.25, 0.5, 1, 2, 4)})
    batches = [plan.planned_batch_size * factor for factor in (0.5, 2, 4)]
    batches = [batch for batch in batches if 1 <= batch <= plan.declared_examples]
    shares = [share for share in (0.5, 0.25) if plan.rounds * share >= 1]
    rows = what_if(plan, spent=spent)
    rows += what_if(plan, rounds=numbers, target_epsilons=targets, spent=spent)
    rows += what_if(plan, planned_batch_sizes=batches, spent=spent) if batches else ()
    rows += what_if(plan, participations=shares, spent=spent) if shares else ()
    return tuple(dict.fromkeys(rows))


def _answer(plan: Plan, row: Row, spent: tuple[PrivateEvent, ...]) -> Row:
    """The row with its noise, or with the reason why there is none."""
    try:
        found = estimate(
            row.target_epsilon,
            plan.delta,
            row.sample_rate,
            row.steps,
            spent=spent,
            adjacency=plan.adjacency,
        )
        noise = found.noise_multiplier
        if plan.adaptive_clip is not None:
            noise = plan.adaptive_clip.gradient_noise(noise)
    except PlanningError as error:
        return replace(row, problem=str(error))
    return replace(
        row,
        noise_multiplier=noise,
        mean_noise_stddev=noise * plan.clip_norm / row.planned_batch_size,
        epsilon=found.epsilon,
    )


def _check(plan: Plan, rounds: int, batch: float, participation: float) -> None:
    """Raise PlanningError for alternatives that no plan could have."""
    if type(rounds) is not int or rounds < 1:
        raise PlanningError(f"rounds must be a whole number, 1 or more, got {rounds!r}")
    if not 0 < batch <= plan.declared_examples:
        raise PlanningError(
            f"{plan.client_id}: the planned batch must lie in (0, {plan.declared_examples}], got {batch!r}"
        )
    if not 0 < participation <= 1:
        raise PlanningError(f"participation is a share of the rounds in (0, 1], got {participation!r}")
