"""Check 2: every claim priced again from the rows, by two methods.

Whatever the report or the rows say, pricing must end, and soon: bounds come first, and a failure is a finding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import independent_rdp
from .. import report as reports
from ..case import Case, Findings, needs_rows
from ..errors import AccountingError, PricingError
from ..event_fields import VIEWS
from ..events import PrivateEvent
from ..independent import bracket, can_price
from ..mechanisms import compose
from ..merge import DISJOINT, OVERLAPPING
from ..planning import ClientEvent, Plan
from ..pricing import accountant_for, epsilon

# Accountants agree to ~1e-9 across platforms; a reported epsilon may have lost digits in printing.
EPSILON_TOLERANCE = 1e-6
# Claims are computed, not chosen: one that is higher than this over what the rows cost was edited, or another
# accountant's. The slack is for other versions of the accountant.
EPSILON_LOOSE = 1e-3
# So many of the longest plans are priced together: two minutes at worst.
_LIFETIMES = 10


@needs_rows
def epsilon_rederived(case: Case, found: Findings) -> None:
    """Each claim against PLD and the audit's own accountant, from the rows; none may be missing."""
    claims = {(claim["who"], claim["view"]): claim for claim in case.report["claims"]}
    if len(claims) < len(case.report["claims"]):
        found.problems.append("a claim is made twice")
    if reports.FEDERATION in case.plans:
        found.problems.append(f"a client is called {reports.FEDERATION!r}, so its claim cannot be told apart")
    derived = {client_id: _derive(case, found, client_id) for client_id in case.plans}
    derived[reports.FEDERATION] = _derive_federation(case, found, derived)
    if set(claims) != {(who, view) for who in derived for view in VIEWS}:
        found.problems.append(
            "the claims do not cover every client and the federation in every view, once each"
        )
    for (who, view), claim in claims.items():
        run, lifetime = derived.get(who, (0.0, 0.0))
        whole = who in case.chains or (who == reports.FEDERATION and case.chains.keys() >= case.plans.keys())
        _compare(found, f"{who} ({view})", claim["epsilon"], run, whole=whole)
        if claim["lifetime_epsilon"] is not None:
            _compare(found, f"{who} ({view}), lifetime", claim["lifetime_epsilon"], lifetime, whole=whole)
        elif whole:
            found.problems.append(
                f"{who} ({view}): no lifetime epsilon is claimed, the rows cost {lifetime:.6f}"
            )
    _check_accountants(case, found)
    run, lifetime = derived[reports.FEDERATION]
    found.facts.insert(0, f"federation: PLD gives {run:.6f} for the run, {lifetime:.6f} over the lifetime")


def _check_accountants(case: Case, found: Findings) -> None:
    """Each claim names the accountant that prices its rows; the federation's is RDP if any client's is."""
    try:
        by = {
            who: accountant_for(case.chains[who].spent()) if who in case.chains else "pld"
            for who in case.plans
        }
    except AccountingError:
        return  # rows that do not compose have been found already
    by[reports.FEDERATION] = max(by.values())
    for claim in case.report["claims"]:
        if claim["accountant"] != by.get(claim["who"], claim["accountant"]):
            found.problems.append(
                f"{claim['who']} ({claim['view']}): priced by {claim['accountant'].upper()}, the report says, where "
                f"{by[claim['who']].upper()} prices its rows"
            )


def planned_cost(plan: Mapping[str, Any]) -> float:
    """PLD's epsilon of all the steps of a reported plan. Raises PricingError, as `bounded_epsilon` does."""
    return bounded_epsilon((_planned_event(plan),), plan["delta"])


def _planned_event(plan: Mapping[str, Any]) -> ClientEvent:
    """All the steps of a reported plan, with the noise that it says is added. Raises PricingError if it is none."""
    try:
        return replace(Plan.from_json(plan).round_event(), steps=plan["planned_steps"])
    except AccountingError as error:
        raise PricingError(f"the plan is none: {error}") from error


def bounded_epsilon(events: tuple[PrivateEvent, ...], delta: float) -> float:
    """`epsilon`, within the bounds that the report's schema sets to a plan, so that it ends.

    Raises:
        PricingError: out of bounds, or the accountant failed.
    """
    bounds = reports.schema()["$defs"]["plan"]["properties"]
    try:
        parts = compose(events)
        for mechanism, _ in parts:
            for name in ("noise_multiplier", "sample_rate"):
                least, most = bounds[name]["minimum"], bounds[name]["maximum"]
                if not least <= (value := getattr(mechanism, name, most)) <= most:
                    raise PricingError(f"{name} {value:g} is outside {least:g} to {most:g}: not priced")
        if (steps := sum(count for _, count in parts)) > _LIFETIMES * bounds["planned_steps"]["maximum"]:
            raise PricingError(f"{steps:.3g} steps are more than this audit prices")
        return epsilon(events, delta)
    except (ArithmeticError, ValueError, TypeError, MemoryError) as error:
        raise PricingError(f"cannot be priced: {error}") from error


def _derive(case: Case, found: Findings, client_id: str) -> tuple[float, float]:
    """A client's epsilon in this run and over its lifetime, by PLD, after holding it against a second method."""
    chain, plan = case.chains.get(client_id), case.plans[client_id]
    if chain is None:
        found.doubts.append(f"{client_id}: no rows, so its claim can at most be held against its plan")
        if not case.rests_on_plan(client_id):
            return 0.0, 0.0
        try:
            return planned_cost(plan), 0.0
        except PricingError as error:
            found.problems.append(f"{client_id}: {error}")
            return float("inf"), 0.0
    return (
        _price(found, client_id, chain.spent(case.run), plan["delta"]),
        _price(found, client_id, chain.spent(), plan["delta"]),
    )


def _derive_federation(
    case: Case, found: Findings, clients: Mapping[str, tuple[float, float]]
) -> tuple[float, float]:
    """The federation's epsilon as its claim says it follows: the largest, or all clients' events composed."""
    largest = (max(run for run, _ in clients.values()), max(lifetime for _, lifetime in clients.values()))
    bases = {claim["basis"] for claim in case.report["claims"] if claim["who"] == reports.FEDERATION}
    if bases == {DISJOINT}:
        return largest
    if bases != {OVERLAPPING}:
        found.problems.append(f"the federation's claims rest on {', '.join(sorted(bases)) or 'nothing'}")
        return largest
    delta = next(iter(case.plans.values()))["delta"]
    try:
        lifetimes = [event for chain in case.chains.values() for event in chain.spent()]
        this_run = [event for chain in case.chains.values() for event in chain.spent(case.run)]
        this_run += [_planned_event(plan) for who, plan in case.plans.items() if who not in case.chains]
    except PricingError as error:
        found.problems.append(str(error))
        return float("inf"), float("inf")
    return (
        _price(found, "all clients", tuple(this_run), delta),
        _price(found, "all clients", tuple(lifetimes), delta),
    )


def _price(found: Findings, client_id: str, events: tuple[PrivateEvent, ...], delta: float) -> float:
    """The first accountant's epsilon, held against a second method that shares no code with it."""
    try:
        first, by = bounded_epsilon(events, delta), accountant_for(events).upper()
        low, high, second = _second_price(events, delta)
    except AccountingError as error:
        found.problems.append(f"{client_id}: {error}")
        return float("inf")
    if high == float("inf"):
        found.doubts.append(f"{client_id}: {by} {first:.6f}; there is no second method for {second}")
        return first
    # PLD rounds each step's loss up to its grid, which weighs most at tiny epsilons.
    if not low - EPSILON_TOLERANCE <= first <= 1.02 * high + 0.05:
        found.problems.append(f"{client_id}: {by} gives {first:.6f}, {second}: one of them is wrong")
    found.facts.append(f"{client_id}: {by} {first:.6f}, {second}")
    return first


def _second_price(events: tuple[PrivateEvent, ...], delta: float) -> tuple[float, float, str]:
    """Within what bounds the first accountant must lie, by code that shares nothing with it, and how that was found.

    Without a second method the upper bound is infinite, and the text says what has none.
    """
    if all(map(can_price, events)):
        bounds = bracket(events, delta)
        if bounds.high < float("inf"):
            return bounds.low, bounds.high, f"own bounds {bounds.low:.6f} to {bounds.high:.6f}"
        return 0.0, bounds.high, "so many steps of so little noise"
    without = {event.kind for event in events if not independent_rdp.can_price(event)}
    if without:
        return 0.0, float("inf"), ", ".join(sorted(without))
    try:
        own = independent_rdp.epsilon(events, delta)
    except ArithmeticError:
        return 0.0, float("inf"), "numbers as large as these"
    return own, own, f"own RDP {own:.6f}"


def _compare(found: Findings, what: str, reported: float, derived: float, *, whole: bool) -> None:
    """A claim below what PLD makes of the rows is false; one above it, with all rows here, was not computed."""
    if reported < derived - EPSILON_TOLERANCE:
        found.problems.append(f"{what}: {reported:.6f} is reported, the rows cost {derived:.6f}")
    elif whole and reported > derived + EPSILON_LOOSE:
        found.problems.append(f"{what}: {reported:.6f} is reported, but the rows cost only {derived:.6f}")
