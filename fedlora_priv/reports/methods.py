"""The aggregation methods in words, for ``fedlora methods``: from contracts, docstrings and the registry."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora_priv.config import Experiment
from fedlora_priv.errors import ConfigError
from fedlora_priv.methods import METHODS, Contract, Layout, LoraModule, Method, get, phases
from fedlora_priv.methods.crossterm import CrossTerm, Mode
from fedlora_priv.methods.registry import PRODUCTS_KEY, Options, make, reads

EXAMPLE = "query and value of all-MiniLM-L6-v2's 6 layers, 384 × 384 each, at rank 8"
_EXAMPLE = Layout(tuple(LoraModule(f"module.{i}", 384, 384, 8, 2.0) for i in range(12)), {})
_LORA = _EXAMPLE.dense_fp32_bytes / 4
_ROUNDS = 4
"""Rounds in which every default schedule has shown all its phases."""

Row = dict[str, Any]


def described(name: str | None = None) -> list[Row]:
    """Return every method as JSON values, or the one of that name.

    `upload_vs_lora` has one figure for each exchange: coordinates of one client, as a multiple of LoRA's r·(m + n).

    Raises:
        ConfigError: there is no method of that name.
    """
    try:
        chosen = METHODS if name is None else {name: get(name)}
    except KeyError as error:
        raise ConfigError(str(error.args[0]), "see 'fedlora methods'") from None
    return [_method(method) for method in chosen.values()]


def _method(method: Method) -> Row:
    """Return one method as JSON values."""
    modes = get_args(Mode) if PRODUCTS_KEY in reads(method.name) else ()
    return {
        "method": method.name,
        "title": method.title,
        "source": method.source,
        "phases": [_contract(phase.contract(_EXAMPLE)) for phase, _ in phases(method, _ROUNDS)],
        "upload_by_products": {
            mode: _uploads(make(method.name, Options(CrossTerm(mode))).contract(_EXAMPLE)) for mode in modes
        },
        "upload_of": EXAMPLE,
        "options": [_option(key) for key in reads(method.name)],
        "description": inspect.getdoc(inspect.getmodule(type(method))),
    }


def _contract(contract: Contract) -> Row:
    """Return one contract as JSON values."""
    return {
        "trains": sorted(contract.trains),
        "upload_vs_lora": _uploads(contract),
        "exchanges": contract.exchanges,
        "exact": contract.exact,
        "noise": contract.noise,
        "leaks": contract.leaks,
        "stays_home": sorted(contract.stays_home),
        "changes_base": contract.changes_base,
        "travels_whole": contract.travels_whole,
        "notes": list(contract.notes),
    }


def _uploads(contract: Contract) -> list[float]:
    """Return a client's coordinates in each exchange, as multiples of LoRA's."""
    sizes = [
        sum(int(np.prod(shape)) for shape in contract.exchange(j).values()) for j in range(contract.exchanges)
    ]
    return [round(size / _LORA, 4) for size in sizes]


def _option(key: str) -> Row:
    """Return a key of the experiment file with its default and meaning."""
    section, name = key.split(".")
    field = getattr(Experiment.model_fields[section].annotation, "model_fields")[name]  # noqa: B009 - a model, says the test
    return {"key": key, "default": field.default, "meaning": field.description}


def print_methods(console: Console, rows: list[Row]) -> None:
    """Print a line for each method, or for each phase of a schedule, and who reads which option."""
    table = Table("method", "trains", "upload", "exact", "noise", "at home", "base", box=box.SIMPLE_HEAD)
    readers: dict[str, list[str]] = {}
    for row in rows:
        for number, phase in enumerate(row["phases"]):
            table.add_row("then" if number else row["method"], *map(Text, _cells(phase)))
        for option in row["options"]:
            readers.setdefault(option["key"], []).append(row["method"])
    console.print(table)
    _print_facts(console, "Options", {key: ", ".join(names) for key, names in readers.items()})
    console.print(
        f"\nupload: times LoRA's coordinates ({EXAMPLE}), '+' between the exchanges of a round. exact: a round gives "
        "the mean of the clients' products, or of what they share where arrays stay at home. noise: how DP noise "
        "enters W. base: whether base weights change. 'fedlora methods NAME' shows equations, what leaks and what "
        "options mean.",
        style="dim",
        highlight=False,
    )


def _cells(phase: Row) -> tuple[str, ...]:
    """Return a contract as cells of the list."""
    return (
        " ".join(phase["trains"]),
        _times(phase["upload_vs_lora"]),
        _yes(phase["exact"]),
        phase["noise"].partition(" ")[0].rstrip(":"),
        " ".join(phase["stays_home"]) or "–",
        "changes" if phase["changes_base"] else "–",
    )


def print_method(console: Console, row: Row) -> None:
    """Print one method: what its file says of it, its contract, its options."""
    console.print(Text(f"{row['method']}: {row['title']}\n", style="bold"))
    console.print(Text(_reflowed(row["description"]) + "\n"))
    for number, phase in enumerate(row["phases"], 1):
        of = f" of phase {number}" if len(row["phases"]) > 1 else ""
        _print_facts(console, f"Contract{of}", _facts(phase))
    if uploads := row["upload_by_products"]:
        by_mode = {mode: f"{_times(each)} × LoRA" for mode, each in uploads.items()}
        _print_facts(console, f"Upload by {PRODUCTS_KEY}", by_mode)
    options = {option["key"]: option["meaning"] + _default(option) for option in row["options"]}
    _print_facts(console, "Options", options or {"none": "but federation.method itself"})


def _reflowed(text: str) -> str:
    """Return a docstring with its prose in one line a paragraph; indented blocks and lists stay.

    >>> _reflowed("One\\nsentence.\\n\\n    x = 1,\\n    y = 2")
    'One sentence.\\n\\n    x = 1,\\n    y = 2'
    """
    blocks = text.split("\n\n")
    prose = [not block.startswith((" ", "*")) for block in blocks]
    return "\n\n".join(
        block.replace("\n", " ") if flows else block for block, flows in zip(blocks, prose, strict=True)
    )


def _facts(phase: Row) -> dict[str, str]:
    """Return a contract in words."""
    yes = {
        "trains": ", ".join(phase["trains"]),
        "uploads": f"{_times(phase['upload_vs_lora'])} × LoRA's coordinates ({EXAMPLE})",
        "exchanges": str(phase["exchanges"]),
        "exact": _yes(phase["exact"]),
        "DP noise": phase["noise"],
        "leaks": phase["leaks"],
        "stays home": ", ".join(phase["stays_home"]) or "nothing",
        "base weights": "change; what was added is shipped with the adapter"
        if phase["changes_base"]
        else "stay",
        "support": "dense, at 8 bits or more" if phase["travels_whole"] else "any",
        "notes": "; ".join(phase["notes"]),
    }
    return {what: text for what, text in yes.items() if text}


def _print_facts(console: Console, heading: str, facts: Mapping[str, str]) -> None:
    """Print facts under a heading, their names in a column of their own."""
    grid = Table.grid(padding=(0, 2))
    for what, text in facts.items():
        grid.add_row(Text(f"  {what}", style="dim"), Text(text))
    console.print(Text(heading, style="bold"))
    console.print(grid)


def _times(uploads: list[float]) -> str:
    """Return multiples of LoRA's upload, one for each exchange.

    >>> _times([1.0, 0.53125])
    '1.00 + 0.53'
    """
    return " + ".join(f"{upload:.2f}" for upload in uploads)


def _yes(fact: bool) -> str:
    """Return a fact as a word."""
    return "yes" if fact else "no"


def _default(option: Row) -> str:
    """Return an option's default in words; one that depends on other keys is in its meaning."""
    default = option["default"]
    return "" if default in (None, ()) else f" Default: {default!r}."
