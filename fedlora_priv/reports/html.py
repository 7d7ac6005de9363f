"""The report as one HTML file that needs no network: figures inline, no script, no font, no image to load.

Everything that comes from a report is escaped (`markup.element`); a report may be another party's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from fedlora_priv.reports import allocations, charts, traffic
from fedlora_priv.reports.contracts import (
    certified_errors,
)
from fedlora_priv.reports.html_rounds import method_section, personal_section, rounds_section
from fedlora_priv.reports.markup import Markup, element, join, table
from fedlora_priv.reports.masking import masks_section
from fedlora_priv.reports.style import STYLE
from fedlora_priv.reports.summary import (
    Report,
    Row,
    Summary,
    bytes_text,
    claims,
    client_ids,
    plans,
    power_text,
    summarise,
    up_text,
)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # nothing can be fetched, whatever a report says

_CLAIMS_SHOWN = 12

_COVERED = {
    "public": "public: depends on no private data",
    "NonPrivate": "NOT covered: outside the guarantee",
}


def render(report: Report, metrics: Sequence[Row]) -> str:
    """Return the HTML page of a ``report.json`` and its ``metrics.jsonl`` rows.

    Raises:
        KeyError: a required field is missing; validate the report first (`accounting.report`).
    """
    summary = summarise(report, metrics)
    title = f"{summary.name} – privacy and {summary.metric.key} report"
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    body = element(
        "main",
        _header(report, summary),
        _banners(summary),
        _headline(summary),
        _plots(report, summary, metrics),
        personal_section(summary, metrics),
        _claims(report),
        _outputs(report),
        method_section(report),
        allocations.section(report),
        masks_section(report),
        _plan(report),
        traffic.section(metrics, summary.dense_bytes, summary.clients),
        rounds_section(report, summary, metrics),
        _provenance(report),
    )
    return f"<!doctype html>\n{element('html', head, element('body', body), lang='en')}\n"


def _header(report: Report, summary: Summary) -> Markup:
    """Return the name of the experiment and what kind of run it was."""
    aggregation = (report.get("secure_aggregation") or {}).get("mode")
    facts = [f"mode {report.get('mode', '?')}", f"{summary.clients} clients", f"{summary.rounds} rounds"]
    facts += [f"{aggregation} aggregation"] if aggregation else []
    return element(
        "header",
        element("p", "fedlora-priv report", class_="eyebrow"),
        element("h1", summary.name),
        element("p", " · ".join(facts)),
    )


def _banners(summary: Summary) -> Markup:
    """Return what a reader must know before any number."""
    parts = []
    if summary.deterministic:
        words = (
            "noise or sampling was reproducible in this run. There is NO privacy, whatever the numbers say."
        )
        parts.append(
            element("p", element("strong", "Not private: "), words, class_="banner bad", role="alert")
        )
    if summary.simulation:
        words = (
            "the data was declared public, so this run protects nobody. The claim below says what the same "
        )
        words += "run would promise to the owners of private data."
        parts.append(element("p", element("strong", "Simulation: "), words, class_="banner"))
    if summary.insecure:
        words = "the server saw every client's update by itself. Only each client's own noise protects it."
        parts.append(element("p", element("strong", "Insecure aggregation: "), words, class_="banner"))
    if summary.non_private:
        heading = element("strong", "Released outside the guarantee:", class_="bad-text")
        items = element("ul", (element("li", what) for what in summary.non_private))
        parts.append(element("div", heading, items, class_="banner bad", role="alert"))
    return join(parts)


def _headline(summary: Summary) -> Markup:
    """Return the four cards on top."""
    return element(
        "section",
        _quality_card(summary),
        _privacy_card(summary),
        _bytes_card(summary),
        _survivors_card(summary),
        class_="grid",
        aria_label="Headline",
    )


def _card(label: str, value: str, *details: str) -> Markup:
    """Return one figure with its name and what goes with it."""
    lines = [element("div", detail, class_="detail") for detail in details if detail]
    return element(
        "div",
        element("div", label, class_="label"),
        element("div", value, class_="value"),
        lines,
        class_="card",
    )


def _quality_card(summary: Summary) -> Markup:
    """Return accuracy or perplexity before and after."""
    metric = summary.metric
    if summary.after is None:
        reason = "not measured: the evaluation data was not declared public"
        return _card(metric.title, "not reported", reason)
    after = metric.shown(summary.after)
    if summary.before is None:
        return _card(metric.title, after, _on(summary))
    before = element("small", f"{metric.number(summary.before)} → ")
    return _card(f"{metric.title}, before → after", join(before, after), _on(summary))


def _on(summary: Summary) -> str:
    """Return what the model was evaluated on."""
    return f"on {summary.evaluated_on}" if summary.evaluated_on else ""


def _privacy_card(summary: Summary) -> Markup:
    """Return the worst claim with everything that gives it meaning."""
    if summary.epsilon is None or summary.delta is None:
        return _card(
            "Privacy", element("span", "no guarantee", class_="bad-text"), "the report makes no claim"
        )
    lifetime = summary.lifetime_epsilon
    return _card(
        "Privacy, largest of any client",
        f"ε ≤ {up_text(summary.epsilon)}",
        f"at δ = {power_text(summary.delta)}, {summary.adjacency}",
        f"in the view of: {', '.join(summary.views)}",
        f"over the life of the data: ε ≤ {up_text(lifetime)}"
        if lifetime not in (None, summary.epsilon)
        else "",
    )


def _bytes_card(summary: Summary) -> Markup:
    """Return the upload and how it compares with plain adapters."""
    if summary.uploaded_bytes is None:
        return _card("Upload per client and round", "nothing", "no round reached its sum")
    sent = bytes_text(summary.uploaded_bytes)
    if summary.upload_ratio is None or summary.dense_bytes is None:
        return _card("Upload per client and round", sent, "on the wire")
    value = join(f"{summary.upload_ratio:.3g}", element("small", " × dense LoRA"))
    return _card(
        "Upload per client and round",
        value,
        f"{sent} on the wire; {bytes_text(summary.dense_bytes)} in float32",
    )


def _survivors_card(summary: Summary) -> Markup:
    """Return how many clients reached the sums."""
    total = summary.clients * summary.rounds
    value = join(f"{summary.survivals}", element("small", f" of {total}"))
    lost = "nobody was lost" if not summary.losses else f"{summary.losses} lost on the way"
    failed = f"rounds without a result: {summary.rounds_without_sum}" if summary.rounds_without_sum else ""
    return _card("Survivors, clients × rounds", value, lost, failed)


def _plots(report: Report, summary: Summary, metrics: Sequence[Row]) -> Markup:
    """Return the four plots, or a word where there is nothing to show."""
    clients = client_ids(report, metrics)
    many = len(clients) > charts.MATRIX_CLIENTS
    cards = [
        (f"{summary.metric.title} by round", _on(summary), charts.quality(summary, metrics)),
        (
            "Privacy spent by round",
            "upper bound after each round, planned retries included: bold the largest, thin every client",
            charts.epsilon(summary, metrics, clients),
        ),
        (
            "Bytes by round",
            _traffic_caption(metrics),
            charts.traffic(summary, metrics),
        ),
        (
            "Survivors by round",
            "clients in the sum"
            if many
            else join(
                _key("in", "in the sum"),
                _key("lost", "lost"),
                _key("refused", "refused"),
                _key("out", "no result"),
            ),
            charts.survivors(metrics, clients),
        ),
    ]
    errors = certified_errors(report.get("rounds") or ())
    if errors:
        caption = "‖mean of the clients' products − result‖ / ‖mean‖, of all modules together"
        cards.append(("Certificate by round", caption, charts.certificate(errors, len(metrics))))
    return element("section", (_plot(*card) for card in cards), class_="plots", aria_label="By round")


def _traffic_caption(metrics: Sequence[Row]) -> Markup:
    """Return what the bars of bytes mean."""
    if not charts.by_kind(metrics):
        return join(_key("up", "up"), _key("down", "down"), "mean per surviving client, on the wire")
    words = "left up, right down; mean per surviving client, on the wire"
    return join(
        [_key(f"kind-{kind}", kind) for kind in charts.STACKED if traffic.any_of(metrics, kind)], words
    )


def _plot(heading: str, caption: str, drawing: Markup | None) -> Markup:
    """Return one plot in its card."""
    content = (
        drawing if drawing is not None else element("p", "nothing to show: not recorded", class_="caption")
    )
    return element(
        "div", element("h3", heading), element("p", caption, class_="caption"), content, class_="card"
    )


def _key(colour: str, word: str) -> Markup:
    """Return one entry of a legend."""
    return join(element("i", class_="key", style=f"background: var(--{colour})"), element("span", word))


def _claims(report: Report) -> Markup:
    """Return every claim with unit, adjacency, view and price; a long list starts folded."""
    rows = [astuple(claim) for claim in claims(report)]
    heads = ("who", "unit", "adjacency", "views", "#ε", "#δ", "accountant", "#n (declared)")
    shown = table(heads, rows[:_CLAIMS_SHOWN])
    if len(rows) > _CLAIMS_SHOWN:
        shown = join(
            shown, element("details", element("summary", "the others"), table(heads, rows[_CLAIMS_SHOWN:]))
        )
    return join(element("h2", "What is claimed"), shown)


def _outputs(report: Report) -> Markup:
    """Return everything that left a client or the server, and what covers it."""
    rows = [
        (str(output["what"]), _coverage(str(output["covered_by"]))) for output in report.get("outputs") or ()
    ]
    return (
        join(element("h2", "What was released"), table(("output", "covered by"), rows))
        if rows
        else Markup("")
    )


def _coverage(covered_by: str) -> Markup:
    """Return what covers an output; in red where nothing does."""
    class_ = "bad-text" if covered_by == "NonPrivate" else None if covered_by == "public" else "good-text"
    return element("span", _COVERED.get(covered_by, covered_by), class_=class_)


def _plan(report: Report) -> Markup:
    """Return the noise plans, those of one line each only once."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for client_id, plan in plans(report):
        grouped.setdefault(_plan_cells(plan), []).append(client_id)
    rows = [
        (", ".join(who) if len(who) <= 8 else f"{len(who)} clients", *cells) for cells, who in grouped.items()
    ]
    heads = (
        "clients",
        "#noise multiplier",
        "#sample rate",
        "#steps",
        "#clip norm",
        "sampler",
        "#target ε",
        "#examples",
    )
    return join(element("h2", "How it was planned"), table(heads, rows)) if rows else Markup("")


def _plan_cells(plan: Row) -> tuple[str, ...]:
    """Return a plan as the cells of a table."""
    examples = plan.get("declared_examples")
    return (
        f"{plan['noise_multiplier']:.4f}",
        f"{plan['sample_rate']:.4f}",
        f"{plan['planned_steps']:,}",
        f"{plan['clip_norm']:g}{', then adaptive' if plan.get('adaptive_clip') else ''}",
        str(plan.get("sampler", "")),
        f"{plan['target_epsilon']:g}",
        "" if examples is None else f"{examples:,}",
    )


def _provenance(report: Report) -> Markup:
    """Return what a reader needs to check the report: hashes, anchors, sources of randomness, versions."""
    experiment, randomness = report.get("experiment") or {}, report.get("randomness") or {}
    environment = report.get("environment") or {}
    facts: list[tuple[str, Any]] = [
        ("run", report.get("run")),
        ("configuration SHA-256", experiment.get("config_sha256")),
        ("ledger head", report.get("ledger_head")),
        ("noise from", randomness.get("noise_source")),
        ("batches from", randomness.get("sampling_source")),
        *((name.replace("_", " "), value) for name, value in environment.items()),
        *(
            (f"{a['client_id']}: {a['rows']} ledger rows, signed head", a["head"])
            for a in report.get("anchors") or ()
        ),
        *sorted((report.get("versions") or {}).items()),
    ]
    rows = [(name, element("code", _plain(value))) for name, value in facts if value not in (None, "")]
    footer = "Check this report without trusting it: fedlora audit <this folder>. PASS means consistent with "
    footer += "signed records, not that the training happened as recorded."
    return join(element("h2", "Provenance"), table(("what", "value"), rows), element("footer", footer))


def _plain(value: Any) -> str:
    """Return a value as text; a table becomes 'key: value' pairs."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {inner}" for key, inner in value.items())
    return str(value)
