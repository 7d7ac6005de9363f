"""What a plan or a report says of its method (`report.json`'s ``method``), in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Contract = Mapping[str, Any]

_RUNS_SHOWN = 4
"""More stretches of rounds than these are a pattern, of which the first and the last are enough."""


def contracts(document: Mapping[str, Any]) -> Sequence[Contract]:
    """Return the contracts of a plan or report, each with the rounds that it governs; none if it states none."""
    return (document.get("method") or {}).get("contracts") or ()


def by_round(document: Mapping[str, Any]) -> dict[int, Contract]:
    """Return the contract of each round."""
    return {number: contract for contract in contracts(document) for number in contract["rounds"]}


def rounds_text(numbers: Sequence[int]) -> str:
    """Return ascending round numbers, stretches as one.

    >>> rounds_text([1, 2, 3, 7]), rounds_text([5]), rounds_text(range(1, 40, 2))
    ('1–3, 7', '5', '1, 3, 5, …, 39')
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    words = ["–".join(map(str, run)) for run in runs]
    return ", ".join(words if len(words) <= _RUNS_SHOWN else [*words[:3], "…", words[-1]])


def travels_text(exchange: Contract) -> str:
    """Return what one client sends in an exchange.

    >>> travels_text({"travels": {"lora_A": 2048, "head": 66}})
    '2,114 coordinates (lora_A 2,048, head 66)'
    >>> travels_text({"travels": {"lora_A": 2048}, "coordinates": 512, "clients": ["client-2", "client-3"]})
    '512 of 2,048 coordinates (lora_A 2,048), from client-2, client-3 alone'
    """
    travels, sent = exchange["travels"], exchange.get("coordinates")
    parts = ", ".join(f"{kind} {count:,}" for kind, count in travels.items())
    text = f"{sum(travels.values()):,} coordinates ({parts})"
    if sent is not None:
        text = f"{sent:,} of {text}"
    if exchange.get("carries") == "votes":
        text = f"votes on {text}"
    clients = exchange.get("clients")
    return text if clients is None else f"{text}, from {', '.join(clients)} alone"


def consequences(contract: Contract) -> list[str]:
    """Return what a reader should know of a contract besides what travels."""
    facts = [f"trains {', '.join(contract['trains'])}", f"DP noise {contract['noise']}"]
    # Without a common B there is no mean product that the result could equal.
    whose = "shared arrays" if contract["stays_home"] else "products"
    facts.append(f"exact: the mean of the clients' {whose}" if contract["exact"] else "not exact")
    if contract["stays_home"]:
        facts.append(f"{', '.join(contract['stays_home'])} noised with the rest, but kept by each client")
    if contract["changes_base"]:
        facts.append("changes the base weights: what was added is shipped with the adapter")
    if contract["may_stop_early"]:
        facts.append("the last exchange only where the one before was not enough")
    return [*facts, *contract["notes"]]


def certified_errors(rounds: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return ‖ΔW − what the state holds‖/‖ΔW‖ by round, of a report's ``rounds`` that have a certificate."""
    return {int(r["round"]): float(r["certificate"]["error"]) for r in rounds if r.get("certificate")}


def personal_quality(metrics: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Return, by client, the last measured quality of its own model; nothing where all have one model."""
    measured = [row[f"personal_{key}"] for row in metrics if row.get(f"personal_{key}")]
    return dict(measured[-1]) if measured else {}
