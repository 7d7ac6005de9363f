"""The end of a run: the clients' signed statements, the report, and the files that others read.

The report's claims are computed by `accounting.report` from the clients' ledger rows; nothing here states an ε.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accounting import report as reports
from accounting.anchor import Anchor
from accounting.chain import replay
from accounting.errors import LedgerError
from accounting.outputs import PUBLIC
from accounting.rows import PARTITION_FILE, Partition
from fedlora_priv.communication.meter import KINDS
from fedlora_priv.communication.tally import DIRECTIONS
from fedlora_priv.config import Experiment
from fedlora_priv.engines.base import Engine, Step, Traffic
from fedlora_priv.errors import FederationError
from fedlora_priv.federation import wire
from fedlora_priv.federation.allocating import pruning, spare
from fedlora_priv.federation.checkpoint import History
from fedlora_priv.federation.files import write_atomically
from fedlora_priv.federation.provenance import noise_source, versions
from fedlora_priv.federation.round_record import ExchangeRecord, RoundRecord
from fedlora_priv.federation.runfolder import RunFolder
from fedlora_priv.federation.session import protection
from fedlora_priv.federation.setup import Parts
from fedlora_priv.reports.html import render
from protocols.secagg.identity import Roster


@dataclass(frozen=True)
class Statement:
    """What a client says at the end: its exported ledger and its signature over the head of it."""

    ledger: str
    anchor: Anchor


def collect(engine: Engine, roster: Roster, last_round: int) -> dict[str, Statement]:
    """Return the statements of the clients that still answer, each about itself and signed by its pinned key."""
    request = wire.encode(wire.Message(wire.CLOSE))
    answers = engine.exchange(dict.fromkeys(engine.client_ids, request), Step(last_round + 1, "close"))
    statements = {}
    for client_id, answer in answers.items():
        # A client that sends anything else is claimed at the worst case of its plan, like one that is gone.
        with contextlib.suppress(FederationError, LedgerError, KeyError, UnicodeDecodeError):
            statements[client_id] = _statement(client_id, roster[client_id], answer)
    return statements


def _statement(client_id: str, public_key: bytes, data: bytes) -> Statement:
    """Return a client's statement; raises one of the errors above if it is not a good one of that client."""
    message = wire.decode(data)
    ledger, anchor = message.blobs["ledger"].decode(), Anchor.from_bytes(message.blobs["anchor"])
    anchor.verify(public_key)
    chains = replay(ledger.splitlines())
    if {owner for owner, _ in chains} != {client_id} or anchor.client_id != client_id:
        raise LedgerError(f"the statement of {client_id} is about somebody else")
    return Statement(ledger, anchor)


def build(
    parts: Parts, folder: RunFolder, history: History, statements: Mapping[str, Statement], closing: Traffic
) -> dict[str, Any]:
    """Return the report of a run, valid under the published schema.

    Args:
        closing: the bytes of what was sent after the last round.
    """
    experiment = parts.experiment
    found = {entry.round: entry.findings for entry in history.records}
    return reports.build(
        run=folder.run.hex(),
        experiment={
            "name": experiment.experiment.name,
            "config_sha256": experiment.digest(),
            "start_weights": {"base": parts.model_reference, "from_run": None},
        },
        method=parts.stated(found),
        plans=parts.plans.values(),
        rows=[row for statement in statements.values() for row in statement.ledger.splitlines()],
        anchors=_anchors(history, statements),
        rounds=[_round(entry, pruned=pruning(experiment) is not None) for entry in history.records],
        metrics=_metrics(parts, history),
        bytes=_bytes(parts, history, closing),
        randomness=_randomness(experiment),
        outputs=_outputs(parts),
        versions=versions(),
        secure_aggregation=protection(experiment, spare(experiment, parts.layout, found)),
        environment=parts.environment(),
    )


def _anchors(history: History, statements: Mapping[str, Statement]) -> list[Anchor]:
    """Return each client's closing anchor or, of a client that is gone, the last one it ever confirmed with."""
    earlier = {
        client_id: Anchor.from_bytes(bytes.fromhex(anchor)) for client_id, anchor in history.anchors.items()
    }
    closing = {client_id: statement.anchor for client_id, statement in statements.items()}
    return list({**earlier, **closing}.values())


def _exchange(one: ExchangeRecord) -> dict[str, Any]:
    """Return an exchange as the report lists it: a band with its number and whose sum it is, others are the round's."""
    listed: dict[str, Any] = {
        "session_id": one.session,
        "transcript": one.transcript,
        "announced": one.announced,
    }
    if one.number and one.announced is None:
        listed |= {"exchange": one.number, "survivors": list(one.survivors)}
    return listed


def _round(entry: RoundRecord, *, pruned: bool) -> dict[str, Any]:
    """Return a round as the report lists it, with what clients have announced where they prune their ranks."""
    return ({"faded": list(entry.faded)} if pruned else {}) | {
        "round": entry.round,
        "survivors": list(entry.survivors),
        **entry.losses(),
        "exchanges": [_exchange(one) for one in entry.exchanges],
        "certificate": entry.certificate,
        "aborted": entry.aborted,
    }


def _metrics(parts: Parts, history: History) -> dict[str, Any]:
    """Return accuracy or perplexity before and after, if it may be reported."""
    metric = parts.experiment.model.metric
    measured = [row[metric] for row in history.metrics if row[metric] is not None]
    return {
        f"{metric}_before": history.quality_before,
        f"{metric}_after": measured[-1] if measured else None,
        "evaluated_on": _evaluated_on(parts),
        "credit": parts.credit,
    }


def _evaluated_on(parts: Parts) -> str:
    """Return what the figures were measured on, and where clients have models of their own, on whose."""
    if not parts.evaluation:
        return "no data, as none is declared public"
    rows = f"{len(parts.evaluation)} held-out public examples"
    return (
        f"{rows}, by each client with its own model: the mean of those that answered"
        if parts.home_roles
        else rows
    )


def _bytes(parts: Parts, history: History, closing: Traffic) -> dict[str, Any]:
    """Return the bytes of all rounds' messages, whole, beside dense float32 LoRA for as many rounds.

    What is sent after the last round, such as ledgers, is apart. A run that was resumed when it was complete sends
    that again.
    """
    totals = {}
    for way in ("uploaded", "downloaded"):
        totals[way] = {
            client_id: sum(row[f"{way}_bytes"].get(client_id, 0) for row in history.metrics)
            for client_id in parts.plans
        }
    dense = parts.layout.dense_fp32_bytes
    return {
        "uploaded_per_client": max(totals["uploaded"].values()),
        "downloaded_per_client": max(totals["downloaded"].values()),
        "dense_lora_fp32_per_client": dense * len(history.records),
        "dense_lora_fp32_per_client_and_round": dense,
        "uploaded_by_client": totals["uploaded"],
        "downloaded_by_client": totals["downloaded"],
        "by_kind": _by_kind(parts, history),
        "after_the_rounds": {"uploaded": closing.uploaded, "downloaded": closing.downloaded},
    }


def _by_kind(parts: Parts, history: History) -> dict[str, dict[str, dict[str, int]]]:
    """Return the bytes of all rounds by client, direction and kind."""
    totals: dict[str, dict[str, Counter[str]]] = {
        client_id: {way: Counter(dict.fromkeys(KINDS, 0)) for way in DIRECTIONS} for client_id in parts.plans
    }
    for row in history.metrics:
        for client_id, mine in row.get("bytes_by_kind", {}).items():
            for way, sizes in mine.items():
                totals[client_id][way].update(sizes)
    return {
        client_id: {way: dict(sizes) for way, sizes in mine.items()} for client_id, mine in totals.items()
    }


def _randomness(experiment: Experiment) -> dict[str, Any]:
    """Return where noise and batches came from."""
    source = noise_source(experiment)
    deterministic = experiment.training.deterministic_noise
    return {"noise_source": source, "sampling_source": source, "deterministic": deterministic}


def _outputs(parts: Parts) -> list[dict[str, str]]:
    """Return what leaves besides what follows from the rest of the report."""
    outputs = []
    if parts.label_names:
        outputs.append("names and number of the labels, as the experiment declares them")
    if parts.evaluation is not None:
        metric = parts.experiment.model.metric
        outputs.append(f"{metric} on held-out examples that the experiment declares public")
    return [{"what": what, "covered_by": PUBLIC} for what in outputs]


def partition(parts: Parts) -> Partition | None:
    """Return which row each client holds, if the rows are public: an auditor sees that none is held twice.

    Nobody can list rows that each party has brought itself.
    """
    listed = parts.experiment.data.public and parts.row_numbers
    return Partition(parts.dataset_id, parts.row_numbers) if listed else None


def adapter_notes(report: Mapping[str, Any], label_names: list[str]) -> str:
    """Return what the adapter's card says of the guarantee and, of a classifier, the labels."""
    claim = max(report["claims"], key=lambda claim: float(claim["epsilon"]))
    simulation = (
        " The training data was declared public, so this is a simulation." if report["simulation"] else ""
    )
    labels = "".join(f"- {index}: {name}\n" for index, name in enumerate(label_names))
    return (
        f"## Privacy\n\nε ≤ {claim['epsilon']:.4f} at δ = {claim['delta']:g} per {claim['unit']} "
        f"({claim['adjacency']}), at every client.{simulation} See `report.json` of the run.\n"
        + (f"\n## Labels\n\n{labels}" if labels else "")
    )


def write(
    folder: Path,
    report: dict[str, Any],
    metrics: list[dict[str, Any]],
    statements: Mapping[str, Statement],
    partition: Partition | None,
) -> None:
    """Write ledger.jsonl, partition.json, report.html and, last of all, report.json: then the run is finished."""
    if partition is not None:
        write_atomically(folder / PARTITION_FILE, partition.to_text().encode())
    ledger = "".join(statement.ledger for statement in statements.values())
    write_atomically(folder / "ledger.jsonl", ledger.encode())
    write_atomically(folder / "report.html", render(report, metrics).encode())
    reports.write(report, folder / "report.json")
