"""What leaves in a run, in words: whatever a report's own method, masks, plans and rounds say does.

A report has these lines because they follow (`report.build`), and check 11 asks for every one of them. Who leaves one
out, or calls it public, contradicts what each client's reservations have recorded by digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .events import AdaptiveClipPoissonGaussian, PoissonGaussian

PUBLIC = "public"
METRICS = ("accuracy", "perplexity")

ALWAYS = (
    {"what": "rosters, losses, refusals and message sizes of each round", "covered_by": PUBLIC},
    {"what": "ledger rows and anchors", "covered_by": PUBLIC},
)
"""What leaves in every run."""

Report = Mapping[str, Any]


def following(report: Report) -> list[dict[str, str]]:
    """The `outputs` that follow from the other parts of a report: what leaves, and what covers it."""
    adaptive = any(plan.get("adaptive_clip") for plan in report["plan"].values())
    charged = AdaptiveClipPoissonGaussian.kind if adaptive else PoissonGaussian.kind
    lines = [*_of_updates(report), *_of_rounds(report)]
    if adaptive:
        lines.append("the clip norms in ledger rows, which follow from noised counts")
    public = [{"what": what, "covered_by": PUBLIC} for what in _of_findings(report)]
    return [*({"what": what, "covered_by": charged} for what in lines), *public, *ALWAYS]


def measured(report: Report) -> list[str]:
    """The metrics of which a report has a figure."""
    figures = report["metrics"]
    return [
        name for name in METRICS if any(figures.get(f"{name}_{at}") is not None for at in ("before", "after"))
    ]


def _of_updates(report: Report) -> Iterator[str]:
    """What is sent of the clients' updates, by the contracts of the method."""
    contracts = report["method"]["contracts"]
    secure = report.get("secure_aggregation", {}).get("mode") == "secure"
    exchanges = [exchange for contract in contracts for exchange in contract["exchanges"]]
    most = max(sum(not _is_extra(one) for one in contract["exchanges"]) for contract in contracts)
    maps = "updates" if most <= 1 else f"updates, or of up to {most} maps of each,"
    yield f"the sum of the clients' {maps}" if secure else f"the clients' {maps} one by one, unmasked"
    if any(exchange.get("carries") == "votes" for exchange in exchanges):
        yield "for every coordinate, chosen or not, how many clients voted for it; and which were chosen"
    if secure and any("clients" in exchange for exchange in exchanges):
        yield "of what only some clients send, its sum over those alone"
    if secure and any("allocation" in contract for contract in contracts):
        yield "of each layer, or component of one, its sum over those alone that train it"
    if any("pruning" in contract.get("allocation", {}) for contract in contracts):
        yield "of each client's update one bit: whether its last components have faded"
    if any(contract.get("error_feedback") for contract in contracts):
        yield "with each update what earlier rounds left out of the same client's updates"
    if kept := sorted({role for contract in contracts for role in contract["stays_home"]}):
        shown = measured(report)
        told = f"its {' and '.join(shown)} on the public rows" if shown else "nothing else"
        yield f"of what stays at each client ({', '.join(kept)}), saved in its own home: {told}"
    if most > 1:
        yield "what the server announces between exchanges, which follows from the sums"


def _of_findings(report: Report) -> Iterator[str]:
    """What the server has found on the way of data that are declared public, and told everybody."""
    dealt = (contract.get("allocation", {}) for contract in report["method"]["contracts"])
    for data in sorted(
        {one["findings"]["scores_of"] for one in dealt if "scores" in one.get("findings", {})}
    ):
        yield f"scores of the layers, measured during the run on data declared public: {data}"


def _of_rounds(report: Report) -> Iterator[str]:
    """What the server makes of the sums, and shows."""
    added = any(contract["changes_base"] for contract in report["method"]["contracts"])
    whole = ", with what the method has added to the base weights" if added else ""
    yield f"the global adapter after each round, checkpoints and the adapter folder{whole}"
    if any(entry["certificate"] for entry in report["rounds"]):
        yield "each round's certificate, which follows from the sums"


def _is_extra(exchange: Mapping[str, Any]) -> bool:
    """Whether an exchange is of votes, or of what only some clients send: no further map of updates."""
    return exchange.get("carries") == "votes" or "clients" in exchange
