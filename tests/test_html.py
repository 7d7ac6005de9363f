"""The report page and the closing table: what they say, what they escape, and that they need nothing else."""

from __future__ import annotations

import copy
import io
import itertools
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from accounting.errors import ReportError
from accounting.report import validate
from fedlora_priv.reports import svg
from fedlora_priv.reports.html import render
from fedlora_priv.reports.markup import element
from fedlora_priv.reports.masking import masks_section
from fedlora_priv.reports.summary import bytes_text, power_text, summarise, up_text
from fedlora_priv.reports.terminal import print_summary
from fedlora_priv.reports.traffic import counted

VIEWS = ("server", "released-model", "colluding-clients")
VOID = {"meta", "br", "hr", "img", "link", "input"}


def plan_of(client_id: str) -> dict[str, Any]:
    return {
        "client_id": client_id, "declared_examples": 1914, "planned_batch_size": 64, "sample_rate": 0.0334,
        "rounds": 12, "retry_rounds": 1, "steps_per_round": 1, "planned_steps": 13, "clip_norm": 1.0,
        "noise_multiplier": 0.8734, "target_epsilon": 8.0, "delta": 1e-5, "adjacency": "add-remove",
        "sampler": "poisson",
    }  # fmt: skip


def claims_of(who: str, epsilon: float, n: int) -> list[dict[str, Any]]:
    same = {
        "unit": "example", "adjacency": "add-remove", "who": who, "epsilon": epsilon, "delta": 1e-5,
        "accountant": "pld", "lifetime_epsilon": epsilon, "n": n, "basis": "ledger",
    }  # fmt: skip
    return [{"view": view, **same} for view in VIEWS]


METHOD = {
    "name": "ffa", "title": "FFA-LoRA",
    "contracts": [{
        "rounds": [1], "name": "ffa", "title": "FFA-LoRA", "trains": ["B", "head"], "stays_home": [],
        "changes_base": False, "exact": True, "weights": "uniform", "may_stop_early": False,
        "exchanges": [{"announced": {}, "travels": {"lora_B": 8, "head": 4}}], "round_dimension": 12, "noised": {},
        "noise": "linear", "leaks": "the sum over survivors", "notes": [],
    }],
}  # fmt: skip


def report_of(clients: int = 5, **changes: Any) -> dict[str, Any]:
    """A report that follows the published schema."""
    ids = [f"client-{index + 1}" for index in range(clients)]
    report = {
        "schema_version": 3,
        "experiment": {"name": "quickstart", "config_sha256": "ab" * 32},
        "run": "0123abcd",
        "mode": "local",
        "simulation": True,
        "method": METHOD,
        "claims": [c for i in ids for c in claims_of(i, 7.9, 1914)] + claims_of("federation", 7.9981, 9570),
        "plan": {client_id: plan_of(client_id) for client_id in ids},
        "metrics": {"accuracy_before": 0.502, "accuracy_after": 0.758, "evaluated_on": "1,000 held-out snippets"},
        "bytes": {"dense_lora_fp32_per_client_and_round": 298_000},
        "secure_aggregation": {"mode": "secure"},
        "rounds": [
            {"round": 1, "survivors": ids, "lost": [], "refused": [],
             "exchanges": [{"session_id": "aa", "transcript": "be" * 32, "announced": None}], "certificate": None,
             "remasked": [{"client_id": "client-1", "times": 2}], "announced_again": []},
        ],
        "randomness": {"noise_source": "os", "sampling_source": "os", "deterministic": False},
        "outputs": [
            {"what": "LoRA updates", "covered_by": "PoissonGaussian"}, {"what": "cohorts", "covered_by": "public"},
        ],
        "anchors": [],
        "ledger_head": "cd" * 32,
        "non_private": [],
        "versions": {"python": "3.11.9"},
    }  # fmt: skip
    return {**report, **changes}


def metrics_of(clients: int = 5, rounds: int = 12, accuracy: bool = True) -> list[dict[str, Any]]:
    """Rows as in metrics.jsonl; client-3 is lost in round 2, client-2 refuses round 3, round 4 has no sum."""
    ids = [f"client-{index + 1}" for index in range(clients)]
    rows = []
    for number in range(1, rounds + 1):
        lost = [{"client_id": "client-3", "phase": "mask"}] if number == 2 else []
        refused = [{"client_id": "client-2", "code": "PolicyViolation"}] if number == 3 else []
        away = {entry["client_id"] for entry in lost + refused}
        rows.append({
            "round": number,
            "accuracy": 0.76 - 0.2 * math.exp(-number / 4) if accuracy else None,
            "survivors": [] if number == 4 else [client_id for client_id in ids if client_id not in away],
            "lost": lost,
            "refused": refused,
            "aborted": "too few survivors" if number == 4 else None,
            "epsilon": {client_id: 8 * math.sqrt(number / rounds) for client_id in ids},
            "uploaded_bytes": dict.fromkeys(ids, 78_000),
            "downloaded_bytes": dict.fromkeys(ids, 121_000),
        })  # fmt: skip
    return rows


def with_kinds(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with bytes by kind, which add up to what they have in all."""
    up = {"keys": 2_500, "shares": 8_000, "votes": 0, "values": 66_500, "support": 0, "framing": 1_000}
    down = {"keys": 13_000, "shares": 7_500, "votes": 0, "values": 98_000, "support": 500, "framing": 2_000}
    return [
        {
            **row,
            "bytes_by_kind": {
                client_id: {"up": dict(up), "down": dict(down)} for client_id in row["uploaded_bytes"]
            },
        }
        for row in metrics
    ]


class Page(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "

    def classes(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def terminal(report: dict[str, Any], metrics: list[dict[str, Any]], width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_summary(console, report, metrics)
    return console.file.getvalue()


def test_the_fixture_is_a_report() -> None:
    validate(report_of())


def test_headline() -> None:
    text = " ".join(Page(render(report_of(), metrics_of())).text.split())
    for words in ("quickstart", "50.2 → 75.8 %", "ε ≤ 7.999", "at δ = 1e-5", "one example added or removed",
                  "server, released model, colluding clients", "0.262 × dense LoRA", "78.0 kB on the wire",
                  "53 of 60", "1 lost on the way", "rounds without a result: 1"):  # fmt: skip
        assert words in text


def test_the_page_needs_no_network_and_runs_nothing() -> None:
    page = render(report_of(), metrics_of())
    parsed = Page(page)
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "object", "embed"}
    assert not [
        a for _, attributes in parsed.tags for a in attributes if a in ("src", "href") or a.startswith("on")
    ]
    assert not re.search(r"url\(|@import", page)
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}


def test_figures_are_well_formed_and_accessible() -> None:
    figures = re.findall(r"<svg.*?</svg>", render(report_of(), metrics_of()), flags=re.DOTALL)
    assert len(figures) == 4
    for figure in figures:
        root = ET.fromstring(figure)
        names = {child.get("id") for child in root if child.tag.endswith(("}title", "}desc")) and child.text}
        assert set((root.get("aria-labelledby") or "").split()) == names
        assert len(names) == 2
        for tip in root.iter():
            for key in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy"):
                assert -1 <= float(tip.get(key, 0)) <= svg.WIDTH + 1


def test_bytes_by_kind_are_shown_where_they_were_counted() -> None:
    metrics = with_kinds(metrics_of())
    page, plain = Page(render(report_of(), metrics)), Page(render(report_of(), metrics_of()))
    assert "What travelled" in page.text
    assert "What travelled" not in plain.text
    bars = {kind: len(page.classes(f"bar-{kind}")) for kind in ("values", "keys", "support", "votes")}
    assert bars == {"values": 22, "keys": 22, "support": 11, "votes": 0}  # of 12 rounds one has no sum
    assert (len(plain.classes("bar-up")), len(page.classes("bar-up"))) == (11, 0)
    lines = [line.split() for line in terminal(report_of(), metrics).splitlines()]
    start = next(i for i, line in enumerate(lines) if line == ["up", "up", "up", "down", "down", "down"])
    assert lines[start + 1] == ["mean", "most", "run"] * 2
    by_kind = {line[0]: " ".join(line[1:]) for line in lines[start + 3 :] if line}
    assert list(by_kind) == ["keys", "shares", "values", "support", "framing", "all", "×"]
    assert by_kind["all"].startswith("78.0 kB 78.0 kB 4.68 MB ")  # 5 clients, 12 rounds
    assert by_kind["all"].endswith(" 7.26 MB")
    assert by_kind["values"].startswith("66.5 kB 66.5 kB 3.99 MB ")
    assert by_kind["×"].split()[:2] == ["dense", "0.262"]
    assert by_kind["×"].split()[-1] == "0.406"
    assert "keys" not in terminal(report_of(), metrics_of())


def test_a_client_that_was_lost_has_no_part_in_the_mean() -> None:
    metrics = with_kinds(metrics_of())
    metrics[1]["bytes_by_kind"]["client-3"]["up"]["values"] = 10**9
    up = (counted(metrics) or {})["up"]
    assert (up["mean"]["all"], up["most"]["all"]) == (78_000, 78_000)
    assert up["run"]["all"] == 78_000 * 60 - 66_500 + 10**9
    assert counted([*metrics, *metrics_of(rounds=1)]) is None


def test_methods_of_one_exchange_speak_of_rounds() -> None:
    summed = [{"round": 1, "survivors": ["client-1"], "exchanges": [{}]}]
    assert "a sum in 1 of 1 rounds" in terminal(report_of(rounds=summed), metrics_of())
    lost = [{"round": 1, "survivors": [], "exchanges": [{}]}]
    assert "a sum in 0 of 1 rounds" in terminal(report_of(rounds=lost), metrics_of())


def test_rendering_is_deterministic() -> None:
    assert render(report_of(), metrics_of()) == render(report_of(), metrics_of())


def test_survivors_matrix_shows_every_fate() -> None:
    page = Page(render(report_of(), metrics_of()))
    cells = {name: len(page.classes(name)) for name in ("cell-in", "cell-lost", "cell-refused", "cell-out")}
    assert cells == {"cell-in": 53, "cell-lost": 1, "cell-refused": 1, "cell-out": 5}
    assert len(page.classes("mark")) == 2  # a cross for the lost, a bar for the one that refused
    assert "client-3, round 2: lost before mask" in page.text


def test_a_large_cohort_is_counted_not_listed() -> None:
    page = Page(render(report_of(60), metrics_of(60, rounds=150)))
    assert len(page.classes("cell-in")) == 150
    assert "round 2: 59 of 60" in page.text


def test_claims_are_one_line_for_all_views_and_the_federation_comes_first() -> None:
    text = " ".join(Page(render(report_of(2), metrics_of(2))).text.split())
    table = text.partition("What is claimed")[2].partition("What was released")[0]
    assert table.count("server, released model, colluding clients") == 3
    assert table.index("federation") < table.index("client-1") < table.index("client-2")


def test_what_is_outside_the_guarantee_is_red() -> None:
    outputs = [{"what": "the training loss", "covered_by": "NonPrivate"}]
    noted = [{"client_id": "client-4", "round": 3, "what": "a row count", "reason": "asked for"}]
    report = report_of(outputs=outputs, non_private=noted)
    validate(report)
    page = render(report, metrics_of())
    assert '<span class="bad-text">NOT covered: outside the guarantee</span>' in page
    banner = page.partition('class="banner bad"')[2].partition("</div>")[0]
    assert "the training loss" in banner
    assert "a row count of client-4 in round 3 (asked for)" in banner
    assert "a row count of client-4" in terminal(report, metrics_of())
    assert not Page(render(report_of(), metrics_of())).classes("bad")


@pytest.mark.parametrize(
    ("changes", "words", "brief"),
    [
        (
            {"simulation": True},
            "the data was declared public, so this run protects nobody",
            "protects nobody",
        ),
        (
            {"randomness": {"noise_source": "seed", "sampling_source": "seed", "deterministic": True}},
            "There is NO privacy",
            "NOT PRIVATE",
        ),
        ({"secure_aggregation": {"mode": "insecure"}}, "the server saw every client's update", "Insecure"),
    ],
)
def test_what_limits_the_claim_is_said_first(changes: dict[str, Any], words: str, brief: str) -> None:
    quiet = report_of(simulation=False)
    text, without = (
        Page(render(r, metrics_of())).text for r in (report_of(**{"simulation": False} | changes), quiet)
    )
    assert 0 < text.index(words) < text.index("ε ≤")
    assert words not in without
    assert brief in terminal({**quiet, **changes}, metrics_of())
    assert brief not in terminal(quiet, metrics_of())


def test_a_language_model_is_measured_by_perplexity() -> None:
    measured = {"perplexity_before": 41.237, "perplexity_after": 9.5, "evaluated_on": "722 held-out examples"}
    rows = [{k: v for k, v in row.items() if k != "accuracy"} for row in metrics_of()]
    rows = [{**row, "perplexity": 40 - 2.5 * row["round"]} for row in rows]
    report = report_of(metrics=measured)
    validate(report)
    page = Page(render(report, rows))
    text = " ".join(page.text.split())
    for words in ("Perplexity, before → after", "41.24 → 9.50", "on 722 held-out examples", "Perplexity by round",
                  "From 37.50 in round 1 to 10.00.", "before: 41.24", "privacy and perplexity report"):  # fmt: skip
        assert words in text, words
    assert "ccuracy" not in text
    assert " %" not in text
    assert "perplexity   41.24 → 9.50" in terminal(report, rows)
    with pytest.raises(ReportError):
        validate(report_of(metrics={**measured, "accuracy_before": None, "accuracy_after": None}))
    with pytest.raises(ReportError):
        validate(report_of(metrics={**measured, "perplexity_after": 0.5}))


def test_accuracy_that_may_not_be_reported() -> None:
    nothing = {"accuracy_before": None, "accuracy_after": None, "evaluated_on": "nothing"}
    report = report_of(metrics=nothing)
    validate(report)
    page = Page(render(report, metrics_of(accuracy=False)))
    assert "the evaluation data was not declared public" in page.text
    assert "not reported" in terminal(report, metrics_of(accuracy=False))
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 3


def test_everything_from_a_report_is_escaped() -> None:
    evil = "<script>alert('x')</script>\"&"

    def poisoned(value: Any) -> Any:
        """The same structure with every text made hostile, keys of roles excepted."""
        if isinstance(value, str):
            return evil
        if isinstance(value, dict):
            return {key: poisoned(inner) for key, inner in value.items()}
        return [poisoned(inner) for inner in value] if isinstance(value, list) else value

    noted = [{"client_id": "c", "round": 1, "what": "w", "reason": "r"}]
    report, metrics = poisoned(report_of(non_private=noted)), poisoned(metrics_of())
    report["plan"] = {evil: report["plan"]["client-1"]}
    for row in metrics:
        for key in ("epsilon", "uploaded_bytes", "downloaded_bytes"):
            row[key] = {evil: row[key]["client-1"]}
    page = render(report, metrics)
    assert page.count(evil) == 0
    assert Page(page).text.count(evil) > 20
    assert "<script" not in page
    terminal(report, metrics)


def test_console_markup_in_a_report_stays_text() -> None:
    report = report_of(experiment={"name": "[red]x[/nonsense]", "config_sha256": "ab" * 32})
    assert "[red]x[/nonsense]" in terminal(report, metrics_of())


@pytest.mark.parametrize("rounds", [0, 1, 2, 1000])
def test_any_number_of_rounds(rounds: int) -> None:
    page = render(report_of(), metrics_of(rounds=rounds))
    assert "nan" not in page.lower().replace("provenance", "")
    Page(page)
    terminal(report_of(), metrics_of(rounds=rounds))


def test_summary_figures() -> None:
    metrics = metrics_of()
    metrics[0]["uploaded_bytes"]["client-1"] = 78_000 + 53 * 10
    metrics[1]["uploaded_bytes"]["client-3"] = 10**9  # lost: what it sent is no upload of a survivor
    summary = summarise(report_of(), metrics)
    assert summary.uploaded_bytes == 78_010
    assert summary.upload_ratio == pytest.approx(78_010 / 298_000)
    assert (summary.survivals, summary.losses, summary.rounds_without_sum) == (53, 1, 1)
    assert (summary.epsilon, summary.delta, summary.target_epsilon) == (7.9981, 1e-5, 8.0)


def test_nothing_is_changed_by_rendering() -> None:
    report, metrics = report_of(), metrics_of()
    before = copy.deepcopy((report, metrics))
    render(report, metrics)
    assert (report, metrics) == before


@given(st.floats(1e-6, 1e6))
def test_a_printed_bound_is_a_bound(value: float) -> None:
    assert value <= float(up_text(value)) <= value + 0.00101 + 1e-9 * value


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999.4, "999 B"), (1000, "1.0 kB"), (3.2e9, "3.20 GB")]
)
def test_bytes(count: float, words: str) -> None:
    assert bytes_text(count) == words


def test_powers() -> None:
    assert [power_text(value) for value in (1e-5, 0.05, 1.25e-10)] == ["1e-5", "0.05", "1.25e-10"]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(1, 8))
def test_ticks_cover_the_data_evenly(low: float, span: float, wanted: int) -> None:
    marks = svg.ticks(low, low + span, wanted)
    tolerance = 1e-6 * max(1.0, abs(low), span)
    assert marks[0] <= low + tolerance
    assert marks[-1] >= low + span - tolerance
    steps = [after - before for before, after in itertools.pairwise(marks)]
    assert max(steps) - min(steps) <= tolerance
    assert len(marks) <= wanted + 2


@given(st.integers(1, 5000))
def test_round_labels_are_few_and_include_both_ends(rounds: int) -> None:
    labels = svg.round_ticks(rounds)
    assert (labels[0], labels[-1]) == (1, rounds)
    assert len(labels) <= 12
    assert labels == sorted(set(labels))


def test_elements_escape_children_and_attributes() -> None:
    assert element("a", "<&>", class_='x"y') == '<a class="x&quot;y">&lt;&amp;&gt;</a>'
    assert element("p", element("b", "1 < 2"), ("a", element("i", "b"))) == "<p><b>1 &lt; 2</b>a<i>b</i></p>"


def test_a_round_lost_after_its_first_sum_says_who_was_in_it_and_why_it_is_lost() -> None:
    metrics = metrics_of(rounds=2)
    metrics[0]["aborted"] = "exchange 1 needs all 5 clients of the first one"
    metrics[0]["lost"] = [{"client_id": "client-4", "phase": "mask of exchange 1"}]
    report = report_of()
    report["rounds"][0]["announced_again"] = [{"client_id": "client-1", "times": 1}]
    validate(report)
    text = Page(render(report, metrics)).text
    assert "client-5; exchange 1 needs all 5 clients of the first one" in text
    assert "client-1 told another basis" in text
    for client_id, fate in (
        ("client-4, round 1", "lost before mask of exchange 1"),
        ("client-5, round 1", "in a sum, but the round had no result"),
        ("client-5, round 2", "in the sum"),
    ):
        assert f"{client_id}: {fate}" in text
    summary = summarise(report, metrics)
    assert (summary.survivals, summary.rounds_without_sum) == (len(metrics[1]["survivors"]), 1)


def test_the_masks_caption_speaks_of_sessions_of_some_clients_only_where_there_are_any() -> None:
    counts = {"clients": 6, "quorum": 4, "threshold": 4, "min_survivors": 4, "neighbours": 5}
    secure = {"mode": "secure", "max_colluders": 1, **counts}
    alone = masks_section({"secure_aggregation": secure})
    assert "withstand 1 client that" in alone
    assert "session of its own" not in alone
    banded = {**secure, "max_colluders": 2, "bands": [{**counts, "exchange": 1}]}
    both = masks_section({"secure_aggregation": banded})
    assert "withstand 2 clients that" in both
    assert "session of its own" in both
