"""``fedlora plan --what-if``: the alternatives as a terminal table, and as a page with two plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from accounting.planning import Plan
from accounting.what_if import Row
from fedlora_priv.reports import svg
from fedlora_priv.reports.markup import Markup, element
from fedlora_priv.reports.style import STYLE
from fedlora_priv.reports.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale

COLUMNS = ("rounds", "batch", "participation", "target ε", "steps", "noise multiplier", "noise on the mean")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def print_rows(console: Console, plan: Plan, rows: Sequence[Row]) -> None:
    """Print the table; the plan itself is its first row."""
    console.print(_caption(plan), highlight=False)
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*_cells(row), style="bold" if row is rows[0] else None)
    console.print(table)
    for problem in dict.fromkeys(row.problem for row in rows if row.problem):
        console.print(f"– {problem}", style="yellow", markup=False, highlight=False)
    console.print(_FOOTNOTE, style="dim")


_FOOTNOTE = (
    "Estimates: a plan with the same numbers certifies its noise. 'Noise on the mean' is per coordinate of a step's "
    "mean gradient, for the plan's clip norm. Taking part in fewer rounds saves steps; it amplifies nothing."
)


def page(name: str, plan: Plan, rows: Sequence[Row]) -> str:
    """Return the table and two plots over the number of rounds as one HTML file that needs no network."""
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", f"{name} – what if"),
        element("style", Markup(STYLE)),
    )
    titles = element("tr", [element("th", column) for column in COLUMNS])
    body = [element("tr", [element("td", cell) for cell in _cells(row)]) for row in rows]
    plots = [
        element("div", element("h3", title), _plot(title, plan, rows, pick), class_="card")
        for title, pick in (
            ("Noise multiplier by rounds", lambda row: row.noise_multiplier),
            ("Noise on the mean by rounds", lambda row: row.mean_noise_stddev),
        )
    ]
    main = element(
        "main",
        element("header", element("h1", f"{name}: what if"), element("p", _caption(plan))),
        element("div", plots, class_="plots"),
        element("h2", "Alternatives"),
        element("div", element("table", titles, body), class_="card"),
        element("p", _FOOTNOTE),
    )
    return f"<!doctype html>\n{element('html', head, element('body', main), lang='en')}\n"


def _plot(title: str, plan: Plan, rows: Sequence[Row], pick: Callable[[Row], float | None]) -> Markup:
    """Return one line for each target, over the rounds, all else as planned."""
    points = [
        (row.target_epsilon, row.rounds, value)
        for row in rows
        if row.planned_batch_size == plan.planned_batch_size
        and row.participation == 1
        and (value := pick(row)) is not None
    ]
    if not points:
        return element("p", "No target is within reach.")
    marks = svg.ticks(0, max(value for _, _, value in points) * 1.06)
    most = max(number for _, number, _ in points)
    floor = HEIGHT - BOTTOM
    x, y = Scale(1, max(2, most), LEFT + 10, WIDTH - RIGHT - 60), Scale(marks[0], marks[-1], floor, TOP)
    parts = svg.y_axis(marks, [f"{mark:g}" for mark in marks], y) + svg.x_axis(most, x, floor)
    for target in sorted({target for target, _, _ in points}):
        own = sorted((number, value) for at, number, value in points if at == target)
        class_ = "secondary" if target == plan.target_epsilon else "primary"
        at = [(x(number), y(value)) for number, value in own]
        parts.append(svg.line(at, class_))
        tips = [f"{number} rounds, ε = {target:g}: {value:.4g}" for number, value in own]
        parts += svg.dots(at, f"{class_}-dot", tips)
        parts.append(svg.text(f"ε = {target:g}", at[-1][0] + 6, at[-1][1] + 4, "note"))
    return svg.figure(title, f"{title}, one line for each target; the plan's own stands out.", *parts)


def _caption(plan: Plan) -> str:
    """Return whose plan this is."""
    return (
        f"What if, for {plan.client_id}: {plan.declared_examples} examples, steps a round: {plan.steps_per_round}, "
        f"rounds in reserve: {plan.retry_rounds}, clip norm {plan.clip_norm:g}"
        f"{' at first, adaptive' if plan.adaptive_clip else ''}, δ = {plan.delta:g}"
    )


def _cells(row: Row) -> tuple[str, ...]:
    """Return a row's cells; a dash where the target is out of reach."""
    return (
        str(row.rounds),
        f"{row.planned_batch_size:g}",
        f"{row.participation:.0%}",
        f"{row.target_epsilon:g}",
        str(row.steps),
        "–" if row.noise_multiplier is None else f"{row.noise_multiplier:.4f}",
        "–" if row.mean_noise_stddev is None else f"{row.mean_noise_stddev:.5f}",
    )
