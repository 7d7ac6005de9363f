"""What report page and closing table say of the method: contracts by round, exchanges and certificates."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console

from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.federation.allocating import all_rounds
from fedlora_priv.federation.contracts import stated
from fedlora_priv.methods import METHODS, Layout, LoraModule
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.schedule import hybrid
from fedlora_priv.reports.html import render
from fedlora_priv.reports.terminal import print_summary
from tests.test_html import Page, metrics_of, report_of

LAYOUT = Layout((LoraModule("layer.0.query", 12, 10, 2, 2.0),), {"head.weight": (2, 12)})
EXPERIMENT = Experiment.from_toml(
    '[experiment]\nname = "shown"\n[data]\npublic = true\n[privacy]\nepsilon = 8.0\n',
    ["federation.rounds=12"],
)
FOUND = all_rounds(EXPERIMENT, Findings())


def hybrid_report() -> dict[str, Any]:
    """Twelve rounds of a hybrid that changes in round 5; two of the first four, which are certified, asked twice."""
    report = report_of()
    ids = report["rounds"][0]["survivors"]
    rounds = []
    for number in range(1, 13):
        certificate = {"error": 0.01 * number, "columns": 48, "modules": {}} if number < 5 else None
        sums = [{"session_id": "aa", "transcript": "be" * 32, "announced": None}]
        sums += (
            [{"session_id": "ab", "transcript": "fe" * 32, "announced": "00" * 32}]
            if number in (2, 3)
            else []
        )
        rounds.append({"round": number, "survivors": ids, "exchanges": sums, "certificate": certificate})
    method = stated(EXPERIMENT, hybrid(5, CrossTerm(fallback="exact")), LAYOUT, FOUND)
    return {**report, "method": method, "rounds": rounds}


def test_the_page_states_what_each_round_lets_leave_and_how_near_it_came() -> None:
    page = Page(render(hybrid_report(), metrics_of()))
    text = re.sub(r"\s+", " ", page.text)
    assert "1–4" in text
    assert "5–12" in text
    assert "delta_w 120" in text  # m·n of the one module: the fallback's exchange
    assert "the last exchange only where the one before was not enough" in text
    assert "2.00%, from 48 columns" in text
    assert text.count("fefefefefefefefe") == 2  # the second exchanges' transcripts
    dots = [a for tag, a in page.tags if tag == "circle" and a.get("class") == "primary-dot"]
    assert len(dots) == 12 + 4  # accuracies, and certificates of the rounds that have one


def test_the_page_says_whose_last_components_have_faded() -> None:
    report = hybrid_report()
    assert "faded" not in Page(render(report, metrics_of())).text
    report["rounds"][2]["faded"] = ["client-2"]
    assert "client-2: last components faded" in Page(render(report, metrics_of())).text


def test_the_closing_table_states_method_exchanges_and_certificate() -> None:
    console = Console(file=io.StringIO(), width=220)
    print_summary(console, hybrid_report(), metrics_of())
    shown = console.file.getvalue()
    assert "rounds 1–4 fra, rounds 5–12 ffa" in shown
    assert "14 exchanges in 12 rounds, of 16 that it may have" in shown
    assert "4.00%" in shown
    assert "1.00% to 4.00% in 4 rounds" in shown


def test_every_method_can_be_shown() -> None:
    for method in METHODS.values():
        page = Page(
            render({**report_of(), "method": stated(EXPERIMENT, method, LAYOUT, FOUND)}, metrics_of())
        )
        assert method.title in page.text


def test_each_clients_own_model_is_shown_where_it_has_one() -> None:
    rows = metrics_of()
    assert "own model" not in render(hybrid_report(), rows)
    rows[-1]["personal_accuracy"] = {f"client-{i}": 0.5 + i / 100 for i in range(1, 6)}
    assert "53.00 %" in Page(render(hybrid_report(), rows)).text
    console = Console(file=io.StringIO(), width=220)
    print_summary(console, hybrid_report(), rows)
    assert "0.510 to 0.550" in console.file.getvalue()
