"""Check 4: every release was reserved, as planned, and in the sessions that the report names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import masking
from .. import report as reports
from ..case import Case, Findings, needs_rows
from ..chain import Chain
from ..errors import PricingError
from ..events import AdaptiveClipPoissonGaussian, Gaussian, PoissonGaussian, PrivateEvent
from ..planning import plan_digest
from .derived import EPSILON_TOLERANCE, planned_cost
from .exchanged import check_exchanges, check_method, check_released
from .parts import check_parts, check_scored
from .pruned import check_pruned


@needs_rows
def everything_charged(case: Case, found: Findings) -> None:
    """Each survivor of each round had a committed reservation, and all charges keep to the plan."""
    for entry in case.report["rounds"]:
        for client_id in entry["survivors"]:
            _check_released(case, found, client_id, entry)
        check_exchanges(case, found, entry)
        check_parts(case, found, entry)
        _check_repeated(case, found, entry)
    if case.report.get("secure_aggregation", {}).get("mode") == "secure":
        _check_masked(case, found)
    check_method(case, found)
    check_scored(case, found)
    check_pruned(case, found)
    for client_id, chain in case.chains.items():
        _check_what_releases_cost(found, client_id, chain)
    for client_id, plan in case.plans.items():
        _check_plan_kept(case, found, client_id, plan)
        _check_plan_recorded(case, found, client_id, plan)
    _check_masks_recorded(case, found)


def _check_released(case: Case, found: Findings, client_id: str, entry: Mapping[str, Any]) -> None:
    """One survivor's uploads in one round: charged, committed, and in the sessions that the report names."""
    where = f"{client_id} in round {entry['round']}"
    if client_id not in case.chains:
        kind = found.doubts if client_id in case.plans else found.problems
        kind.append(f"{where} is in the sum, but no ledger of it is here")
        return
    committed = [
        charge
        for charge in case.charges(client_id)
        if charge.round == entry["round"] and charge.committed is not None
    ]
    if not committed:
        found.problems.append(f"{where} is in the sum, but its ledger has no committed charge")
        return
    check_released(case, found, client_id, where, committed, entry["exchanges"])


def _check_what_releases_cost(found: Findings, client_id: str, chain: Chain) -> None:
    """What was released was charged, and one session summed one vector of each client, in whatever run."""
    first: dict[str, int] = {}
    for charge in chain.charges.values():
        where, steps = f"{client_id}, row {charge.reservation}", charge.charged.steps
        if charge.releases and steps == 0:
            found.problems.append(f"{where} is released, and charged for no step at all")
        elif charge.releases and steps < charge.reserved.steps:
            found.doubts.append(
                f"{where} is released with {steps} of {charge.reserved.steps} steps charged: that the others did "
                "not run is the client's word"
            )
        for session in sorted(
            {release.session for release in charge.releases if release.session is not None}
        ):
            if (other := first.setdefault(session, charge.reservation)) != charge.reservation:
                found.problems.append(
                    f"{where} and row {other} are released into one session, which sums one vector"
                )


def _check_repeated(case: Case, found: Findings, entry: Mapping[str, Any]) -> None:
    """The round's lists of repeated maskings and announcements are those that follow from the rows that are here."""
    for name, derived in reports.repeated(case.chains, case.run, entry["round"]).items():
        listed = [
            again
            for again in entry[name]
            if again["client_id"] in case.chains or again["client_id"] not in case.plans
        ]
        shown, true = (sorted((one["client_id"], one["times"]) for one in some) for some in (listed, derived))
        if shown != true:
            found.problems.append(f"round {entry['round']}: {name} is {shown}, the rows say {true}")


def _check_masked(case: Case, found: Findings) -> None:
    """Where the report says that sums were secure: no upload left unmasked, and no sum of too few."""
    least = case.secure_aggregation.get("min_survivors")
    if least is None:
        found.problems.append("secure aggregation without min_survivors: a sum of one would hide nothing")
    _check_counts(case, found, "", case.secure_aggregation)
    for number, band in case.bands.items():
        _check_counts(case, found, f"exchange {number}, of some clients only: ", band)
    listed = [exchange for entry in case.report["rounds"] for exchange in entry["exchanges"]]
    sessions = [exchange["session_id"] for exchange in listed if exchange["session_id"] is not None]
    if len(set(sessions)) < len(sessions):
        found.problems.append("a session is listed twice: one sum cannot be both")
    for entry in case.report["rounds"]:
        number, count = entry["round"], len(entry["survivors"])
        first = entry["exchanges"][:1]
        if count and any(None in (one["session_id"], one["transcript"]) for one in first):
            found.problems.append(f"round {number} has a sum but no session or transcript, though 'secure'")
        if least is not None and 0 < count < least:
            found.problems.append(f"round {number} sums {count} clients, fewer than min_survivors {least}")
    for client_id in case.chains:
        for charge in case.charges(client_id):
            if any(release.session is None for release in charge.releases):
                found.problems.append(
                    f"{client_id} released its update of round {charge.round} unmasked, though 'secure'"
                )


def _check_counts(case: Case, found: Findings, where: str, counts: Mapping[str, Any]) -> None:
    """A session sums enough clients, and each masks with enough, that colluders do not see through it."""
    least, neighbours = counts.get("min_survivors"), counts.get("neighbours")
    if least is not None and least < case.colluders + 2:
        found.problems.append(
            f"{where}min_survivors {least}: beside {case.colluders} colluders nobody would be hidden by another"
        )
    if neighbours is not None and neighbours <= case.colluders:
        found.problems.append(
            f"{where}neighbours {neighbours}: {case.colluders} colluders could be all that a client masks with"
        )


def _check_plan_kept(case: Case, found: Findings, client_id: str, plan: Mapping[str, Any]) -> None:
    """Steps within the plan, every charge with the planned mechanism, and the plan within its target."""
    charges = case.charges(client_id)
    steps = sum(charge.charged.steps for charge in charges)
    rounds = plan["rounds"] + plan["retry_rounds"]
    if plan["planned_steps"] != rounds * plan["steps_per_round"]:
        found.problems.append(
            f"{client_id}: {plan['planned_steps']} planned steps are not {rounds} rounds' worth"
        )
    if steps > plan["planned_steps"]:
        found.problems.append(f"{client_id}: {steps} steps are charged, {plan['planned_steps']} were planned")
    for charge in charges:
        where = f"{client_id}, row {charge.reservation}"
        _check_mechanism(found, where, charge.reserved, plan)
        if charge.reserved.steps > plan["steps_per_round"]:
            found.problems.append(
                f"{where}: {charge.reserved.steps} steps in a round of {plan['steps_per_round']}"
            )
    try:
        cost = planned_cost(plan)
    except PricingError as error:
        found.problems.append(f"{client_id}: {error}")
        return
    if cost > plan["target_epsilon"] + EPSILON_TOLERANCE:
        found.problems.append(
            f"{client_id}: the plan costs {cost:.6f}, above its target {plan['target_epsilon']:g}"
        )
    found.facts.append(
        f"{client_id}: {len(charges)} charges, {steps} of {plan['planned_steps']} planned steps"
    )


def _check_mechanism(found: Findings, where: str, event: PrivateEvent, plan: Mapping[str, Any]) -> None:
    """One charge is of the planned mechanism, with the planned parameters; adaptive clip norms are check 14's."""
    planned = {name: plan[name] for name in ("noise_multiplier", "clip_norm", "sample_rate")}
    adaptive = plan.get("adaptive_clip")
    if adaptive is not None:
        planned["count_noise_stddev"] = adaptive["count_noise_stddev"]
        del planned["clip_norm"]
    allowed = (PoissonGaussian, Gaussian) if adaptive is None else (AdaptiveClipPoissonGaussian,)
    if not isinstance(event, allowed):
        noise = "Gaussian noise at the client" if adaptive is None else "adaptive clipping with noised counts"
        found.problems.append(f"{where}: {event.kind} is charged, where {noise} was planned")
        return
    for name, value in planned.items():
        actual = getattr(event, name, 1.0)  # a Gaussian without sampling has rate 1
        if value != actual:
            found.problems.append(f"{where}: {name} {actual:g} where {value:g} was planned")


def _check_plan_recorded(case: Case, found: Findings, client_id: str, plan: Mapping[str, Any]) -> None:
    """The plan in the report is the one that the client had when it reserved."""
    if plan["client_id"] != client_id:
        found.problems.append(f"the plan of {client_id} is that of {plan['client_id']}")
    for where, recorded in case.recorded(client_id):
        found.compare(where, recorded, "plan_sha256", plan_digest(plan))


def _check_masks_recorded(case: Case, found: Findings) -> None:
    """What the report says of masks is what the clients' own experiment files said when they reserved."""
    digest = masking.masks_digest(case.secure_aggregation)
    for client_id in case.plans:
        for where, recorded in case.recorded(client_id):
            if case.secure_aggregation or masking.RECORDED_AS in recorded:
                found.compare(where, recorded, masking.RECORDED_AS, digest)
