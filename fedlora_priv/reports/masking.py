"""What a plan or a report says of its masks (`federation.session.protection`), in words and as a section of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora_priv.reports.markup import Markup, element, join, table

Stated = Mapping[str, Any]


def graph_text(secure: Stated) -> str:
    """Return who masks with whom and what that survives.

    >>> graph_text({"clients": 10, "neighbours": 4, "max_colluders": 1, "losses_survived": 1,
    ...             "abort_bounds": {"2": 0.25, "3": 1.0}})
    'each masks with 4 neighbours on a ring, whom 1 colluding cannot cut; any 1 lost client is survived, a round that \
loses 2 fails with probability ≤ 0.25, 3 or more may end it'
    >>> graph_text({"clients": 5, "neighbours": 4, "max_colluders": 1, "losses_survived": 1, "abort_bounds": {}})
    'everybody masks with everybody; any 1 lost client is survived'
    """
    ring = secure["neighbours"] < secure["clients"] - 1
    who = (
        f"each masks with {secure['neighbours']} neighbours on a ring, whom {secure['max_colluders']} colluding "
        "cannot cut"
        if ring
        else "everybody masks with everybody"
    )
    return f"{who}; {_losses_text(secure, 'a round')}"


def bands_text(secure: Stated) -> list[str]:
    """Return the same of each band: what it takes to be summed, and what that survives.

    >>> bands_text({"bands": [{"exchange": 1, "clients": 4, "neighbours": 3, "min_survivors": 3, "threshold": 3,
    ...                        "quorum": 3, "losses_survived": 1, "abort_bounds": {}}]})
    ['exchange 1, of 4 clients alone: 3 must be in its sum, 3 shares take masks off; any 1 lost client is survived']
    """
    return [
        f"exchange {band['exchange']}, of {band['clients']} clients alone: {band['min_survivors']} must be in its sum, "
        f"{band['threshold']} shares take masks off; {_losses_text(band, 'one')}"
        for band in secure.get("bands", ())
    ]


def _losses_text(counts: Stated, session: str) -> str:
    """Return how many losses are survived, and how likely more of them are to end it."""
    survived = counts["losses_survived"]
    lost = "client is" if survived == 1 else "clients are"
    parts = [f"any {survived} lost {lost} survived" if survived else f"one lost client may end {session}"]
    for losses, bound in counts["abort_bounds"].items():
        if bound < 1:
            parts.append(f"{session} that loses {losses} fails with probability ≤ {bound:.2g}")
        elif survived or losses != "1":
            parts.append(f"{losses} or more may end it")
    return ", ".join(parts)


def masks_section(report: Stated) -> Markup:
    """Return what hides clients in each sum, as a section of a page; nothing where nothing was masked."""
    secure = report.get("secure_aggregation") or {}
    if secure.get("mode") != "secure" or "quorum" not in secure:
        return Markup("")
    rows = [_cells("a round's sums", secure)]
    rows += [
        _cells(f"exchange {band['exchange']}, of some clients only", band) for band in secure.get("bands", ())
    ]
    heads = (
        "",
        "#clients",
        "#fewest in a sum",
        "#must confirm",
        "#shares take masks off",
        "#neighbours",
        "losses",
    )
    colluders = secure["max_colluders"]
    words = f"Masks withstand {colluders} client{'' if colluders == 1 else 's'} that side with the server."
    if secure.get("bands"):
        words += " What only some clients send is summed in a session of its own, which may be lost without the round."
    return join(element("h2", "The masks"), element("p", words, class_="caption"), table(heads, rows))


def _cells(what: str, counts: Stated) -> tuple[str, ...]:
    """Return one kind of session as the cells of a table."""
    numbers = ("clients", "min_survivors", "quorum", "threshold", "neighbours")
    told = _losses_text(counts, "one") if "losses_survived" in counts else ""
    return (what, *(str(counts[name]) for name in numbers), told)
