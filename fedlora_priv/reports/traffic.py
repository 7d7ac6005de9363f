"""Bytes by kind as a table, in a terminal and on a page: the same of a plan and of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora_priv.communication.meter import KINDS
from fedlora_priv.communication.tally import DIRECTIONS, tally
from fedlora_priv.reports.markup import Markup, element, join, table
from fedlora_priv.reports.summary import Row, bytes_text

Tally = Mapping[Any, Mapping[Any, Mapping[str, float]]]
"""As `communication.tally.tally` returns it, or as JSON."""

_MEASURES = {"mean": "a round, mean", "most": "a round, most", "run": "whole run"}
"""Of one client in one round; of all clients in all rounds."""


def counted(metrics: Sequence[Row]) -> Tally | None:
    """Return what the rounds of a report come to; None of a report from before bytes had kinds.

    The mean and the most are of clients that reached the sum: of others the traffic is incomplete.
    """
    rounds = [row for row in metrics if "bytes_by_kind" in row]
    if not rounds or len(rounds) < len(metrics):
        return None
    reached: list[Set[str]] = [set(row["survivors"]) for row in rounds]
    return tally([row["bytes_by_kind"] for row in rounds], reached)


def kinds_of(found: Tally) -> list[str]:
    """Return the kinds of which there are any bytes, in their usual order."""
    return [kind for kind in KINDS if any(found[way]["run"][kind] for way in DIRECTIONS)]


def any_of(metrics: Sequence[Row], kind: str) -> bool:
    """Whether any byte of a kind went over the wire."""
    return any(
        sizes.get(kind)
        for row in metrics
        for mine in row["bytes_by_kind"].values()
        for sizes in mine.values()
    )


def rows(found: Tally, dense: float | None, clients_and_rounds: int) -> list[tuple[str, ...]]:
    """Return one line for each direction and measure: what it is, its kinds, all of them, and against dense LoRA.

    Args:
        found: what there is to show.
        dense: bytes of one client in one round as plain float32 adapters.
        clients_and_rounds: how many times that a run has them.
    """
    lines = []
    for way in DIRECTIONS:
        for measure, meaning in _MEASURES.items():
            sizes = found[way][measure]
            plain = None if dense is None else dense * (clients_and_rounds if measure == "run" else 1)
            lines.append(
                (
                    f"{way}, {meaning}",
                    *(bytes_text(sizes[kind]) for kind in kinds_of(found)),
                    bytes_text(sizes["all"]),
                    f"{sizes['all'] / plain:.3g}" if plain else "",
                )
            )
    return lines


def heads(found: Tally) -> tuple[str, ...]:
    """Return the names of the columns of `rows`."""
    return ("", *kinds_of(found), "all", "× dense")


def terminal_table(found: Tally, dense: float | None, clients_and_rounds: int) -> Table:
    """Return the same for a terminal: a line for each kind, so that it fits into 80 columns whatever the run."""
    shown = Table(
        title=Text("bytes on the wire: of one client in one round, and of all clients in the whole run"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
    )
    lines = rows(found, dense, clients_and_rounds)
    shown.add_column("", no_wrap=True)
    for way, measure in ((way, measure) for way in DIRECTIONS for measure in _MEASURES):
        shown.add_column(f"{way}\n{measure}", justify="right", no_wrap=True)
    for number, kind in enumerate(heads(found)):
        if number:
            shown.add_row(Text(kind), *(Text(line[number]) for line in lines))
    return shown


def section(metrics: Sequence[Row], dense: float | None, clients: int) -> Markup:
    """Return the lines as a section of a page; nothing where no kinds were counted."""
    found = counted(metrics)
    if found is None:
        return Markup("")
    names = [name if number == 0 else f"#{name}" for number, name in enumerate(heads(found))]
    caption = "On the wire, every message whole. 'A round' is one client's in one round, of those that reached the sum."
    if dense is not None:
        caption += f" Dense float32 LoRA is {bytes_text(dense)} a client and round, in either direction."
    shown = table(names, rows(found, dense, clients * len(metrics)))
    return join(element("h2", "What travelled"), element("p", caption, class_="caption"), shown)


def print_proposal(console: Console, found: Mapping[str, Any]) -> None:
    """Print what `federation.proposal.proposed` returned: what it comes to, then the lines for the experiment file."""
    console.print(_proposal_text(found), highlight=False, markup=False)
    if (ring := found["fewer_neighbours"]) is not None:
        lost = ring["losses_survived"]
        console.print(
            f"With secure_aggregation.neighbours = {ring['neighbours']} (any {lost} lost survived): "
            f"{_proposal_text(ring)}",
            highlight=False,
            markup=False,
        )
    if whole := found["whole_rounds"]:
        console.print(
            f"The first {'round sends' if whole == 1 else f'{whole} rounds send'} everything, to rank coordinates by: "
            f"at most {bytes_text(found['whole'])}; communication.whole_rounds = 0 spares that, and learns slower",
            highlight=False,
            markup=False,
        )
    console.print("\nPut this into the experiment file:\n", highlight=False)
    console.print("\n".join(found["lines"]), highlight=False, markup=False)


def _proposal_text(found: Mapping[str, Any]) -> str:
    """Return what a density and a number of bits come to."""
    return (
        f"{found['coordinates']:,} coordinates at {found['value_bits']} bits, density {found['density']:.4g}: at most "
        f"{bytes_text(found['uploaded'])} up from a client in a round, {bytes_text(found['fixed'])} of it keys, shares "
        "and framing whatever the density"
    )
