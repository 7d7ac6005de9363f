"""The checks of an audit, one function each.

A check collects problems (each makes it FAIL), doubts (without problems: UNVERIFIABLE) and facts. It must not
raise on anything that the report's schema lets through.
"""

from __future__ import annotations

from collections.abc import Callable

from . import report as reports
from .anchor import Anchor, ledger_head
from .case import Case, Findings, Verdict, needs_rows
from .charged import everything_charged
from .derive import epsilon_rederived
from .errors import LedgerError

__all__ = ["CHECKS", "Case", "Verdict"]

# What a report must state of what produced it, and the rows of the run confirm.
_PRODUCED_BY = ("python", "numpy", "dp_accounting", "fedlora_priv", "code_sha256")
# Words in the name of a source that mean: whoever knows the seed can draw the noise again.
_REPRODUCIBLE = ("determin", "reproduc", "seed")


# --- 1 ------------------------------------------------------------------------------------------------------


def chain_whole_and_anchored(case: Case, found: Findings) -> None:
    """Every planned client's chain replays, ends where its signed anchor says, and no round is left out."""
    if case.broken:
        found.problems.append(case.broken)
        return
    anchors = [Anchor.from_json(value) for value in case.report["anchors"]]
    by_client = {anchor.client_id: anchor for anchor in anchors}
    if len(by_client) < len(anchors):
        found.problems.append("a client has more than one anchor")
    if ledger_head(anchors) != case.report["ledger_head"]:
        found.problems.append("ledger_head is not the hash of the anchored heads")
    for client_id in sorted({*case.plans, *case.chains, *by_client}):
        _check_anchor(case, found, client_id, by_client.get(client_id))
    if case.roster is None:
        found.doubts.append("the signatures fit keys that the report itself names; no roster pins them")
    else:
        for client_id in sorted(case.roster.keys() - case.plans.keys()):
            found.problems.append(f"{client_id} is in the roster, but the report leaves it out")
    if case.chains and reports.is_simulation(case.chains.values()) != case.report["simulation"]:
        found.problems.append("the report and the ledgers disagree on whether the data is public")
    _check_rounds_complete(case, found)


def _check_anchor(case: Case, found: Findings, client_id: str, anchor: Anchor | None) -> None:
    """One client's chain against its anchor."""
    chain = case.chains.get(client_id)
    if client_id not in case.plans:
        found.problems.append(f"{client_id} has records but no plan")
    if anchor is None:
        found.doubts.append(f"{client_id} has no signed anchor" + ("" if chain else " and no rows"))
        return
    try:
        anchor.verify(case.roster[client_id] if case.roster and client_id in case.roster else None)
    except LedgerError as error:
        found.problems.append(str(error))
    if case.roster is not None and client_id not in case.roster:
        found.problems.append(f"{client_id} is not in the roster")
    rows = chain.rows if chain else []
    if not rows and case.rests_on_plan(client_id):
        found.doubts.append(f"{client_id} is anchored but its rows are not here; its claim rests on its plan")
    elif len(rows) < anchor.rows:
        found.problems.append(
            f"{client_id}: row {len(rows)} is missing, the signed ledger has {anchor.rows} rows"
        )
    elif rows[anchor.rows - 1].digest != anchor.head or rows[0].dataset_id != anchor.dataset_id:
        found.problems.append(f"{client_id}: row {anchor.rows - 1} is not the one that was signed")
    elif len(rows) > anchor.rows:
        found.doubts.append(f"{client_id}: rows from {anchor.rows} on are not signed")
    else:
        found.facts.append(f"{client_id}: {anchor.rows} rows, signed")


def _check_rounds_complete(case: Case, found: Findings) -> None:
    """The report lists rounds 1, 2, ... without a gap, as many as planned and as any ledger released."""
    numbers = [entry["round"] for entry in case.report["rounds"]]
    if numbers != list(range(1, len(numbers) + 1)):
        found.problems.append(f"the report's rounds are not 1 to {len(numbers)} in order")
    planned = max(plan["rounds"] for plan in case.plans.values())
    if len(numbers) < planned:
        found.doubts.append(
            f"{len(numbers)} of {planned} planned rounds are listed: the run may have ended early, or the report "
            "and its anchors are older than the end; nothing signed says which"
        )
    for client_id in case.chains:
        charges = case.charges(client_id)
        for charge in charges:
            if charge.releases and charge.round not in numbers:
                found.problems.append(f"{client_id} released in round {charge.round}, which the report omits")
        last = max((charge.round for charge in charges), default=0)
        if last < len(numbers):
            found.doubts.append(
                f"{client_id}: the signed rows end at round {last} of {len(numbers)}: it may have taken no part "
                "after that, or its anchor is an older one"
            )


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
    adjacencies = {plan["adjacency"] for plan in case.plans.values()}
    if any({claim["adjacency"]} != adjacencies for claim in case.report["claims"]):
        found.problems.append("a claim states another adjacency than the plans")
    found.facts.append(f"Poisson sampling, {', '.join(sorted(adjacencies))}, in every row of the run")


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
    count = len(case.report["outputs"])
    public = sum(output["covered_by"] == "public" for output in case.report["outputs"])
    found.facts.append(f"{count} declared outputs, {len(listed)} releases outside the guarantee, all listed")
    if public:
        found.facts.append(f"{public} outputs are declared public: taken on the report's word")


# --- 13 -----------------------------------------------------------------------------------------------------


def randomness_disclosed(case: Case, found: Findings) -> None:
    """Noise and batches come from a secret source that nobody chose or published a seed for."""
    randomness = case.report["randomness"]
    if randomness["deterministic"]:
        found.problems.append("noise or batches were reproducible, so whoever knows the seed can remove them")
    for key in randomness:
        if "seed" in key.lower():
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


def _as_check(
    number: int, name: str, remedy: str, body: Callable[[Case, Findings], None]
) -> Callable[[Case], Verdict]:
    """A check that collects, then judges."""

    def check(case: Case) -> Verdict:
        found = Findings()
        body(case, found)
        return found.verdict(number, name, remedy)

    return check


CHECKS = (
    _as_check(
        1,
        "hash chain whole and anchored, rounds complete",
        "get the ledgers and anchors again from the clients themselves, and a roster from outside the server",
        chain_whole_and_anchored,
    ),
    _as_check(
        2, "epsilon re-derived by two methods", "rely on the re-derived epsilon only", epsilon_rederived
    ),
    _as_check(3, "delta below 1/n", "ask for the claim at a smaller delta", delta_small_enough),
    _as_check(
        4, "every release reserved, steps as planned", "ask the client for its ledger", everything_charged
    ),
    _as_check(5, "sampler and adjacency as claimed", "ask how batches were drawn", sampler_matches),
    _as_check(11, "every output covered", "treat the unlisted output as a leak", outputs_covered),
    _as_check(
        13,
        "noise and sampling source disclosed",
        "do not use this model on private data",
        randomness_disclosed,
    ),
    _as_check(16, "versions and code recorded", "run again with recorded versions", versions_recorded),
)
