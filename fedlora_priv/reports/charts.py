"""The plots of a report: accuracy or perplexity, ε, bytes, survivors and certificates, by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedlora_priv.reports import svg
from fedlora_priv.reports.markup import Markup, element
from fedlora_priv.reports.summary import Row, Summary, bytes_text, survivors_bytes, up_text
from fedlora_priv.reports.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale

MATRIX_CLIENTS = 40
"""Up to so many clients the survivors are shown one by one, beyond that as a count."""

STACKED = ("values", "votes", "support", "keys", "shares", "framing")
"""Kinds of bytes as a bar has them, from the bottom up: what grows with the model first."""

_FLOOR = HEIGHT - BOTTOM

_STROKES = {"cell-lost": "M-1 -1 L1 1 M1 -1 L-1 1", "cell-refused": "M-1 0 L1 0"}


def quality(summary: Summary, metrics: Sequence[Row]) -> Markup | None:
    """Return accuracy or perplexity by round, with the start as a dashed line; None if none was measured."""
    metric = summary.metric
    measured = [
        (int(row["round"]), float(row[metric.key])) for row in metrics if row.get(metric.key) is not None
    ]
    if not measured:
        return None
    values = [value for _, value in measured]
    if summary.before is not None:
        values.append(summary.before)
    marks = svg.ticks(min(values), max(values))
    x, y = _rounds_scale(len(metrics)), Scale(marks[0], marks[-1], _FLOOR, TOP)
    parts = svg.y_axis(marks, [metric.tick(mark) for mark in marks], y)
    parts += svg.x_axis(len(metrics), x, _FLOOR)
    if summary.before is not None:
        parts += svg.level(y(summary.before), "quiet", f"before: {metric.shown(summary.before)}")
    points = [(x(number), y(value)) for number, value in measured]
    floor = f"L{points[-1][0]:.1f} {_FLOOR} L{points[0][0]:.1f} {_FLOOR} Z"
    outline = " ".join(f"{'L' if index else 'M'}{px:.1f} {py:.1f}" for index, (px, py) in enumerate(points))
    parts.append(element("path", d=f"{outline} {floor}", class_="area"))
    parts.append(svg.line(points, "primary"))
    tips = [f"round {number}: {metric.shown(value, more=1)}" for number, value in measured]
    parts += svg.dots(points, "primary-dot", tips)
    described = (
        f"From {metric.shown(measured[0][1])} in round {measured[0][0]} to {metric.shown(measured[-1][1])}."
    )
    return svg.figure(f"{metric.title} by round", described, *parts)


def epsilon(summary: Summary, metrics: Sequence[Row], clients: Sequence[str]) -> Markup | None:
    """Return every client's ε after each round, the largest in bold, against the target."""
    if not any(row.get("epsilon") for row in metrics):
        return None
    largest = [(int(row["round"]), max(row["epsilon"].values())) for row in metrics if row.get("epsilon")]
    top = max([value for _, value in largest] + [summary.target_epsilon or 0.0])
    marks = svg.ticks(0, top * 1.06)
    x, y = _rounds_scale(len(metrics)), Scale(marks[0], marks[-1], _FLOOR, TOP)
    parts = svg.y_axis(marks, [f"{mark:g}" for mark in marks], y)
    parts += svg.x_axis(len(metrics), x, _FLOOR)
    for client_id in clients:
        spent = [(row["round"], (row.get("epsilon") or {}).get(client_id)) for row in metrics]
        own = [(x(number), y(value)) for number, value in spent if value is not None]
        parts.append(svg.line(own, "faint"))
    points = [(x(number), y(value)) for number, value in largest]
    parts.append(svg.line(points, "secondary"))
    tips = [f"after round {number}: ε ≤ {up_text(value)}" for number, value in largest]
    parts += svg.dots(points, "secondary-dot", tips)
    if summary.target_epsilon is not None:
        parts += svg.level(y(summary.target_epsilon), "limit", f"target ε = {summary.target_epsilon:g}")
    described = f"The largest ε of any client reaches {up_text(largest[-1][1])}."
    return svg.figure("Privacy spent by round", described, *parts)


def certificate(errors: Mapping[int, float], rounds: int) -> Markup:
    """Return the certified error of each round's result; a round without one leaves a gap between dots."""
    marks = svg.ticks(0, max(errors.values()) * 1.06, wanted=4)
    x, y = _rounds_scale(rounds), Scale(marks[0], marks[-1], _FLOOR, TOP)
    parts = svg.y_axis(marks, [f"{100 * mark:g} %" for mark in marks], y) + svg.x_axis(rounds, x, _FLOOR)
    tips = [f"round {number}: {error:.2%}" for number, error in errors.items()]
    parts += svg.dots([(x(number), y(error)) for number, error in errors.items()], "primary-dot", tips)
    return svg.figure("Certificate by round", f"At most {max(errors.values()):.2%}.", *parts)


def traffic(summary: Summary, metrics: Sequence[Row]) -> Markup | None:
    """Return mean bytes up and down per surviving client, by round, against dense float32 LoRA."""
    if by_kind(metrics):
        rows = [(int(row["round"]), [_kinds(row, way) for way in ("up", "down")]) for row in metrics]
    else:
        keys = {"up": "uploaded_bytes", "down": "downloaded_bytes"}
        rows = [
            (int(row["round"]), [{way: _mean(survivors_bytes(row, key))} for way, key in keys.items()])
            for row in metrics
        ]
    every = [sum(parts.values()) for _, pair in rows for parts in pair]
    top = max([*every, summary.dense_bytes or 0.0], default=0.0)
    if not rows or top == 0:
        return None
    marks = svg.ticks(0, top * 1.06, wanted=4)
    x, y = _rounds_scale(len(metrics), margin=0.5), Scale(marks[0], marks[-1], _FLOOR, TOP)
    parts = svg.y_axis(marks, [bytes_text(mark).replace(".00", "").replace(".0", "") for mark in marks], y)
    parts += svg.x_axis(len(metrics), x, _FLOOR)
    width = min(16.0, 0.36 * (x(2) - x(1)))
    for number, pair in rows:
        for stack, word, left in zip(pair, ("up", "down"), (-width - 0.5, 0.5), strict=True):
            below = 0.0
            for kind, size in stack.items():
                tip = f"round {number}, {word}: {bytes_text(size)}" + (f" {kind}" if kind != word else "")
                place = (x(number) + left, y(below + size), width, y(below) - y(below + size))
                parts += [svg.box(*place, f"bar-{kind}", tip, radius=0)] if size else []
                below += size
    if summary.dense_bytes:
        parts += svg.level(
            y(summary.dense_bytes), "limit", f"dense float32 LoRA: {bytes_text(summary.dense_bytes)}"
        )
    described = "Mean bytes on the wire per client that reached the sum, uploads and downloads."
    return svg.figure("Bytes by round", described, *parts)


def survivors(metrics: Sequence[Row], clients: Sequence[str]) -> Markup | None:
    """Return who was in each round's sum: a matrix of clients and rounds, or counts when there are many."""
    if not metrics:
        return None
    return _matrix(metrics, clients) if len(clients) <= MATRIX_CLIENTS else _counts(metrics, len(clients))


def _matrix(metrics: Sequence[Row], clients: Sequence[str]) -> Markup:
    """Return one cell per client and round: in the sum, lost (crossed), refused, or no sum or no use of it."""
    row_height = max(9.0, min(40.0, (HEIGHT - TOP - BOTTOM) / len(clients)))
    height = round(TOP + row_height * len(clients) + BOTTOM)
    left = LEFT + 12
    column = (WIDTH - RIGHT - left) / len(metrics)
    gap = min(3.0, 0.15 * column)
    parts = []
    for index, client_id in enumerate(clients):
        top = TOP + index * row_height
        parts.append(svg.text(client_id, left - 8, top + row_height / 2 + 4, "tick end"))
        for position, row in enumerate(metrics):
            class_, tip = _fate(row, client_id)
            area = (left + position * column + gap / 2, top + gap / 2, column - gap, row_height - gap)
            parts.append(svg.box(*area, class_, f"{client_id}, round {row['round']}: {tip}", radius=3))
            if class_ in _STROKES:
                parts.append(_mark(*area, _STROKES[class_]))
    scale = Scale(
        1, max(2, len(metrics)), left + column / 2, left + column / 2 + column * max(1, len(metrics) - 1)
    )
    parts += svg.x_axis(len(metrics), scale, height - BOTTOM)
    lost = sum(len(row.get("lost") or ()) for row in metrics)
    return svg.figure("Survivors by round", f"{lost} times a client was lost.", *parts, height=height)


def _mark(x: float, y: float, width: float, height: float, strokes: str) -> Markup:
    """Return a small sign in the middle of a cell, so that colour is not all that tells."""
    arm = min(width, height, 18.0) / 5
    place = f"translate({x + width / 2:.1f} {y + height / 2:.1f}) scale({arm:.2f})"
    return element("path", d=strokes, transform=place, class_="mark", vector_effect="non-scaling-stroke")


def _fate(row: Row, client_id: str) -> tuple[str, str]:
    """Return the class and the words for what became of a client in a round."""
    if client_id in row["survivors"] and not row.get("aborted"):
        return "cell-in", "in the sum"
    for loss in row.get("lost") or ():
        if loss["client_id"] == client_id:
            return "cell-lost", f"lost before {loss['phase']}"
    for refusal in row.get("refused") or ():
        if refusal["client_id"] == client_id:
            return "cell-refused", f"refused ({refusal.get('code', 'no code')})"
    if client_id in row["survivors"]:
        return "cell-out", "in a sum, but the round had no result"
    return "cell-out", "the round had no sum" if not row["survivors"] else "did not take part"


def _counts(metrics: Sequence[Row], clients: int) -> Markup:
    """Return the number of survivors by round."""
    marks = svg.ticks(0, clients)
    x, y = _rounds_scale(len(metrics), margin=0.5), Scale(0, marks[-1], _FLOOR, TOP)
    width = min(22.0, 0.7 * (x(2) - x(1)))
    parts = svg.y_axis(marks, [f"{mark:g}" for mark in marks], y) + svg.x_axis(len(metrics), x, _FLOOR)
    for row in metrics:
        count, number = 0 if row.get("aborted") else len(row["survivors"]), int(row["round"])
        tip = f"round {number}: {count} of {clients}"
        parts.append(svg.box(x(number) - width / 2, y(count), width, _FLOOR - y(count), "cell-in", tip))
    parts += svg.level(y(clients), "quiet", f"all {clients}")
    return svg.figure("Survivors by round", f"Out of {clients} clients.", *parts)


def _rounds_scale(rounds: int, margin: float = 0.0) -> Scale:
    """Return the horizontal scale over rounds; `margin` in rounds leaves room for bars."""
    inset = 10 if margin == 0 else 0
    last = max(2, rounds) if margin == 0 else rounds
    return Scale(1 - margin, last + margin, LEFT + inset, WIDTH - RIGHT - inset)


def by_kind(metrics: Sequence[Row]) -> bool:
    """Whether the bytes of every round are counted by kind."""
    return bool(metrics) and all("bytes_by_kind" in row for row in metrics)


def _kinds(row: Row, way: str) -> dict[str, float]:
    """Return the mean bytes by kind of the clients that reached a round's sum, from the bottom of a bar up."""
    counted = [
        row["bytes_by_kind"][client_id][way]
        for client_id in row["survivors"]
        if client_id in row["bytes_by_kind"]
    ]
    return {kind: _mean([float(sizes.get(kind, 0)) for sizes in counted]) for kind in STACKED}


def _mean(values: Sequence[float]) -> float:
    """Return the mean; zero for a round that nobody finished."""
    return sum(values) / len(values) if values else 0.0
