"""Checks 3, 5, 11, 13 and 16: what the report states, against its own parts and what the rows recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set

from .. import outputs
from .. import report as reports
from ..case import Case, Findings, needs_rows
from ..chain import Charge

# What a report must state of what produced it, and the rows of the run confirm.
_PRODUCED_BY = ("python", "numpy", "dp_accounting", "fedlora_priv", "code_sha256")
# Names of seeds that must not be known to anybody, wherever a report states them.
_SEED_OF_SECRETS = re.compile(r"(nois|sampl|batch).*seed|seed.*(nois|sampl|batch)", re.IGNORECASE)
# What is as good as a seed, among what a report says of its randomness.
_SECRET_STATE = re.compile(r"seed|key|state|nonce|counter", re.IGNORECASE)
# Words in the name of a source that mean: whoever knows the seed can draw the noise again.
_REPRODUCIBLE = ("determin", "reproduc", "seed")


# --- 3 ------------------------------------------------------------------------------------------------------


def delta_small_enough(case: Case, found: Findings) -> None:
    """One delta, below 1/n of the unit that each claim protects; n as the plans declare it."""
    sizes = {client_id: plan["declared_examples"] for client_id, plan in case.plans.items()}
    sizes[reports.FEDERATION] = sum(sizes.values())
    deltas = {claim["delta"] for claim in case.report["claims"]} | {
        plan["delta"] for plan in case.plans.values()
    }
    if len(deltas) > 1:
        found.problems.append(f"claims and plans use several deltas: {sorted(deltas)}")
    for claim in case.report["claims"]:
        who, n, delta = claim["who"], claim["n"], claim["delta"]
        if n != sizes.get(who):
            found.problems.append(f"{who}: the claim counts {n} examples, the plan {sizes.get(who)}")
        if delta * max(n, sizes.get(who, 1)) >= 1:
            found.problems.append(
                f"{who}: delta {delta:g} is not below 1/n = {1 / max(n, sizes.get(who, 1)):.3g}"
            )
    for client_id, records in case.evidence.private.items():
        if max(deltas) * max((record.examples for record in records), default=0) >= 1:
            # How many rows there really are is private; that they are too many is what its auditor must know.
            found.problems.append(
                f"{client_id}: by its private audit file, delta is not below 1/(rows it holds)"
            )
    found.facts.append(f"delta {max(deltas):g} < 1/{sizes[reports.FEDERATION]} declared examples")


# --- 5 ------------------------------------------------------------------------------------------------------


@needs_rows
def sampler_matches(case: Case, found: Findings) -> None:
    """The sampler and adjacency of plans and claims are those that the rows are priced with."""
    for client_id, plan in case.plans.items():
        if abs(plan["sample_rate"] * plan["declared_examples"] / plan["planned_batch_size"] - 1) > 1e-9:
            found.problems.append(f"{client_id}: the sample rate is not planned batch / declared examples")
        if not case.charges(client_id) and plan["sampler"] != "poisson":
            found.problems.append(
                f"{client_id}: amplification is known here for Poisson, not {plan['sampler']!r}"
            )
        for charge in case.charges(client_id):
            event = charge.reserved
            if event.sampler != plan["sampler"]:
                found.problems.append(
                    f"{client_id}: the plan samples by {plan['sampler']!r}, row {charge.reservation} is priced "
                    f"as {event.sampler!r}"
                )
            if event.adjacency != plan["adjacency"]:
                found.problems.append(
                    f"{client_id}, row {charge.reservation}: priced under {event.adjacency}"
                )
            _check_claimed_promise(case, found, client_id, charge)
    adjacencies = {plan["adjacency"] for plan in case.plans.values()}
    if any({claim["adjacency"]} != adjacencies for claim in case.report["claims"]):
        found.problems.append("a claim states another adjacency than the plans")
    found.facts.append(f"Poisson sampling, {', '.join(sorted(adjacencies))}, in every row of the run")


def _check_claimed_promise(case: Case, found: Findings, client_id: str, charge: Charge) -> None:
    """What a charge is priced for covers the unit and the view of every claim that counts it."""
    event = charge.reserved
    for claim in case.report["claims"]:
        if claim["who"] not in (client_id, reports.FEDERATION):
            continue
        where = f"{client_id}, row {charge.reservation}: {event.kind}"
        if claim["unit"] != event.unit:
            found.problems.append(f"{where} protects one {event.unit}, the claim is for one {claim['unit']}")
        if claim["view"] not in event.views:
            found.problems.append(f"{where} promises nothing in the view {claim['view']!r}, which is claimed")


# --- 11 -----------------------------------------------------------------------------------------------------


@needs_rows
def outputs_covered(case: Case, found: Findings) -> None:
    """Every declared output is covered by events of the run, public, or listed as outside the guarantee."""
    kinds = {charge.charged.kind for client_id in case.chains for charge in case.charges(client_id)}
    noted = reports.non_private(case.chains.values(), case.run)
    listed = list(case.report["non_private"])
    for entry in noted:
        if entry not in listed:
            found.problems.append(
                f"{entry['client_id']} released {entry['what']!r} outside the guarantee, unlisted"
            )
    for output in case.report["outputs"]:
        what, cover = output["what"], output["covered_by"]
        if cover == "NonPrivate" and not any(entry["what"] == what for entry in listed):
            found.problems.append(f"{what!r} is outside the guarantee and not listed in non_private")
        elif cover not in ("NonPrivate", "public") and cover not in kinds:
            found.problems.append(
                f"{what!r} is said to be covered by {cover}, of which the ledgers have none"
            )
    _check_complete(case, found, kinds)
    count = len(case.report["outputs"])
    public = sum(output["covered_by"] == "public" for output in case.report["outputs"])
    found.facts.append(f"{count} declared outputs, {len(listed)} releases outside the guarantee, all listed")
    if public:
        found.facts.append(f"{public} outputs are declared public: taken on the report's word")


def _check_complete(case: Case, found: Findings, kinds: Set[str]) -> None:
    """What follows from the report's own method, masks, plans and rounds is declared, and by what was charged."""
    declared = {output["what"] for output in case.report["outputs"]}
    charged = {output["what"] for output in case.report["outputs"] if output["covered_by"] in kinds}
    for output in outputs.following(case.report):
        what, public = output["what"], output["covered_by"] == outputs.PUBLIC
        if what not in declared:
            found.problems.append(f"{what!r} follows from the rest of the report, and is no declared output")
        elif kinds and not public and what not in charged:
            found.problems.append(f"{what!r} is covered by what was charged, and is not declared so")
    for metric in outputs.measured(case.report):
        if not any(what.startswith(metric) for what in declared):
            found.problems.append(f"the report has a figure of {metric}, and no output that says so")


# --- 13 -----------------------------------------------------------------------------------------------------


def randomness_disclosed(case: Case, found: Findings) -> None:
    """Noise and batches come from a secret source that nobody chose or published a seed for."""
    randomness = case.report["randomness"]
    if randomness["deterministic"]:
        found.problems.append("noise or batches were reproducible, so whoever knows the seed can remove them")
    seeds = {key for key in _keys(randomness) if _SECRET_STATE.search(key)}
    seeds |= {key for key in _keys(case.report) if _SEED_OF_SECRETS.search(key)}
    for key in sorted(seeds):
        found.problems.append(f"the report publishes {key!r} of the noise or the batches")
    for name in ("noise_source", "sampling_source"):
        if any(word in randomness[name].lower() for word in _REPRODUCIBLE):
            found.problems.append(
                f"{name} is {randomness[name]!r}: whoever knows the seed can remove the noise"
            )
        elif randomness[name] != reports.OS_KEYED_AES_CTR:
            found.doubts.append(f"{name} {randomness[name]!r} is not one that this audit knows")
    if case.broken:
        found.doubts.append("the ledger is not whole (check 1), so no row confirms where the noise came from")
    for client_id in case.chains:
        for where, recorded in case.recorded(client_id):
            found.compare(where, recorded, "noise_source", randomness["noise_source"])
    found.facts.append(
        f"noise and batches: {reports.OS_KEYED_AES_CTR}, as the rows record and the report states"
    )


def _keys(value: object) -> Iterator[str]:
    """Every key of nested objects, however deep."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, Mapping):
            yield from map(str, item)
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)


# --- 16 -----------------------------------------------------------------------------------------------------


@needs_rows
def versions_recorded(case: Case, found: Findings) -> None:
    """The report names code and library versions, and every row of the run was written by the same."""
    stated = case.report["versions"]
    for name in _PRODUCED_BY:
        if not stated.get(name):
            found.doubts.append(f"the report does not state {name}")
    for client_id in case.chains:
        for where, recorded in case.recorded(client_id):
            # Rows record more than versions; what the report does not state is no claim.
            for name in sorted(stated):
                found.compare(where, recorded, name, stated[name])
    found.facts.append(", ".join(f"{name} {stated[name]}" for name in sorted(stated)))
