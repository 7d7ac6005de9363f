"""Checks 12 and 14: what was chosen by looking at data, and whether looking was charged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..case import Case, Findings, needs_rows
from ..events import AdaptiveClipPoissonGaussian, RepeatedTrials, Tuning

_RELATIVE = 1e-9


# --- 12 -----------------------------------------------------------------------------------------------------


@needs_rows
def tuning_charged(case: Case, found: Findings) -> None:
    """Start weights and other runs that the report or the ledgers name are charged.

    Never PASS: whoever tuned on the same rows without these ledgers left no trace in them.
    """
    _check_start(case, found)
    for client_id, chain in case.chains.items():
        others = {charge.run for charge in chain.charges.values()} - {case.run}
        if others:
            found.facts.append(
                f"{client_id}: {len(others)} other runs on the same data are in its lifetime epsilon, which is the "
                "claim if this run was chosen among them"
            )
    for client_id, charge in case.all_charges():
        if isinstance(charge.reserved, Tuning | RepeatedTrials):
            found.facts.append(
                f"{client_id}, row {charge.reservation} charges a search ({charge.reserved.kind})"
            )
    found.doubts.append("runs and choices that never touched these ledgers leave no trace in them")


def _check_start(case: Case, found: Findings) -> None:
    """Weights that an earlier run on the same data left are charged in the lifetime of who trained them."""
    start = case.report["experiment"].get("start_weights")
    if not isinstance(start, dict) or not isinstance(start.get("base"), str):
        found.doubts.append("the report does not state which weights training began with")
        return
    origin = start.get("from_run")
    if origin is None:
        found.facts.append(f"begun from {start['base']!r}, taken as public, on the report's word")
    elif not any(origin == charge.run for chain in case.chains.values() for charge in chain.charges.values()):
        found.problems.append(
            f"begun from the result of run {str(origin)[:16]}, which no ledger here has charged"
        )
    else:
        found.facts.append(f"begun from run {str(origin)[:16]}, charged in the lifetime epsilon")


# --- 14 -----------------------------------------------------------------------------------------------------


@needs_rows
def adaptive_clipping_charged(case: Case, found: Findings) -> None:
    """Clip norms are the plan's constant; where they follow counts, the counts' noise is part of the price."""
    constant = 0
    for client_id, plan in case.plans.items():
        if client_id not in case.chains:
            found.doubts.append(f"no rows of {client_id}")
        for charge in case.charges(client_id):
            event = charge.reserved
            where = f"{client_id}, row {charge.reservation}"
            if isinstance(event, AdaptiveClipPoissonGaussian):
                _check_adaptive(found, where, event, plan)
            elif plan.get("adaptive_clip") is not None:
                found.problems.append(
                    f"{where}: {event.kind} charges no counts, and the plan's clip norm follows counts"
                )
            elif isinstance(event, Tuning | RepeatedTrials):
                found.doubts.append(f"{where}: the clip norms within a search are not recorded one by one")
            elif event.clip_norm != plan["clip_norm"]:
                found.problems.append(
                    f"{where}: clip norm {event.clip_norm:g} where the plan has the constant {plan['clip_norm']:g}, "
                    "and no noised count is charged that it could follow"
                )
            else:
                constant += 1
        _check_beginning(case, found, client_id, plan)
    if constant:
        found.facts.append(f"{constant} charges clip to their plan's constant: there are no counts to charge")


def _check_beginning(case: Case, found: Findings, client_id: str, plan: Mapping[str, Any]) -> None:
    """An adaptive clip norm begins at the plan's; how it went on, check 7 derives from the noised counts."""
    if plan.get("adaptive_clip") is None:
        return
    for charge in case.charges(client_id)[:1]:
        if getattr(charge.reserved, "clip_norm", plan["clip_norm"]) != plan["clip_norm"]:
            found.problems.append(
                f"{client_id}, row {charge.reservation}: the first clip norm is not the planned "
                f"{plan['clip_norm']:g}, and no count came before it"
            )


def _check_adaptive(
    found: Findings, where: str, event: AdaptiveClipPoissonGaussian, plan: Mapping[str, Any]
) -> None:
    """Vectors and counts together have at least the planned noise, and the clip norm keeps to its public range."""
    together, planned = _together(event.noise_multiplier, event.count_noise_stddev), plan["noise_multiplier"]
    if (adaptive := plan.get("adaptive_clip")) is not None:
        planned = _together(planned, adaptive["count_noise_stddev"])
        if not adaptive["smallest_clip_norm"] <= event.clip_norm <= adaptive["largest_clip_norm"]:
            found.problems.append(
                f"{where}: clip norm {event.clip_norm:g} is outside the plan's public range"
            )
    if together < planned * (1 - _RELATIVE):
        found.problems.append(
            f"{where}: with its counts the noise multiplier is {together:.4g}, below the "
            f"{planned:.4g} that was planned"
        )
    found.facts.append(f"{where}: vectors and counts together have noise multiplier {together:.4g}")


def _together(vectors: float, counts: float) -> float:
    """The noise multiplier of vectors and shifted counts as one Gaussian.

    Source: Andrew et al. 2021, Theorem 1: z = (z_vectors^-2 + (2 stddev_counts)^-2)^(-1/2).
    """
    return 1 / math.hypot(1 / vectors, 1 / (2 * counts))
