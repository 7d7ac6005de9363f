"""Who trains what, drawn: layers by clients as a heat map, in a terminal and on a page, and what it asks of each tier.

A cell is how much of a layer a client trains over the rounds: the share of rounds, each by its part of the largest
rank. What is drawn are the contracts of a plan or a report (`report.json`'s ``method``) that state an allocation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from fedlora_priv.reports.contracts import Contract, contracts, rounds_text
from fedlora_priv.reports.markup import Markup, element, join, table
from fedlora_priv.reports.summary import bytes_text

SHADES = "·░▒▓█"
"""Nothing, then up to a third, two thirds, less than all, and all of a layer in all rounds."""

WIDE = 50
"""Clients side by side in a terminal; more go below them."""


class Heat:
    """How much of each layer every client trains.

    Args:
        stated: contracts with the rounds that they govern and an `allocation`; at least one.
    """

    def __init__(self, stated: Sequence[Contract]) -> None:
        self._stated = stated
        self.strategy: str = stated[0]["allocation"]["strategy"]
        self.layers: Sequence[str] = stated[0]["allocation"]["layers"]
        self.rounds = sum(len(contract["rounds"]) for contract in stated)
        self.rank: int = max(part["rank"] for one in stated for part in one["allocation"]["clients"].values())
        self._trained: dict[str, list[int]] = {}
        for contract in stated:
            for client_id, part in contract["allocation"]["clients"].items():
                mine = self._trained.setdefault(client_id, [0] * len(self.layers))
                for layer in part["layers"]:
                    # A report may say anything; check 4 of an audit asks for the others.
                    if layer < len(mine):
                        mine[layer] += part["rank"] * len(contract["rounds"])

    @property
    def clients(self) -> list[str]:
        """Everybody who has a part, client-2 before client-10."""
        return sorted(self._trained, key=_natural)

    def share(self, client_id: str, layer: int) -> float:
        """Return how much of a layer a client trains, 0 to 1."""
        return self._trained[client_id][layer] / (self.rank * self.rounds)

    def holders(self, layer: int) -> tuple[int, int]:
        """Return the fewest and the most clients that train a layer in a round, at any rank."""
        counts = [
            sum(layer in part["layers"] for part in contract["allocation"]["clients"].values())
            for contract in self._stated
        ]
        return min(counts), max(counts)

    def scores(self) -> list[tuple[int, Sequence[float]]]:
        """Return what the layers were found to be worth, with the first round that was dealt by it, in order."""
        found: dict[tuple[float, ...], int] = {}
        for contract in sorted(self._scored, key=lambda contract: list(contract["rounds"])):
            found.setdefault(tuple(contract["allocation"]["findings"]["scores"]), contract["rounds"][0])
        return [(first, scores) for scores, first in found.items()]

    @property
    def scores_of(self) -> str:
        """The public data on which layers were scored; nothing where they were not."""
        return ", ".join(sorted({one["allocation"]["findings"]["scores_of"] for one in self._scored}))

    @property
    def _scored(self) -> list[Contract]:
        """The contracts that follow from measured scores."""
        return [one for one in self._stated if "scores" in one["allocation"].get("findings", {})]

    def often(self) -> str:
        """Return how often it is dealt anew, in words."""
        if len(self._stated) == 1:
            return f"the same in all {self.rounds} rounds"
        return f"{len(self._stated)} allocations in {self.rounds} rounds"


def heat_of(document: Mapping[str, Any]) -> Heat | None:
    """Return what there is to draw of a plan or report; None where everybody trains everything."""
    stated = [contract for contract in contracts(document) if "allocation" in contract]
    return Heat(stated) if stated else None


def shade(share: float) -> str:
    """Return a share as a character.

    >>> "".join(map(shade, (0, 0.1, 0.5, 0.99, 1)))
    '·░▒▓█'
    """
    if share > 1 - 1e-9:
        return SHADES[-1]
    return SHADES[0] if share <= 0 else SHADES[min(3, 1 + int(3 * share))]


def drawn(heat: Heat) -> Iterator[str]:
    r"""Yield the lines of a heat map, the top layer first; columns are clients in order.

    >>> clients = {"client-1": {"layers": [1], "rank": 4}, "client-2": {"layers": [0, 1], "rank": 4}}
    >>> dealt = {"strategy": "fedra", "layers": ["layer.0", "layer.1"], "clients": clients}
    >>> print(*drawn(Heat([{"rounds": [1, 2], "allocation": dealt}])), sep="\n")
             1 2
    layer 1  █ █  2 clients
    layer 0  · █  1 client
    """
    clients, margin = heat.clients, len(f"layer {len(heat.layers) - 1}  ")
    for start in range(0, len(clients), WIDE):
        block = clients[start : start + WIDE]
        named = len(block) <= WIDE // 3
        width = max(len(_number(client_id)) for client_id in block) if named else 1
        gap = " " if named else ""
        heads = (
            [_number(client_id).rjust(width) for client_id in block]
            if named
            else [f"{block[0]} to {block[-1]}"]
        )
        yield " " * margin + gap.join(heads)
        for layer in reversed(range(len(heat.layers))):
            cells = (shade(heat.share(client_id, layer)).rjust(width) for client_id in block)
            held = "" if start else f"  {_held(*heat.holders(layer))}"
            yield f"layer {layer}".ljust(margin) + gap.join(cells) + held


def print_allocation(console: Console, planned: Mapping[str, Any]) -> None:
    """Print the allocation of a plan: the map, its meaning, and what each tier has and needs; nothing without one."""
    heat, asked = heat_of(planned), planned["allocation"]
    if heat is None or asked is None:
        return
    print_map(console, heat)
    console.print(fewest_text(asked), highlight=False)
    if asked["known_rounds"] < heat.rounds:
        console.print(pruned_text(asked) if asked["pruned"] else rescored_text(asked), highlight=False)
    for tier in asked["tiers"]:
        console.print(tier_text(tier, len(heat.layers)), highlight=False, markup=False)


def summary_text(heat: Heat) -> str:
    """Return an allocation in a few words, for a closing table."""
    counts = [heat.holders(layer) for layer in range(len(heat.layers))]
    held = _held(min(low for low, _ in counts), max(high for _, high in counts))
    return f"{heat.often()}; a layer is given to {held} of {len(heat.clients)}{_scored_text(heat)}"


def _scored_text(heat: Heat) -> str:
    """Return how often layers were scored during a run, and on what; nothing where they were not."""
    scores = heat.scores()
    if not scores:
        return ""
    times = "once" if len(scores) == 1 else f"{len(scores)} times"
    return f"; layers were scored {times} on the way, on {heat.scores_of}"


def print_map(console: Console, heat: Heat) -> None:
    """Print a heat map and what its shades mean."""
    console.print(f"\nwho trains what: {heat.strategy}, {heat.often()}", highlight=False, markup=False)
    for line in drawn(heat):
        console.print(Text(line, no_wrap=True))
    console.print(
        f"{SHADES[4]} in all rounds at rank {heat.rank}, {SHADES[3]}{SHADES[2]}{SHADES[1]} in fewer or at less, "
        f"{SHADES[0]} never; layer 0 is {heat.layers[0]}; the head is everybody's",
        style="dim",
        highlight=False,
        markup=False,
    )


def fewest_text(planned: Mapping[str, Any]) -> str:
    """Return how thin the thinnest sum is, beside what a sum must have.

    >>> fewest = {"clients": 4, "layer": 2, "component": 0, "round": 7}
    >>> fewest_text({"fewest": fewest, "min_contributors": 3})
    'fewest clients of a layer: 4 (layer 2, round 7), and a sum needs 3: any 1 may be lost before it has masked'
    """
    found, least = planned["fewest"], planned["min_contributors"]
    spare = found["clients"] - least
    where = f"layer {found['layer']}, round {found['round']}"
    if found["component"]:
        where = f"component {found['component'] + 1} of {where}"
    lost = (
        f"any {spare} may be lost before it has masked"
        if spare
        else "no loss before masking is survived there"
    )
    return f"fewest clients of a layer: {found['clients']} ({where}), and a sum needs {least}: {lost}"


def rescored_text(planned: Mapping[str, Any]) -> str:
    """Return what is not known before a run that scores layers again.

    >>> print(rescored_text({"known_rounds": 50, "holders": 3}))  # doctest: +NORMALIZE_WHITESPACE
    from round 51 on layers are scored again, and who trains what is drawn as if all stayed worth the same; in any
    case a layer is given to at least 3 clients
    """
    return (
        f"from round {planned['known_rounds'] + 1} on layers are scored again, and who trains what is drawn as if all "
        f"stayed worth the same; in any case a layer is given to at least {planned['holders']} clients"
    )


def pruned_text(planned: Mapping[str, Any]) -> str:
    """Return what is not known before a run whose clients prune their ranks.

    >>> print(pruned_text({"holders": 3}))  # doctest: +NORMALIZE_WHITESPACE
    clients may give up their last components, and who trains what is drawn as if nobody did; in any case a component
    is given to at least 3 clients
    """
    return (
        "clients may give up their last components, and who trains what is drawn as if nobody did; in any case a "
        f"component is given to at least {planned['holders']} clients"
    )


def tier_text(tier: Mapping[str, Any], layers: int) -> str:
    """Return what clients of a tier train, and what it takes beside what they have.

    >>> tier = {"clients": ["client-1", "client-2"], "layers": [2, 2], "rank": 8, "coordinates": 24_642,
    ...         "memory_bytes": 6e8, "has_bytes": 7e8, "round_s": 3.2, "has_s": None}
    >>> tier_text(tier, 6)
    'client-1, client-2: 2 of 6 layers at rank 8, 24,642 coordinates; memory 600.00 MB of 700.00 MB; a round 3.2 s'
    """
    low, high = tier["layers"]
    count = str(high) if low == high else f"{low} to {high}"
    facts = [f"{count} of {layers} layers at rank {tier['rank']}, {tier['coordinates']:,} coordinates"]
    if tier["memory_bytes"] is not None:
        of = "" if tier["has_bytes"] is None else f" of {bytes_text(tier['has_bytes'])}"
        facts.append(f"memory {bytes_text(tier['memory_bytes'])}{of}")
    if tier["round_s"] is not None:
        of = "" if tier["has_s"] is None else f" of {tier['has_s']:.3g} s"
        facts.append(f"a round {tier['round_s']:.2g} s{of}")
    return f"{_names(tier['clients'])}: {'; '.join(facts)}"


def section(report: Mapping[str, Any]) -> Markup:
    """Return the heat map as a section of a page, with every allocation by round; nothing without one."""
    heat = heat_of(report)
    if heat is None:
        return Markup("")
    heads = ("layer", *(f"#{_number(client_id)}" for client_id in heat.clients), "#clients")
    rows = [
        (name, *(_share_text(heat.share(c, layer)) for c in heat.clients), _held(*heat.holders(layer)))
        for layer, name in reversed(list(enumerate(heat.layers)))
    ]
    caption = (
        f"{heat.strategy}, {heat.often()}. How much of each layer a client was given over the rounds, in per cent: in "
        f"how many of them, each by its part of rank {heat.rank}. The top layer comes first; the head is everybody's."
    )
    by_round = table(
        ("rounds", "who trains what"), [_of_rounds(c) for c in contracts(report) if "allocation" in c]
    )
    return join(
        element("h2", "Who trains what"),
        element("p", caption, class_="caption"),
        table(heads, rows),
        _scores_table(heat),
        element("details", element("summary", "by round"), by_round),
    )


def _scores_table(heat: Heat) -> Markup:
    """Return what each layer was found to be worth, from which round on; nothing where none was scored."""
    scored = heat.scores()
    if not scored:
        return Markup("")
    width = max(len(scores) for _, scores in scored)  # a report may say anything; check 4 counts them
    heads = ("from round", *(f"#layer {number}" for number in range(width)))
    rows = [
        (str(first), *(f"{score:.3g}" for score in scores), *[""] * (width - len(scores)))
        for first, scores in scored
    ]
    caption = f"What the server found each layer to be worth, on data declared public: {heat.scores_of}"
    return join(element("p", caption, class_="caption"), table(heads, rows))


def _of_rounds(contract: Contract) -> tuple[str, str]:
    """Return the rounds of a contract and who trains what in them, those with the same part together."""
    groups: dict[str, list[str]] = {}
    dealt = contract["allocation"]["clients"]
    for client_id in sorted(dealt, key=_natural):
        layers, rank = rounds_text(dealt[client_id]["layers"]), dealt[client_id]["rank"]
        groups.setdefault(f"layers {layers} at rank {rank}", []).append(client_id)
    return rounds_text(contract["rounds"]), "; ".join(
        f"{', '.join(who)}: {what}" for what, who in groups.items()
    )


def _share_text(share: float) -> str:
    """Return a share in per cent, nothing for none."""
    return f"{100 * share:.0f}" if share else ""


def _held(low: int, high: int) -> str:
    """Return numbers of clients in words."""
    count = str(high) if low == high else f"{low} to {high}"
    return f"{count} client" if high == 1 else f"{count} clients"


def _names(clients: Sequence[str], shown: int = 6) -> str:
    """Return clients, of many only how many."""
    if len(clients) <= shown:
        return ", ".join(clients)
    return f"{clients[0]} and {len(clients) - 1} others"


def _number(client_id: str) -> str:
    """Return what tells a client from the others in a column's head."""
    return client_id.rpartition("-")[2] or client_id


def _natural(client_id: str) -> tuple[str | int, ...]:
    """Return a key that sorts numbers as numbers."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", client_id))
