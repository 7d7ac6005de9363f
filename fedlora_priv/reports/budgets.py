"""The terminal table of ``fedlora budget``."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from accounting.merge import OVERLAPPING
from fedlora_priv.reports.tables import print_fact


def print_standings(console: Console, answered: dict[str, Any]) -> None:
    """Print what `federation.standings.answer` returned."""
    limit = answered["limit"]
    table = Table("client", "dataset", "releases", "steps", "runs", "ε last run", "ε lifetime", "rounds left")
    for ledger in answered["ledgers"]:
        runs = ledger["runs"]
        table.add_row(
            ledger["client_id"],
            ledger["dataset_id"],
            f"{ledger['charges']}" + (f" ({ledger['uncommitted']} open)" if ledger["uncommitted"] else ""),
            str(ledger["steps"]),
            str(len(runs)),
            f"{runs[-1]['epsilon']:.4f}" if runs else "0",
            f"{ledger['epsilon']:.4f}",
            "" if ledger["rounds_left"] is None else str(ledger["rounds_left"]),
        )
    for client_id in answered["nothing_spent"]:
        table.add_row(client_id, "no ledger here", "0", "0", "0", "0", "0", "")
    console.print(table)
    within = (
        "no limit is given" if limit is None else f"rounds left: like the next or last one, below ε {limit:g}"
    )
    console.print(f"δ = {answered['delta']:g} per row; {within}", highlight=False)
    for ledger in answered["ledgers"]:
        _print_remarks(console, ledger)
    public = [ledger["client_id"] for ledger in answered["ledgers"] if ledger["public"]]
    if public:
        console.print(f"declared public, so a simulation: {', '.join(dict.fromkeys(public))}", style="dim")
    _print_federation(console, answered["federation"])


def _print_remarks(console: Console, ledger: dict[str, Any]) -> None:
    """Print what the table has no room for."""
    who = ledger["client_id"]
    if ledger["uncommitted"]:
        console.print(
            f"{who}: {ledger['uncommitted']} releases were begun and never finished; they are charged in full"
        )
    if ledger["non_private"]:
        console.print(f"{who}: {ledger['non_private']} releases were outside every guarantee", style="red")
    if ledger["accountant"] != "pld":
        console.print(f"{who}: priced by {ledger['accountant'].upper()}, which is above PLD", style="dim")


def _print_federation(console: Console, claims: list[dict[str, Any]]) -> None:
    """Print what the ledgers amount to together."""
    if not claims:
        return
    claim = claims[0]
    print_fact(
        console,
        "federation",
        f"ε {claim['epsilon']:.4f} per {claim['unit']}, {claim['adjacency']}: {claim['basis']}; "
        f"against {', '.join(each['view'] for each in claims)}",
    )
    if claim["basis"] != OVERLAPPING and len(claim["clients"]) > 1:
        print_fact(console, "", "valid if no row is in two of these ledgers; else say --overlapping", "dim")
    if claim["rows_each"] is None:
        print_fact(
            console,
            "",
            "for one row each: how many rows a person has (k) is unknown, so persons are promised nothing; "
            "say --rows-each k",
            "dim",
        )
    else:
        print_fact(console, "", f"for up to {claim['rows_each']} rows of one person together")
