"""Checks 6 and 7: what the steps really did, by the clients' private audit files.

Evidence that follows from a private file is private itself. What passes says no more than that it passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..case import Case, Findings, names, needs_rows
from ..chain import Charge
from ..contract import by_round
from ..events import AdaptiveClipPoissonGaussian
from ..planning import ClientEvent
from ..private_audit import AttemptRecord, StepRecord
from .counted import Attempt, check_counts, in_clip_norms, judge_count_noise

FALSE_ALARM = 1e-6
"""How often checks 6 and 7 together call an honest run a FAIL at most, over all clients and tests."""

CLIP_TOLERANCE = 1e-5
"""Relative; norms are sums of float32 gradients."""

_LARGEST_INVISIBLE_CHANGE = 0.1
_MEASURABLE = (1e-12, 1e12)  # standard deviations that float32 parameters could be given


@dataclass(frozen=True)
class _Steps:
    """Steps of one client that ought to have one distribution; usually all of them."""

    client_id: str
    event: ClientEvent
    examples: int = field(repr=False)
    dimension: int
    records: tuple[StepRecord, ...] = field(repr=False)

    @property
    def bound(self) -> str:
        """What the steps clip to, in words; the records of an adaptive clip norm are in units of it."""
        adaptive = isinstance(self.event, AdaptiveClipPoissonGaussian)
        return "its step's clip norm" if adaptive else f"the clip norm {self.event.clip_norm:g}"


@needs_rows
def batch_sizes_plausible(case: Case, found: Findings) -> None:
    """The recorded batch sizes look like independent Binomial(n, q) draws, empty batches among them."""
    # How many coordinates a round trains has no part in how batches are drawn.
    attempts = [one._replace(record=replace(one.record, dimension=1)) for one in _attempts(case, found)]
    groups = _grouped(attempts)
    for steps in groups:
        _test_batch_sizes(found, steps, FALSE_ALARM / 2 / len(groups))


@needs_rows
def clipping_and_noise_applied(case: Case, found: Findings) -> None:
    """No recorded norm is above the clip norm, and the noise that was measured has the size that is charged.

    Where the clip norm is adaptive, each step's follows from the noised counts before it, noised as charged.
    """
    repeated = list(_repeated_noise(case))
    if repeated:
        found.problems.append(
            f"{repeated[0]}: the same noise was added twice, so a difference removes it ({len(repeated)} times in all)"
        )
    attempts = _attempts(case, found)
    _check_dimensions(case, found, attempts)
    check_counts(case, found, attempts)
    groups = _grouped(attempts)
    for steps in groups:
        _check_clipping(found, steps)
        level = FALSE_ALARM / 2 / len(groups)
        if isinstance(steps.event, AdaptiveClipPoissonGaussian):
            level /= 2
            judge_count_noise(found, steps.client_id, steps.event, steps.records, level)
        _test_noise(found, steps, level)


# --- the files against the ledgers ------------------------------------------------------------------------------


def _attempts(case: Case, found: Findings) -> list[Attempt]:
    """All recorded attempts that the ledgers have committed charges for."""
    without = case.plans.keys() - case.evidence.private.keys()
    if without:
        found.doubts.append(f"no private audit file of {names(without)}")
    attempts = []
    for client_id in sorted(case.evidence.private):
        for charge, record in _tied(case, found, client_id):
            if charge.committed is None:
                continue  # no digest ties it: made-up steps could make up for what the others lack
            if isinstance(charge.reserved, ClientEvent):
                attempts.append(Attempt(client_id, charge.reserved, record))
            else:
                found.doubts.append(f"{client_id}: steps of {charge.reserved.kind} are not tested here")
    return attempts


def _grouped(attempts: Sequence[Attempt]) -> list[_Steps]:
    """Their steps, by what they ought to be draws of."""
    groups: dict[tuple[str, ClientEvent, int, int], list[StepRecord]] = {}
    for client_id, event, record in attempts:
        steps = record.steps
        if isinstance(event, AdaptiveClipPoissonGaussian):
            event, steps = replace(event, clip_norm=1.0), in_clip_norms(event, steps)
        key = (client_id, replace(event, steps=0), record.examples, record.dimension)
        groups.setdefault(key, []).extend(steps)
    return [_Steps(*key, tuple(records)) for key, records in groups.items() if records]


def _tied(case: Case, found: Findings, client_id: str) -> Sequence[tuple[Charge, AttemptRecord]]:
    """The attempts in a client's file that its ledger has charges for, after checking that the two agree."""
    charges = {charge.reservation: charge for charge in case.charges(client_id)}
    if client_id not in case.plans:
        found.problems.append(
            f"there is a private audit file of {client_id}, for whom the report has no plan"
        )
        return []
    if not charges:
        found.doubts.append(f"{client_id}: no ledger rows to hold its private audit file against")
        return []
    tied: dict[int, tuple[Charge, AttemptRecord]] = {}
    for record in case.evidence.private[client_id]:
        charge = charges.get(record.reservation)
        where = f"{client_id}: the private record of row {record.reservation}"
        if record.run != case.run or charge is None or charge.round != record.round:
            found.problems.append(f"{where} belongs to another run or round")
        elif record.reservation in tied:
            found.problems.append(f"{where} is there twice")
        else:
            _compare_attempt(found, where, charge, record)
            tied[record.reservation] = (charge, record)
    missing = [c for c in charges.values() if c.committed is not None and c.reservation not in tied]
    if missing:
        found.doubts.append(
            f"{client_id}: its private audit file lacks {len(missing)} of {len(charges)} attempts"
        )
    return list(tied.values())


def _compare_attempt(found: Findings, where: str, charge: Charge, record: AttemptRecord) -> None:
    """A record is the one that the ledger committed to, and has as many steps as were charged."""
    if charge.committed is None:
        return  # a crash between the record and the commit: charged in full and never released
    if charge.private_audit is None:
        found.doubts.append(f"{where} is on the file's word: the ledger holds no digest of it")
    elif charge.private_audit != record.digest:
        found.problems.append(f"{where} is not the one that the ledger committed to")
    if len(record.steps) != charge.committed.steps:
        found.problems.append(
            f"{where} has {len(record.steps)} steps, the ledger charged {charge.committed.steps}"
        )


# --- 6 ------------------------------------------------------------------------------------------------------


def _test_batch_sizes(found: Findings, steps: _Steps, level: float) -> None:
    """Batch sizes against the sampler that is charged."""
    from .plausible import batch_size_p_values, fixed_size_p_value

    sizes, rate = [record.batch_size for record in steps.records], steps.event.sample_rate
    if max(sizes) > steps.examples:
        found.problems.append(f"{steps.client_id}: a batch is larger than the client's data")
        return
    values = batch_size_p_values(sizes, steps.examples, rate)
    _judge(found, f"{steps.client_id}: batch sizes are not Binomial(n, {rate:g})", values, level)
    if rate < 1 and fixed_size_p_value(len(sizes), steps.examples, rate) >= level / len(values):
        found.doubts.append(
            f"{steps.client_id}: {len(sizes)} steps are too few: batches of one fixed size would pass"
        )
    found.facts.append(f"{steps.client_id}: {len(sizes)} batch sizes fit Binomial(n, {rate:g})")


# --- 7 ------------------------------------------------------------------------------------------------------


def _check_dimensions(case: Case, found: Findings, attempts: Sequence[Attempt]) -> None:
    """Every coordinate that the method trains was noised, those that stay at home among them."""
    governing = by_round(case.report["method"])
    for client_id, _, record in attempts:
        trained = [contract["noised"].get(client_id) for contract in governing.get(record.round, [])]
        if trained != [record.dimension]:
            found.problems.append(
                f"{client_id} noised {record.dimension} coordinates in round {record.round}, where its method trains "
                f"{' or '.join(map(str, trained)) or 'none'}"
            )


def _check_clipping(found: Findings, steps: _Steps) -> None:
    """Norms against the clip norm; no statistics, for there is nothing random about a bound."""
    clip_norm, client_id = steps.event.clip_norm, steps.client_id
    limit = clip_norm * (1 + CLIP_TOLERANCE)
    for record in steps.records:
        if record.largest_norm > limit:
            found.problems.append(f"{client_id}: a clipped gradient is longer than {steps.bound}")
        if record.sum_norm > record.batch_size * limit:
            found.problems.append(
                f"{client_id}: a sum is longer than its batch of gradients clipped to {steps.bound} can be"
            )
        if record.clipped + record.non_finite > record.batch_size:
            found.problems.append(f"{client_id}: more examples were clipped or zeroed than drawn")
    found.facts.append(f"{client_id}: no norm above {steps.bound} in {len(steps.records)} steps")


def _test_noise(found: Findings, steps: _Steps, level: float) -> None:
    """Measured noise against a Gaussian of the standard deviation that is charged."""
    from .plausible import noise_p_values, smallest_visible_change

    stddev = steps.event.noise_multiplier * steps.event.clip_norm
    if not _MEASURABLE[0] <= stddev <= _MEASURABLE[1]:
        found.problems.append(f"{steps.client_id}: noise of standard deviation {stddev:g} is none")
        return
    values = noise_p_values(
        squares=[min(record.noise_squares, 1e200) / stddev**2 for record in steps.records],
        largest=[record.largest_noise / stddev for record in steps.records],
        dimension=steps.dimension,
    )
    _judge(
        found, f"{steps.client_id}: the noise is not Gaussian of standard deviation {stddev:g}", values, level
    )
    coordinates = len(steps.records) * steps.dimension
    change = smallest_visible_change(coordinates, level / len(values))
    if change > _LARGEST_INVISIBLE_CHANGE:
        found.doubts.append(
            f"{steps.client_id}: {coordinates} noised coordinates are too few to see noise that is {change:.0%} off"
        )
    found.facts.append(
        f"{steps.client_id}: {coordinates} noised coordinates as charged; {change:.1%} off would show"
    )


def _repeated_noise(case: Case) -> Iterator[str]:
    """Pairs of steps, of any clients, that drew the same noise."""
    seen: dict[str, str] = {}
    for client_id, records in sorted(case.evidence.private.items()):
        for record in records:
            for number, step in enumerate(record.steps, start=1):
                place = f"{client_id}, row {record.reservation}, step {number}"
                first = seen.setdefault(step.noise_digest, place)
                if first != place:
                    yield f"{first} and {place}"


def _judge(found: Findings, what: str, p_values: Mapping[str, float], level: float) -> None:
    """A p-value below its share of the level is a problem, and its name says what is odd."""
    due = level / len(p_values)
    for name, value in p_values.items():
        if value < due:
            found.problems.append(f"{what} ({name}: p = {value:.1g}, less than {due:.1g})")
