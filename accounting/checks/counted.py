"""Adaptive clipping in check 7: each step's clip norm follows from noised counts, and the counts were noised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..adaptive_clip import AdaptiveClip
from ..case import Case, Findings
from ..errors import PlanningError
from ..events import AdaptiveClipPoissonGaussian
from ..planning import ClientEvent
from ..private_audit import AttemptRecord, CountRecord, StepRecord

LARGEST_INVISIBLE_LOSS = 0.1
"""Of the noise multiplier of gradients and counts together: so much may counts' noise lack unseen."""

_RELATIVE = 1e-9  # between a clip norm on file and the same one computed again


class Attempt(NamedTuple):
    """One committed attempt: whose, what was charged for it, and what its steps did."""

    client_id: str
    event: ClientEvent
    record: AttemptRecord


def check_counts(case: Case, found: Findings, attempts: Sequence[Attempt]) -> None:
    """Steps have counts where counts are charged, and only there; clip norms follow from them as planned."""
    for client_id in dict.fromkeys(attempt.client_id for attempt in attempts):
        own = [attempt for attempt in attempts if attempt.client_id == client_id]
        charged = [isinstance(attempt.event, AdaptiveClipPoissonGaussian) for attempt in own]
        counted = [step.count is not None for attempt in own for step in attempt.record.steps]
        if any(counted) and not all(charged):
            found.problems.append(f"{client_id}: its steps counted clipped examples, and no count is charged")
        elif any(charged) and not all(counted):
            found.problems.append(f"{client_id}: counts are charged, and a step has none on file")
        elif any(charged):
            _check_clip_norms(case, found, client_id, own)


def _check_clip_norms(case: Case, found: Findings, client_id: str, attempts: Sequence[Attempt]) -> None:
    """Every clip norm of a client's steps, from the plan's on."""
    plan = case.plans[client_id]
    try:
        rule = AdaptiveClip(**_planned_rule(plan))
    except PlanningError as error:
        found.problems.append(f"{client_id}: {error}")
        return
    whole = {c.reservation for c in case.charges(client_id) if c.committed is not None} <= {
        attempt.record.reservation for attempt in attempts
    }
    planned = last = plan["clip_norm"]
    for attempt in sorted(attempts, key=lambda attempt: attempt.record.reservation):
        due = attempt.event.clip_norm
        # A client that has lost its stored update begins again; any other choice could follow something private.
        if not any(math.isclose(due, value, rel_tol=_RELATIVE) for value in (planned, last)):
            # An attempt that is not on file may have led to it.
            (found.problems if whole else found.doubts).append(
                f"{client_id}, row {attempt.record.reservation}: its clip norm follows from no count before it"
            )
        for step, count in _counted(attempt.record.steps):
            if not math.isclose(count.clip_norm, due, rel_tol=_RELATIVE):
                found.problems.append(
                    f"{client_id}: a step clipped to something else than its counts lead to"
                )
            if count.unclipped + step.clipped + step.non_finite != step.batch_size:
                found.problems.append(f"{client_id}: a count is not of the examples that were drawn")
            due = rule.next_clip_norm(count.clip_norm, count.noised, plan["planned_batch_size"])
        last = due
    found.facts.append(f"{client_id}: every clip norm follows from the noised counts before it")


def _planned_rule(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plan's constants of adaptive clipping. Raises PlanningError if it has none."""
    if plan.get("adaptive_clip") is None:
        raise PlanningError("counts are charged, and the plan has a constant clip norm")
    rule: Mapping[str, Any] = plan["adaptive_clip"]
    return rule


def in_clip_norms(event: AdaptiveClipPoissonGaussian, steps: Sequence[StepRecord]) -> tuple[StepRecord, ...]:
    """The steps with lengths in units of each step's own clip norm, which makes their noise one distribution."""
    return tuple(_in_units(step, step.count.clip_norm if step.count else event.clip_norm) for step in steps)


def _in_units(step: StepRecord, unit: float) -> StepRecord:
    """One step's lengths in that unit; beyond any float they are the largest one."""
    scaled = {
        name: min(getattr(step, name) / unit, 1e300) for name in ("largest_norm", "sum_norm", "largest_noise")
    }
    return replace(step, **scaled, noise_squares=min(step.noise_squares / unit / unit, 1e300))


def judge_count_noise(
    found: Findings,
    client_id: str,
    event: AdaptiveClipPoissonGaussian,
    steps: Sequence[StepRecord],
    level: float,
) -> None:
    """The noise on counts against a Gaussian of the standard deviation that is charged."""
    from .plausible import count_noise_p_values, largest_invisible_shrinkage  # scipy takes a while to import

    noise = [
        (count.noised - (count.unclipped - step.batch_size / 2)) / event.count_noise_stddev
        for step, count in _counted(steps)
    ]
    if not noise:
        return
    values = count_noise_p_values(noise)
    due = level / len(values)
    for name, value in values.items():
        if value < due:
            found.problems.append(
                f"{client_id}: the noise on its counts is not Gaussian of standard deviation "
                f"{event.count_noise_stddev:g} ({name}: p = {value:.1g}, less than {due:.1g})"
            )
    lost = _largest_loss(event, largest_invisible_shrinkage(len(noise), due))
    if lost > LARGEST_INVISIBLE_LOSS:
        found.doubts.append(
            f"{client_id}: {len(noise)} noised counts are too few to see that theirs is too little"
        )
    found.facts.append(
        f"{client_id}: {len(noise)} noised counts as charged; too little noise on them that costs more than {lost:.1%} "
        "of the noise multiplier would show"
    )


def _largest_loss(event: AdaptiveClipPoissonGaussian, factor: float) -> float:
    """By what share the noise multiplier of both releases falls if counts have only `factor` of their noise."""
    if not factor:
        return 1.0
    vectors, counts = 1 / event.noise_multiplier, 1 / (2 * event.count_noise_stddev)
    return 1 - math.hypot(vectors, counts) / math.hypot(vectors, counts / factor)


def _counted(steps: Sequence[StepRecord]) -> Iterator[tuple[StepRecord, CountRecord]]:
    """The steps that counted, each with its count."""
    return ((step, step.count) for step in steps if step.count is not None)
