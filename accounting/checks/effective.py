"""Checks 8 and 9: whose noise counts, and how far one contribution moves what it hides.

In mode `local` both are short: every client adds all of its noise itself, before anything is rounded, and no
claim counts on anybody else. Where clients add shares, survivors, colluders, padding and scale decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..case import Case, Findings, names, needs_rows
from ..chain import shares_noise
from ..events import DistributedNoise

# What the charges of all the clients in one sum must agree on, or their shares do not add up to what is priced.
_SHARED = ("local_stddev", "scale", "clip_norm", "dimension", "survivors", "max_colluders", "modulus_bits")
# What a report states of its sums and rows say too.
_STATED = ("dimension", "scale", "modulus_bits")


# --- 8 ------------------------------------------------------------------------------------------------------


@needs_rows
def noise_effective(case: Case, found: Findings) -> None:
    """Noise counts in full where one client adds it, and from survivors minus colluders where all share it."""
    alone = shared = 0
    for client_id, charge in case.all_charges():
        event = shares_noise(charge.reserved)
        if event is not None:
            shared += 1
            _check_share(case, found, f"{client_id}, row {charge.reservation}", event)
        else:
            alone += 1
    if shared:
        _check_survivors(case, found)
        _check_agreement(case, found)
    if alone:
        found.facts.append(
            f"{alone} charges are of clients that add all their noise themselves: no price counts on others' noise"
        )
    if without := case.without_rows():
        found.doubts.append(f"no rows of {names(without)}")


def _check_share(case: Case, found: Findings, where: str, event: DistributedNoise) -> None:
    """One client's share is priced for sums as small, and colluders as many, as the sessions allow.

    That a share leaves masked and only once is a rule of the ledger itself (check 1).
    """
    stated = case.secure_aggregation
    if any(len(contract["exchanges"]) > 1 for contract in case.report["method"]["contracts"]):
        found.problems.append(
            f"{where} adds a share of noise to one sum, and the method has several exchanges"
        )
    if case.report["mode"] == "local":
        found.problems.append(f"{where} adds a share of noise, where the report says mode 'local'")
    if stated.get("mode") != "secure":
        found.problems.append(f"{where} adds a share of noise, but sums are not said to be secure")
    if stated.get("min_survivors", 0) < event.survivors:
        found.problems.append(
            f"{where} is priced for {event.survivors} survivors, sums of {stated.get('min_survivors', 0)} are allowed"
        )
    colluders = stated.get("max_colluders")
    if colluders != event.max_colluders:
        found.problems.append(
            f"{where} reckons with {event.max_colluders} colluders, the report with {colluders}"
        )


def _check_survivors(case: Case, found: Findings) -> None:
    """No sum of fewer clients than its charges are priced for."""
    least = None
    for entry in case.report["rounds"]:
        events = _shares_of(case, entry)
        count = len(entry["survivors"])
        needed = max((event.survivors for event in events), default=0)
        if 0 < count < needed:
            found.problems.append(
                f"round {entry['round']} sums {count} shares of noise, fewer than the {needed} that are priced"
            )
        if events and count:
            over = (count - events[0].max_colluders) / events[0].honest
            least = over if least is None else min(least, over)
    if least is not None:
        found.facts.append(f"every sum has at least {least:.2f} times the noise variance that is priced")


def _check_agreement(case: Case, found: Findings) -> None:
    """All the clients in a sum add the shares that each of their charges reckons with."""
    for entry in case.report["rounds"]:
        for name in _SHARED:
            values = {getattr(event, name) for event in _shares_of(case, entry)}
            if len(values) > 1:
                found.problems.append(f"round {entry['round']}: the clients' charges differ in {name}")


def _shares_of(case: Case, entry: Mapping[str, Any]) -> list[DistributedNoise]:
    """The committed charges behind one sum that add shares of noise."""
    charges = [
        charge
        for client_id in entry["survivors"]
        for charge in case.charges(client_id)
        if charge.round == entry["round"] and charge.committed is not None
    ]
    return [event for charge in charges if (event := shares_noise(charge.reserved)) is not None]


# --- 9 ------------------------------------------------------------------------------------------------------


@needs_rows
def sensitivity_actual(case: Case, found: Findings) -> None:
    """The clip norm where noise comes before rounding; the rounded, padded norm where it comes after."""
    alone = 0
    for client_id, charge in case.all_charges():
        event = shares_noise(charge.reserved)
        if event is not None:
            _check_rounding(case, found, f"{client_id}, row {charge.reservation}", event)
            planned = case.plans.get(client_id, {}).get("clip_norm", event.clip_norm)
            if planned != event.clip_norm:
                found.problems.append(f"{client_id} clips to {event.clip_norm:g}, the plan to {planned:g}")
        elif case.report["mode"] == "local":
            alone += 1
    if alone:
        found.facts.append(f"{alone} charges add noise before rounding: the sensitivity is the clip norm")
    if without := case.without_rows():
        found.doubts.append(f"no rows of {names(without)}")


def _check_rounding(case: Case, found: Findings, where: str, event: DistributedNoise) -> None:
    """One charge's padded dimension and scale are those of the sums, and its sensitivity follows from them."""
    if event.dimension & (event.dimension - 1):
        found.problems.append(
            f"{where}: dimension {event.dimension} is no power of two, so it is not the padded one"
        )
    for name in _STATED:
        stated = case.secure_aggregation.get(name)
        if stated is None:
            found.doubts.append(f"{where} has {name} {getattr(event, name)}, which the report does not state")
        elif stated != getattr(event, name):
            found.problems.append(
                f"{where} is priced with {name} {getattr(event, name)}, the sums have {stated}"
            )
    found.facts.append(
        f"noise multiplier {event.central_noise_multiplier:g} over the clip norm, before rounding to a scale of "
        f"{event.scale:g} in {event.dimension} coordinates, which the price adds"
    )
