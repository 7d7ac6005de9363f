"""The closing table of a run: the HTML page's headline in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora_priv.reports import allocations, traffic
from fedlora_priv.reports.contracts import (
    by_round,
    certified_errors,
    contracts,
    personal_quality,
    rounds_text,
)
from fedlora_priv.reports.summary import Report, Row, Summary, bytes_text, power_text, summarise, up_text

Line = tuple[str, str, str]
"""What, its value, and what gives the value meaning."""


def print_summary(console: Console, report: Report, metrics: Sequence[Row]) -> None:
    """Print accuracy or perplexity, ε, bytes and survivors of a run, after whatever limits what they mean."""
    summary = summarise(report, metrics)
    _print_warnings(console, summary)
    table = Table(title=Text(summary.name), title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(style="dim")
    lines = [
        _quality(summary),
        *_personal(summary, metrics),
        *_privacy(summary),
        _upload(summary),
        _survivors(summary),
    ]
    for line in (*lines, *_method(report), *_allocation(report), *_certificate(report)):
        table.add_row(*(Text(cell) for cell in line))  # Text: a report's words are no console markup
    console.print(table)
    if (found := traffic.counted(metrics)) is not None:
        console.print(traffic.terminal_table(found, summary.dense_bytes, summary.clients * summary.rounds))


def _print_warnings(console: Console, summary: Summary) -> None:
    """Print what a reader must know before any number."""
    if summary.deterministic:
        console.print(Text("NOT PRIVATE: noise or sampling was reproducible in this run.", style="bold red"))
    if summary.simulation:
        console.print(
            Text("Simulation: the data was declared public, so this run protects nobody.", style="yellow")
        )
    if summary.insecure:
        console.print(
            Text("Insecure aggregation: the server saw every client's update by itself.", style="yellow")
        )
    for what in summary.non_private:
        console.print(Text(f"released outside the guarantee: {what}", style="red"))


def _quality(summary: Summary) -> Line:
    """Return accuracy or perplexity before and after, or why there is none."""
    metric = summary.metric
    if summary.after is None:
        return metric.key, "not reported", "the evaluation data was not declared public"
    after = metric.plain(summary.after)
    where = f"on {summary.evaluated_on}" if summary.evaluated_on else ""
    if summary.before is None:
        return metric.key, after, where
    return metric.key, f"{metric.plain(summary.before)} → {after}", f"before → after, {where}".rstrip(", ")


def _privacy(summary: Summary) -> list[Line]:
    """Return the worst claim with its unit, adjacency and views."""
    if summary.epsilon is None or summary.delta is None:
        return [("privacy", "no guarantee", "the report makes no claim")]
    meaning = f"{summary.adjacency}; largest of any client"
    lines = [("privacy", f"ε ≤ {up_text(summary.epsilon)}, δ = {power_text(summary.delta)}", meaning)]
    lines.append(("", "", f"in the view of: {', '.join(summary.views)}"))
    if summary.lifetime_epsilon not in (None, summary.epsilon):
        lines.append(("", f"ε ≤ {up_text(summary.lifetime_epsilon)}", "over the life of the data, all runs"))
    return lines


def _upload(summary: Summary) -> Line:
    """Return the upload against dense adapters."""
    if summary.uploaded_bytes is None:
        return "upload", "nothing", "no round reached its sum"
    meaning = "per client and round, on the wire"
    if summary.upload_ratio is not None and summary.dense_bytes is not None:
        meaning += f"; {summary.upload_ratio:.3g} × dense float32 LoRA ({bytes_text(summary.dense_bytes)})"
    return "upload", bytes_text(summary.uploaded_bytes), meaning


def _survivors(summary: Summary) -> Line:
    """Return how many clients reached the sums."""
    lost = "nobody lost" if not summary.losses else f"{summary.losses} lost on the way"
    failed = f", rounds without a result: {summary.rounds_without_sum}" if summary.rounds_without_sum else ""
    total = summary.clients * summary.rounds
    scale = f"{summary.clients} clients × {summary.rounds} rounds"
    return "survivors", f"{summary.survivals} of {total}", f"{scale}, {lost}{failed}"


def _method(report: Report) -> list[Line]:
    """Return the method, and by round where it is another one in other rounds."""
    if not contracts(report):
        return []
    phases: dict[str, list[int]] = {}
    for number, contract in sorted(by_round(report).items()):
        phases.setdefault(str(contract["name"]), []).append(number)
    named = [f"rounds {rounds_text(numbers)} {name}" for name, numbers in phases.items()]
    meaning = f"{', '.join(named)}; " if len(named) > 1 else ""
    meaning += f"{report['method']['title']}; {_sums(report)}"
    return [("method", str(report["method"]["name"]), meaning)]


def _allocation(report: Report) -> list[Line]:
    """Return who trained what, where not everybody was to train everything."""
    heat = allocations.heat_of(report)
    return [] if heat is None else [("in parts", heat.strategy, allocations.summary_text(heat))]


def _sums(report: Report) -> str:
    """Return how many sums were taken: of rounds where each has one, else of the exchanges that they may have."""
    planned = [len(contract["exchanges"]) for contract in by_round(report).values()]
    begun = [len(record.get("exchanges") or ()) for record in report["rounds"]]
    if max(planned) == 1 and max(begun, default=0) <= 1:
        summed = sum(bool(record["survivors"]) for record in report["rounds"])
        return f"a sum in {summed} of {len(planned)} rounds"
    return f"{sum(begun)} exchanges in {len(begun)} rounds, of {sum(planned)} that it may have"


def _certificate(report: Report) -> list[Line]:
    """Return how far the rounds' results were from the means of the clients' products, where that is known."""
    errors = certified_errors(report.get("rounds") or ())
    if not errors:
        return []
    last, (least, most) = max(errors), (min(errors.values()), max(errors.values()))
    meaning = f"of the mean product missed in round {last}"
    if len(errors) > 1:
        meaning += f"; {least:.2%} to {most:.2%} in {len(errors)} rounds"
    return [("certificate", f"{errors[last]:.2%}", meaning)]


def _personal(summary: Summary, metrics: Sequence[Row]) -> list[Line]:
    """Return the range over clients, where each has a model of its own."""
    metric = summary.metric
    each = personal_quality(metrics, metric.key)
    if not each:
        return []
    least, most = min(each.values()), max(each.values())
    meaning = f"own models of {len(each)} clients, on the same public examples; above is their mean"
    return [("", f"{metric.plain(least)} to {metric.plain(most)}", meaning)]
