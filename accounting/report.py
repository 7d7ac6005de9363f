"""The JSON report: what is claimed, for whom, and the records that the claims follow from.

Claims are computed here from ledger rows, never handed in. `report.schema.json`, beside this file, is the
published format; `docs/report-format.md` explains it field by field.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from . import canonical
from .anchor import Anchor, ledger_head
from .chain import Chain, replay, shares_noise
from .entries import Row
from .errors import ReportError
from .event_fields import VIEWS
from .events import PrivateEvent
from .merge import DISJOINT, OVERLAPPING, federation_epsilon
from .outputs import ALWAYS, following
from .planning import Plan
from .pricing import accountant_for, epsilon

SCHEMA_VERSION = 3
FEDERATION = "federation"
# The randomness that this library itself uses; an audit knows no other by name.
OS_KEYED_AES_CTR = "AES-256-CTR keyed by the operating system"

REPEATED = ("remasked", "announced_again")
"""What a round of a report says of updates that left more than once: properties of `chain.Charge`."""

Report = dict[str, Any]


def build(
    *,
    run: str,
    experiment: Mapping[str, Any],
    method: Mapping[str, Any],
    plans: Iterable[Plan],
    rows: Iterable[Row | str],
    anchors: Iterable[Anchor],
    rounds: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    bytes: Mapping[str, Any],
    randomness: Mapping[str, Any],
    outputs: Sequence[Mapping[str, str]],
    versions: Mapping[str, str],
    secure_aggregation: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    overlapping: bool = False,
) -> Report:
    """The report of one run, its claims computed from the clients' ledger rows, valid under the schema.

    `run` is the run's id (hex) in the ledgers; `rows` are the clients' exported ledgers, one after the other,
    and `anchors` their signed heads. The other arguments are the sections of those names, but for `outputs`: what left
    besides all that follows from the other sections (`outputs.following`), which the report says anyway. A planned
    client whose rows are missing is claimed at the worst case of its plan. `overlapping` declares that a row of data
    may be held by several clients.

    Raises:
        LedgerError: the rows are not whole.
        ReportError: the plans disagree about delta or adjacency, a client has several ledgers, a method of several
            exchanges has charges that share their noise, or a section breaks the schema.
    """
    by_client = {plan.client_id: plan for plan in plans}
    chains = _by_client(rows)
    _require_priced(method, chains.values(), run)
    anchors = tuple(anchors)
    report: Report = {
        "schema_version": SCHEMA_VERSION,
        "experiment": dict(experiment),
        "run": run,
        "mode": "local",
        "simulation": is_simulation(chains.values()),
        "method": dict(method),
        "claims": make_claims(by_client, chains, run, overlapping=overlapping),
        "plan": {client_id: plan.to_json() for client_id, plan in by_client.items()},
        "metrics": dict(metrics),
        "bytes": dict(bytes),
        "rounds": [{**entry, **repeated(chains, run, entry.get("round"))} for entry in rounds],
        "randomness": dict(randomness),
        "outputs": [*ALWAYS, *(dict(output) for output in outputs)],
        "anchors": [anchor.to_json() for anchor in anchors],
        "ledger_head": ledger_head(anchors),
        "non_private": non_private(chains.values(), run),
        "versions": dict(versions),
    }
    optional = {"secure_aggregation": secure_aggregation, "environment": environment}
    report |= {name: dict(section) for name, section in optional.items() if section is not None}
    validate(report)
    report["outputs"] = [*following(report), *report["outputs"][len(ALWAYS) :]]
    return report


def _by_client(rows: Iterable[Row | str]) -> dict[str, Chain]:
    """Return each client's chain. Raises ReportError where a client has several."""
    found = replay(rows)
    chains = {chain.client_id: chain for chain in found.values()}
    if len(chains) < len(found):
        raise ReportError("a client has ledgers of several data sets: give the one that the report is about")
    return chains


def _require_priced(method: Mapping[str, Any], chains: Iterable[Chain], run: str) -> None:
    """Raise ReportError where an exchange would have no price: a share of noise is priced for one sum of it."""
    if all(len(contract.get("exchanges", ())) < 2 for contract in method.get("contracts", ())):
        return
    if any(shares_noise(event) for chain in chains for event in chain.spent(run)):
        raise ReportError("a method of several exchanges has no price where clients share the noise")


def make_claims(
    plans: Mapping[str, Plan], chains: Mapping[str, Chain], run: str, *, overlapping: bool = False
) -> list[dict[str, Any]]:
    """Every client's claim in every view, then the federation's, from what the chains charge.

    In mode `local` the views do not differ: each client's noise protects it by itself, so nothing is gained
    from masks, from others' noise or from who took part. The federation's epsilon is the largest client's, at the
    one delta, or, where rows may be shared, that of all clients' events composed.

    Raises:
        ReportError: no plan, or plans that disagree about delta or adjacency.
    """
    if len({(plan.delta, plan.adjacency) for plan in plans.values()}) != 1:
        raise ReportError("a federation claim needs one delta and one adjacency in all plans")
    delta = next(iter(plans.values())).delta
    charged = {who: _charged(plan, chains.get(who), run) for who, plan in plans.items()}
    lifetimes = {who: chains[who].spent() if who in chains else None for who in plans}
    clients = {
        client_id: _client_claim(
            plan, charged[client_id], lifetimes[client_id], "ledger" if client_id in chains else "plan"
        )
        for client_id, plan in plans.items()
    }
    known = [events for events in lifetimes.values() if events is not None]
    clients[FEDERATION] = {
        **next(iter(clients.values())),
        "epsilon": federation_epsilon(charged.values(), delta, overlapping=overlapping),
        "lifetime_epsilon": None
        if len(known) < len(plans)
        else federation_epsilon(known, delta, overlapping=overlapping),
        "accountant": max(claim["accountant"] for claim in clients.values()),  # "rdp" if any is
        "n": sum(plan.declared_examples for plan in plans.values()),
        "basis": OVERLAPPING if overlapping else DISJOINT,
    }
    return [{"who": who, "view": view, **claim} for who, claim in clients.items() for view in VIEWS]


def _charged(plan: Plan, chain: Chain | None, run: str) -> tuple[PrivateEvent, ...]:
    """What a client's rows charge in this run or, without rows, the worst case of its plan."""
    return chain.spent(run) if chain else planned_events(plan)


def _client_claim(
    plan: Plan, charged: tuple[PrivateEvent, ...], lifetime: tuple[PrivateEvent, ...] | None, basis: str
) -> dict[str, Any]:
    """What one client's events amount to: in this run, and over the data set's lifetime."""
    return {
        "unit": "example",
        "adjacency": plan.adjacency,
        "epsilon": epsilon(charged, plan.delta),
        "delta": plan.delta,
        "accountant": accountant_for((*charged, *(lifetime or ()))),
        "lifetime_epsilon": None if lifetime is None else epsilon(lifetime, plan.delta),
        "n": plan.declared_examples,
        "basis": basis,
    }


def planned_events(plan: Plan) -> tuple[PrivateEvent, ...]:
    """Everything that a plan allows, retries included."""
    return (plan.round_event(),) * (plan.rounds + plan.retry_rounds)


def is_simulation(chains: Iterable[Chain]) -> bool:
    """Whether all the data was declared public: then the guarantee protects nobody and is a demonstration."""
    flags = [chain.opening.public for chain in chains]
    return bool(flags) and all(flags)


def non_private(chains: Iterable[Chain], run: str) -> list[dict[str, Any]]:
    """What the run released outside the guarantee, as the ledgers noted it."""
    return [
        {
            "client_id": chain.client_id,
            "round": note.round,
            "what": note.event.what,
            "reason": note.event.reason,
        }
        for chain in chains
        for note in chain.notes
        if note.run == run
    ]


def repeated(chains: Mapping[str, Chain], run: str, number: object) -> dict[str, list[dict[str, Any]]]:
    """Who masked the same update of round `number` in more sessions than one an exchange, or for more announcements.

    Lists `remasked` and `announced_again`, as a round of the report has them.
    """
    charges = [
        (client_id, charge)
        for client_id, chain in chains.items()
        for charge in chain.charges.values()
        if (charge.run, charge.round) == (run, number)
    ]
    return {
        name: [
            {"client_id": client_id, "times": getattr(charge, name)}
            for client_id, charge in charges
            if getattr(charge, name)
        ]
        for name in REPEATED
    }


def validate(report: object) -> None:
    """Raise ReportError, saying where, unless `report` follows the published schema."""
    version = report.get("schema_version", SCHEMA_VERSION) if isinstance(report, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise ReportError(
            f"schema_version: the report is of version {version!r}, this program reads {SCHEMA_VERSION}: "
            "use the release that wrote it"
        )
    # jsonschema takes a while to import, and nothing else here needs it.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(schema()).iter_errors(report))
    if error is not None:
        where = "/".join(str(part) for part in error.absolute_path) or "the report"
        raise ReportError(f"{where}: {error.message[:200]}")


@cache
def schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of the report."""
    text = resources.files(__package__).joinpath("report.schema.json").read_text(encoding="utf-8")
    value: dict[str, Any] = json.loads(text)
    return value


def write(report: Report, path: str | Path) -> None:
    """Validate a report and put it in place at once, so that no reader sees half of it."""
    validate(report)
    try:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise ReportError(f"the report cannot be written: {error}") from error
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: str | Path) -> Report:
    """The report in a file. Raises ReportError if it cannot be read or breaks the schema."""
    try:
        report = canonical.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read as a report: {error}") from error
    validate(report)
    result: Report = report
    return result
