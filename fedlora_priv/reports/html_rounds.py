"""The sections of a report page that go round by round: what the method lets leave, and what happened."""

from __future__ import annotations

from collections.abc import Sequence

from fedlora_priv.reports.contracts import (
    by_round,
    consequences,
    contracts,
    personal_quality,
    rounds_text,
    travels_text,
)
from fedlora_priv.reports.markup import Markup, element, join, table
from fedlora_priv.reports.quality import Metric
from fedlora_priv.reports.summary import Report, Row, Summary, up_text


def method_section(report: Report) -> Markup:
    """Return what the method lets leave, by the rounds that it governs."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for contract in contracts(report):  # those that differ in who trains what alone are one here
        alike.setdefault(_contract_cells(contract), []).extend(contract["rounds"])
    if not alike:
        return Markup("")
    rows = [(rounds_text(sorted(numbers)), *cells) for cells, numbers in alike.items()]
    title = str(report["method"]["title"])
    heads = ("rounds", "method", "one client sends", "what that means")
    return join(element("h2", f"The method: {title}"), table(heads, rows))


def _contract_cells(contract: Row) -> tuple[str, ...]:
    """Return a contract as the cells of a table, without its rounds."""
    sent = [travels_text(exchange) for exchange in contract["exchanges"]]
    return (
        str(contract["title"]),
        "; then ".join(sent),
        "; ".join(consequences(contract)),
    )


def rounds_section(report: Report, summary: Summary, metrics: Sequence[Row]) -> Markup:
    """Return every round in a table that starts folded."""
    records = {entry["round"]: entry for entry in report.get("rounds") or ()}
    methods = by_round(report)
    rows = [
        (
            str(row["round"]),
            str(methods.get(row["round"], {}).get("name", "")),
            *_round_cells(row, records.get(row["round"], {}), summary.metric),
        )
        for row in metrics
    ]
    heads = (
        "#round",
        "method",
        f"#{summary.metric.key}",
        "#largest ε, with retries",
        "in the sum",
        "lost, refused, masked again, announced",
        "#error of the result",
        "transcript of each exchange",
    )
    shown = table(heads, rows)
    return join(
        element("h2", "Rounds"), element("details", element("summary", "every round in figures"), shown)
    )


def _round_cells(row: Row, record: Row, metric: Metric) -> tuple[str, ...]:
    """Return one round as the cells of a table: its metrics and what the report records of it."""
    events = [f"{loss['client_id']} lost before {loss['phase']}" for loss in row.get("lost") or ()]
    events += [f"{refusal['client_id']} refused" for refusal in row.get("refused") or ()]
    events += [
        f"{again['client_id']} masked again ({again['times']}×)" for again in record.get("remasked") or ()
    ]
    events += [f"{again['client_id']} told another basis" for again in record.get("announced_again") or ()]
    events += [f"{client_id}: last components faded" for client_id in record.get("faded") or ()]
    value = row.get(metric.key)
    summed = [", ".join(row["survivors"]), row.get("aborted") or ""]
    return (
        "" if value is None else metric.shown(value, more=1),
        f"≤ {up_text(max(row['epsilon'].values()))}" if row.get("epsilon") else "",
        "; ".join(filter(None, summed)) or "no sum",
        ", ".join(events),
        _error(record),
        element("code", " ".join(_transcripts(record))),
    )


def _error(record: Row) -> str:
    """Return how far a round's result is from the mean of the clients' products, and how well that is known."""
    certificate = record.get("certificate")
    if not certificate:
        return ""
    known = f"from {certificate['columns']} columns" if certificate["columns"] else "exactly"
    return f"{certificate['error']:.2%}, {known}"


def _transcripts(record: Row) -> list[str]:
    """Return the beginning of every transcript of a round that was signed."""
    return [one["transcript"][:16] for one in record.get("exchanges") or () if one["transcript"]]


def personal_section(summary: Summary, metrics: Sequence[Row]) -> Markup:
    """Return the quality of each client's own model, where clients have one."""
    each = personal_quality(metrics, summary.metric.key)
    rows = [(client_id, summary.metric.shown(value, more=1)) for client_id, value in each.items()]
    heads = ("client", f"#{summary.metric.key}")
    return join(element("h2", "Each client's own model"), table(heads, rows)) if rows else Markup("")
