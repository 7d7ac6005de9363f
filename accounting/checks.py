"""The checks of an audit, one function each.

A check collects problems (each makes it FAIL), doubts (without problems: UNVERIFIABLE) and facts. It must not
raise on anything that the report's schema lets through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from . import report as reports
from .anchor import Anchor, ledger_head
from .chain import Chain, Charge
from .errors import AccountingError, LedgerError
from .events import PoissonGaussian, PrivateEvent
from .pricing import epsilon

Status = Literal["PASS", "FAIL", "UNVERIFIABLE"]
# Accountants agree to ~1e-9 across platforms; a reported epsilon may have lost digits in printing.
EPSILON_TOLERANCE = 1e-6
# Claims are computed, not chosen: one that is higher than this over what the rows cost was edited, or another
# accountant's. The slack is for other versions of the accountant.
EPSILON_LOOSE = 1e-3
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check found: its number and name, the status, the evidence, and what would help."""

    check: int
    name: str
    status: Status
    evidence: str
    remedy: str

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Case:
    """What an audit has before it: the report, the chains by client, what broke them, and the pinned keys."""

    report: Mapping[str, Any]
    chains: Mapping[str, Chain]
    broken: str | None
    roster: Mapping[str, bytes] | None

    @property
    def run(self) -> str:
        """The run that the report is about."""
        return str(self.report["run"])

    @property
    def plans(self) -> Mapping[str, Mapping[str, Any]]:
        """The plans by client."""
        plans: Mapping[str, Mapping[str, Any]] = self.report["plan"]
        return plans

    def rests_on_plan(self, client_id: str) -> bool:
        """Whether the report itself says that a client's claim is its plan's worst case, for want of rows."""
        return any(c["who"] == client_id and c["basis"] == "plan" for c in self.report["claims"])

    def charges(self, client_id: str) -> list[Charge]:
        """A client's charges in this run."""
        chain = self.chains.get(client_id)
        return [charge for charge in chain.charges.values() if charge.run == self.run] if chain else []


@dataclass(slots=True)
class Findings:
    """What a check has gathered."""

    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    def verdict(self, number: int, name: str, remedy: str) -> Verdict:
        """The verdict that follows: the first few of what weighs most."""
        status: Status = "FAIL" if self.problems else "UNVERIFIABLE" if self.doubts else "PASS"
        shown = list(dict.fromkeys(self.problems or self.doubts or self.facts))
        more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        return Verdict(
            number, name, status, "; ".join(shown[:_SHOWN]) + more, "" if status == "PASS" else remedy
        )


def needs_rows(check: Callable[[Case, Findings], None]) -> Callable[[Case, Findings], None]:
    """A check that reads ledger rows: with a broken ledger it has nothing to stand on."""

    def guarded(case: Case, found: Findings) -> None:
        if case.broken:
            found.doubts.append("the ledger is not whole (check 1), so its rows prove nothing")
        else:
            check(case, found)

    return guarded


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
        found.doubts.append(f"the roster has no key for {client_id}")
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
    """The report lists rounds 1, 2, ... without a gap, up to the last one that any ledger released."""
    numbers = [entry["round"] for entry in case.report["rounds"]]
    if numbers != list(range(1, len(numbers) + 1)):
        found.problems.append(f"the report's rounds are not 1 to {len(numbers)} in order")
    for client_id in case.chains:
        for charge in case.charges(client_id):
            if charge.releases and charge.round not in numbers:
                found.problems.append(f"{client_id} released in round {charge.round}, which the report omits")


# --- 2 ------------------------------------------------------------------------------------------------------


@needs_rows
def epsilon_rederived(case: Case, found: Findings) -> None:
    """Each claim against PLD and our own RDP, from the rows; none may be missing."""
    claims = {(claim["who"], claim["view"]): claim for claim in case.report["claims"]}
    if len(claims) < len(case.report["claims"]):
        found.problems.append("a claim is made twice")
    derived = {client_id: _derive(case, found, client_id) for client_id in case.plans}
    derived[reports.FEDERATION] = (
        max(run for run, _ in derived.values()),
        max(lifetime for _, lifetime in derived.values()),
    )
    if set(claims) != {(who, view) for who in derived for view in reports.VIEWS}:
        found.problems.append(
            "the claims do not cover every client and the federation in every view, once each"
        )
    for (who, view), claim in claims.items():
        run, lifetime = derived.get(who, (0.0, 0.0))
        whole = who in case.chains or (who == reports.FEDERATION and case.chains.keys() >= case.plans.keys())
        _compare(found, f"{who} ({view})", claim["epsilon"], run, whole=whole)
        if claim["lifetime_epsilon"] is not None:
            _compare(found, f"{who} ({view}), lifetime", claim["lifetime_epsilon"], lifetime, whole=whole)
    run, lifetime = derived[reports.FEDERATION]
    found.facts.insert(0, f"federation: PLD gives {run:.6f} for the run, {lifetime:.6f} over the lifetime")


def _derive(case: Case, found: Findings, client_id: str) -> tuple[float, float]:
    """A client's epsilon in this run and over its lifetime, by PLD, after comparing PLD with RDP."""
    chain, plan = case.chains.get(client_id), case.plans[client_id]
    if chain is None:
        found.doubts.append(f"{client_id}: no rows, so its claim can at most be held against its plan")
        return epsilon((_planned_event(plan),), plan["delta"]) if case.rests_on_plan(client_id) else 0.0, 0.0
    return (
        _price(found, client_id, chain.spent(case.run), plan["delta"]),
        _price(found, client_id, chain.spent(), plan["delta"]),
    )


def _price(found: Findings, client_id: str, events: tuple[PrivateEvent, ...], delta: float) -> float:
    """PLD's epsilon; RDP, which shares no code with it, must not lie below."""
    try:
        pld, rdp = epsilon(events, delta), epsilon(events, delta, accountant="rdp")
    except AccountingError as error:
        found.problems.append(f"{client_id}: {error}")
        return float("inf")
    # PLD rounds each step's loss up to its grid, which can outweigh RDP's slack at tiny epsilons.
    if pld > 1.02 * rdp + 0.05:
        found.problems.append(
            f"{client_id}: PLD gives {pld:.6f}, above RDP's {rdp:.6f}: one of them is wrong"
        )
    found.facts.append(f"{client_id}: PLD {pld:.6f}, RDP {rdp:.6f}")
    return pld


def _compare(found: Findings, what: str, reported: float, derived: float, *, whole: bool) -> None:
    """A claim below what PLD makes of the rows is false; one above it, with all rows here, was not computed."""
    if reported < derived - EPSILON_TOLERANCE:
        found.problems.append(f"{what}: {reported:.6f} is reported, the rows cost {derived:.6f}")
    elif whole and reported > derived + EPSILON_LOOSE:
        found.problems.append(f"{what}: {reported:.6f} is reported, but the rows cost only {derived:.6f}")


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


# --- 4 ------------------------------------------------------------------------------------------------------


@needs_rows
def everything_charged(case: Case, found: Findings) -> None:
    """Each survivor of each round had a committed reservation, and all charges keep to the plan."""
    for entry in case.report["rounds"]:
        for client_id in entry["survivors"]:
            _check_released(case, found, client_id, entry)
    for client_id, plan in case.plans.items():
        _check_plan_kept(case, found, client_id, plan)


def _check_released(case: Case, found: Findings, client_id: str, entry: Mapping[str, Any]) -> None:
    """One survivor's upload in one round: charged, committed, and in the session that the report names."""
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
    releases = [release for charge in committed for release in charge.releases]
    if not committed:
        found.problems.append(f"{where} is in the sum, but its ledger has no committed charge")
    elif not any(release.session == entry["session_id"] for release in releases):
        found.problems.append(f"{where}: its ledger records no release into the reported session")
    elif any(
        release.session == entry["session_id"] and release.transcript not in (None, entry["transcript"])
        for release in releases
    ):
        found.problems.append(f"{where}: its ledger records another transcript of that session")


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
        for name in ("noise_multiplier", "clip_norm", "sample_rate"):
            planned, actual = plan[name], getattr(charge.reserved, name, 1.0)
            if planned != actual:
                found.problems.append(
                    f"{client_id}, row {charge.reservation}: {name} {actual:g} where {planned:g} was planned"
                )
    cost = epsilon((_planned_event(plan),), plan["delta"])
    if cost > plan["target_epsilon"] + EPSILON_TOLERANCE:
        found.problems.append(
            f"{client_id}: the plan costs {cost:.6f}, above its target {plan['target_epsilon']:g}"
        )
    found.facts.append(
        f"{client_id}: {len(charges)} charges, {steps} of {plan['planned_steps']} planned steps"
    )


def _planned_event(plan: Mapping[str, Any]) -> PoissonGaussian:
    """All the steps of a reported plan."""
    return PoissonGaussian(
        plan["noise_multiplier"],
        plan["sample_rate"],
        plan["planned_steps"],
        plan["clip_norm"],
        plan["adjacency"],
    )


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
    found.facts.append(f"{count} declared outputs, {len(listed)} releases outside the guarantee, all listed")


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
        if randomness[name] != reports.OS_KEYED_AES_CTR:
            found.doubts.append(f"{name} {randomness[name]!r} is not one that this audit knows")
    found.facts.append(f"noise and batches: {reports.OS_KEYED_AES_CTR}, as the report states it")


# --- 16 -----------------------------------------------------------------------------------------------------


@needs_rows
def versions_recorded(case: Case, found: Findings) -> None:
    """The report names code and library versions, and every row of the run was written by the same."""
    stated = case.report["versions"]
    for name in ("python", "numpy", "dp_accounting", "fedlora_priv", "code_sha256"):
        if not stated.get(name):
            found.doubts.append(f"the report does not state {name}")
    for client_id, chain in case.chains.items():
        for charge in case.charges(client_id):
            recorded = getattr(chain.rows[charge.reservation].entry, "versions", {})
            for name in sorted(set(recorded) & set(stated)):
                if recorded[name] != stated[name]:
                    found.problems.append(
                        f"{client_id}, row {charge.reservation}: {name} {recorded[name]}, reported {stated[name]}"
                    )
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
