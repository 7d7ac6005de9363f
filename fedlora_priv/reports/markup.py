"""HTML and SVG elements as text in which everything is escaped unless it was built here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

Attribute = str | int | float | None


class Markup(str):
    """Text that is markup already; any other text is escaped when it becomes a child."""

    __slots__ = ()


def element(tag: str, *children: str | Iterable[str], **attributes: Attribute) -> Markup:
    """Return one element; a child that is not `Markup` is escaped, as is every attribute.

    In attribute names '_' stands for '-', a trailing '_' avoids Python's keywords, and None omits.

    >>> element("p", "a < b", element("b", "!"), class_="note", data_x=1.50)
    '<p class="note" data-x="1.5">a &lt; b<b>!</b></p>'
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_attribute(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*children: str | Iterable[str]) -> Markup:
    """Return children one after the other, escaped as `element` does."""
    return Markup("".join(_child(child) for child in children))


def _child(child: str | Iterable[str]) -> str:
    """Return one child, or several, as markup."""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return html.escape(child)
    return "".join(_child(part) for part in child)


def _attribute(value: str | int | float) -> str:
    """Return an attribute's value; coordinates need no more than two decimals."""
    return f"{round(value, 2):g}" if isinstance(value, float) else str(value)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Return a table; a head that starts with '#' is of a column of numbers."""
    classes = ["number" if head.startswith("#") else None for head in heads]
    names = [
        element("th", head.removeprefix("#"), class_=class_, scope="col")
        for head, class_ in zip(heads, classes, strict=True)
    ]
    lines = [
        element("tr", (element("td", cell, class_=class_) for cell, class_ in zip(row, classes, strict=True)))
        for row in rows
    ]
    whole = element("table", element("thead", element("tr", names)), element("tbody", lines))
    return element("div", element("div", whole, class_="scroll"), class_="card")
