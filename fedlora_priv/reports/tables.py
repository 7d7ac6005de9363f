"""The terminal tables of ``plan``, ``audit`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from accounting.case import Verdict
from fedlora_priv.doctor import Finding
from fedlora_priv.reports import traffic
from fedlora_priv.reports.allocations import print_allocation
from fedlora_priv.reports.contracts import by_round, consequences, rounds_text
from fedlora_priv.reports.masking import bands_text, graph_text
from fedlora_priv.reports.summary import bytes_text, environment_text

COLOURS = {"PASS": "green", "OK": "green", "FAIL": "bold red", "WARN": "yellow", "UNVERIFIABLE": "yellow"}


def print_plan(console: Console, planned: dict[str, Any]) -> None:
    """Print what `federation.preview.preview` returned."""
    _print_clients(console, planned)
    _print_guarantee(console, planned["guarantee"])
    _print_method(console, planned)
    print_allocation(console, planned)
    print_fact(console, "rows", _rows_text(planned["rows"]))
    print_fact(console, "training", environment_text(planned["environment"]))
    _print_rounds(console, planned)


def _print_clients(console: Console, planned: dict[str, Any]) -> None:
    """Print each client's plan, who would refuse it, and what becomes of the clip norm if it adapts."""
    table = Table(
        "client",
        "examples",
        "sampling\nrate",
        "noise\nmultiplier",  # in two lines each: in 80 columns it would lose its end
        "steps",
        "ε of\nthe run",
        "ε with\nretries",
    )
    for client in planned["clients"]:
        table.add_row(
            client["client_id"],
            str(client["declared_examples"]),
            f"{client['sample_rate']:.4f}",
            f"{client['noise_multiplier']:.4f}",
            f"{client['rounds'] * client['steps_per_round']} (+{client['retry_rounds'] * client['steps_per_round']})",
            f"{client['epsilon']:.3f}",
            f"{client['epsilon_with_retries']:.3f}",
        )
    console.print(table)
    for client_id, why in planned["refused"].items():
        console.print(f"{client_id} would refuse this run: {why}", style="red", markup=False, highlight=False)
    if adaptive := planned["clients"][0].get("adaptive_clip"):
        print_fact(
            console,
            "clip norm",
            f"begins at {planned['clients'][0]['clip_norm']:g} and follows counts of the gradients within it, noised "
            f"by {adaptive['count_noise_stddev']:g}; the noise multipliers are the gradients', and ε covers both",
        )


def _print_guarantee(console: Console, guarantee: Mapping[str, Any]) -> None:
    """Print what is guaranteed to whom, and what it means for an attack."""
    kind = (
        "a simulation: the data is declared public"
        if guarantee["simulation"]
        else "no row is declared public"
    )
    print_fact(
        console,
        "guarantee",
        f"ε ≤ {guarantee['epsilon']:g} at δ = {guarantee['delta']:g} per {guarantee['unit']}, "
        f"{guarantee['adjacency']}, mode {guarantee['mode']} ({kind})",
    )
    found = ", ".join(
        f"{rate:.1%} of the members at {float(at):.1%} false alarms"
        for at, rate in guarantee["tpr_at_fpr"].items()
    )
    print_fact(
        console, "", f"that is μ-GDP with μ = {guarantee['mu_gdp']:.3f}; no attack finds more than {found}"
    )


def _print_rounds(console: Console, planned: dict[str, Any]) -> None:
    """Print how many rounds there are, and what hides a client in their sums."""
    secure = planned["secure_aggregation"]
    rounds = f"{planned['rounds']}, {secure['mode']} aggregation"
    if secure["mode"] == "secure":
        rounds += (
            f" of {secure['clients']} clients: quorum {secure['quorum']}, threshold {secure['threshold']}, "
            f"at least {secure['min_survivors']} in a sum, up to {secure['max_colluders']} colluding"
        )
    print_fact(console, "rounds", rounds)
    if secure["mode"] == "secure":
        for line in (graph_text(secure), *bands_text(secure)):
            print_fact(console, "", line)


def _print_method(console: Console, planned: dict[str, Any]) -> None:
    """Print what the method does and sends in its rounds, exchange by exchange, beside plain LoRA."""
    sizes, governing = planned["bytes"], by_round(planned)
    stated = [governing[one["rounds"][0]] for one in sizes["contracts"]]  # who trains what makes more of them
    dense = sizes["dense_lora_fp32_per_client_and_round"]
    print_fact(console, "method", f"{planned['method']['name']}: {planned['method']['title']}")
    said = ["; ".join(consequences(contract)) for contract in stated]
    if len(set(said)) == 1:  # rounds that differ in what is sent alone: with a vote and without
        print_fact(console, "", said[0])
    for planned_sizes, means in zip(sizes["contracts"], said, strict=True):
        which = f"in rounds {rounds_text(planned_sizes['rounds'])} " if len(stated) > 1 else ""
        if len(set(said)) > 1:
            print_fact(console, "", f"{which}{means}")
        for number, exchange in enumerate(planned_sizes["exchanges"]):
            of = f"exchange {number}: " if len(planned_sizes["exchanges"]) > 1 else ""
            print_fact(console, "upload", f"{which}{of}{_exchange_text(exchange, dense)}")
    whole = f"{sizes['values_over_dense_lora']:.3g} × dense float32 LoRA ({bytes_text(dense)} a round)"
    print_fact(
        console, "", f"{bytes_text(sizes['values_per_client'])} of values a client in the whole run, {whole}"
    )
    times = len(planned["clients"]) * planned["rounds"]
    console.print(traffic.terminal_table(sizes["wire"], dense, times))
    if len(set(planned["ranks"].values())) > 1:
        print_fact(
            console, "ranks", ", ".join(f"{client_id} {rank}" for client_id, rank in planned["ranks"].items())
        )


def _exchange_text(exchange: Mapping[str, Any], dense: int) -> str:
    """Return what one client sends in an exchange."""
    what = "votes on " if exchange["carries"] == "votes" else ""
    text = (
        f"{what}{exchange['coordinates_that_travel']:,} of {exchange['coordinates']:,} coordinates at "
        f"{exchange['bits']} bits, {bytes_text(exchange['bytes'])} a client and round, "
        f"{exchange['bytes'] / dense:.3g} × dense float32 LoRA"
    )
    clients = exchange["clients"]
    return text if clients is None else f"{text}, from {', '.join(clients)} alone"


def _rows_text(rows: dict[str, int]) -> str:
    """Return what the longest input means for the rows."""
    cut = f"of each row the first {rows['longest_input']} tokens are trained on"
    if "of" not in rows:
        return f"{cut}; how many rows are longer is private"
    return f"{cut}; {rows['as_long_or_longer']:,} of {rows['of']:,} have as many or more"


def print_fact(console: Console, label: str, text: str, style: str = "") -> None:
    """Print a label and, beside it, a text that stays in its own column where it wraps."""
    fact = Table.grid()
    fact.add_column(width=12)
    fact.add_column()
    fact.add_row(Text(label), Text(text, style=style))
    console.print(fact)


def print_verdicts(console: Console, verdicts: Sequence[Verdict], *, private: bool = False) -> None:
    """Print an audit: each check with its verdict and evidence and, unless it passed, what would help.

    Args:
        private: whether private audit files went into it, which the reader is then told.
    """
    for verdict in verdicts:
        status = f"{_coloured(verdict.status)}{' ' * (13 - len(verdict.status))}"
        console.print(f"{status}[bold]{verdict.check:>2} {escape(verdict.name)}[/]", highlight=False)
        for line in (verdict.evidence, verdict.remedy and f"→ {verdict.remedy}"):
            if line:
                console.print(Padding(Text(line, style="dim"), (0, 0, 0, 16)))
    counts = {
        status: sum(v.status == status for v in verdicts) for status in ("PASS", "FAIL", "UNVERIFIABLE")
    }
    console.print()
    console.print("   ".join(f"{count} {_coloured(status)}" for status, count in counts.items()))
    console.print(
        "PASS means consistent with signed records, not that the training happened as recorded.", style="dim"
    )
    if private:
        console.print(
            "Private audit files went into this: what it says of them is private too.", style="bold"
        )


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print what the doctor found: a table, and below it, to be copied, what has several lines."""
    table = Table("", "what", "detail")
    below = [finding for finding in findings if "\n" in finding.detail]
    for finding in findings:
        if finding not in below:
            table.add_row(_coloured(finding.status), finding.what, escape(finding.detail))
    console.print(table)
    for finding in below:
        console.print(f"\n{finding.what}:\n\n{finding.detail}", markup=False, highlight=False, soft_wrap=True)


def _coloured(status: str) -> str:
    """Return a status in its colour."""
    return f"[{COLOURS[status]}]{status}[/]"
