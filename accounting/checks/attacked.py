"""Check 15: whether an attack contradicts a claim."""

from __future__ import annotations

from ..case import Case, Findings

BOUND_TOLERANCE = 1e-6
LEAST_CONFIDENCE = 0.9


def attack_contradicts(case: Case, found: Findings) -> None:
    """The lower bound that an attack's counts give, derived again, lies at or below the claim.

    PASS says that this attack found no contradiction, and never that the claim is true.
    """
    result = case.evidence.empirical
    if result is None:
        found.doubts.append("no attack was run on this run")
        return
    derived = result.rederived()
    if abs(derived - result.lower_bound) > BOUND_TOLERANCE:
        found.problems.append(
            f"the lower bound is stated as {result.lower_bound:.6f}, its counts give {derived:.6f}"
        )
    if result.run != case.run:
        found.doubts.append("the attack was on another run, so it says nothing about this one")
        return
    if result.confidence < LEAST_CONFIDENCE:
        found.doubts.append(
            f"a bound at confidence {result.confidence:g} shows nothing; {LEAST_CONFIDENCE:g} is the least"
        )
        return
    claims = [c for c in case.report["claims"] if c["who"] == result.client_id]
    if not claims:
        found.problems.append(f"the attack was on {result.client_id}, about whom nothing is claimed")
    # A claim at a smaller delta promises more, so it is refuted too; one at a larger delta promises less.
    claims = [claim for claim in claims if claim["delta"] <= result.delta]
    if not claims and not found.problems:
        found.doubts.append(f"the attack is at delta {result.delta:g}, below that of every claim")
    shown = f"epsilon of at least {derived:.4f} at confidence {result.confidence:g}"
    contradicted = [claim for claim in claims if derived > claim["epsilon"]]
    if result.method == "gdp":
        found.doubts.append(f"the bound assumes that {result.assumption}")
    for claim in contradicted:
        # What holds under an assumption only casts doubt.
        (found.doubts if result.method == "gdp" else found.problems).append(
            f"{result.client_id}: the {result.attack} attack shows {shown}, {claim['epsilon']:.4f} is claimed "
            f"({claim['view']})"
        )
    if not contradicted:
        found.facts.append(
            f"{result.attack} on {result.client_id} shows {shown}: no contradiction, and no proof either, for a better "
            "attack may exist"
        )
