"""Who trains what as a plan and a report draw it: against counting, and in words."""

from __future__ import annotations

import io
import random
import re
from typing import Any

from rich.console import Console

from fedlora_priv.reports.allocations import Heat, drawn, heat_of, print_allocation, shade
from fedlora_priv.reports.html import render
from fedlora_priv.reports.terminal import print_summary
from tests.test_html import Page, metrics_of, report_of

LAYERS = [f"encoder.layer.{i}" for i in range(4)]
Parts = dict[str, dict[str, Any]]


def contract(rounds: list[int], clients: Parts, strategy: str = "fedra") -> dict[str, Any]:
    """What a report states of some rounds, as far as it is drawn."""
    dealt = {"strategy": strategy, "layers": LAYERS, "min_contributors": 3, "clients": clients}
    return {"rounds": rounds, "allocation": dealt}


def dealt_by_chance(clients: int, seed: int = 0) -> Parts:
    """Some layers for each client."""
    chance = random.Random(seed)
    parts = {}
    for k in range(clients):
        layers = sorted(chance.sample(range(4), chance.randint(1, 4)))
        parts[f"client-{k + 1}"] = {"layers": layers, "rank": chance.choice((2, 4, 8))}
    return parts


def test_shares_and_holders_are_what_counting_round_by_round_gives() -> None:
    stated = [contract(rounds, dealt_by_chance(7, seed)) for seed, rounds in enumerate(([1, 4, 5], [2], [3]))]
    heat = Heat(stated)
    by_round = {number: one["allocation"]["clients"] for one in stated for number in one["rounds"]}
    assert (heat.rounds, heat.rank, heat.often()) == (5, 8, "3 allocations in 5 rounds")
    for layer in range(4):
        counts = []
        for parts in by_round.values():
            counts.append(sum(1 for part in parts.values() if layer in part["layers"]))
        assert heat.holders(layer) == (min(counts), max(counts))
        for client_id in heat.clients:
            given = [
                parts[client_id]["rank"] for parts in by_round.values() if layer in parts[client_id]["layers"]
            ]
            assert abs(heat.share(client_id, layer) - sum(given) / 8 / 5) < 1e-12


def test_a_layer_that_is_not_named_is_not_drawn() -> None:
    """A stranger's report may number layers as it likes."""
    odd = {"client-1": {"layers": [0, 4], "rank": 2}, "client-2": {"layers": [9], "rank": 2}}
    assert [line.split("  ")[1:2] for line in drawn(Heat([contract([1], odd)]))][-1] == ["█ ·"]


def test_columns_are_in_the_order_of_numbers_and_many_clients_go_below_each_other() -> None:
    few = list(drawn(Heat([contract([1], dealt_by_chance(12))])))
    assert few[0].split() == [str(k) for k in range(1, 13)]
    assert [line.split("  ")[0] for line in few[1:]] == [f"layer {i}" for i in (3, 2, 1, 0)]
    many = list(drawn(Heat([contract([1], dealt_by_chance(100))])))
    assert "client-1 to client-50" in many[0]
    assert "client-51 to client-100" in many[5]
    assert len(many) == 10
    assert all(len(line) <= 80 for line in (*few, *many))
    marks = re.sub(r"[^·░▒▓█]", "", "".join(many))
    assert len(marks) == 400


def test_shades_grow_with_what_is_trained_and_only_all_is_full() -> None:
    shades = [shade(share / 100) for share in range(101)]
    assert shades == sorted(shades, key="·░▒▓█".index)
    assert (shades[0], shades[1], shades[99], shades[100]) == ("·", "░", "▓", "█")


def printed(planned: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=80)
    print_allocation(console, planned)
    return console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above


def test_a_plan_draws_the_map_and_says_what_is_thin_and_what_tiers_need() -> None:
    tier = {"clients": ["client-1"], "layers": [1, 2], "rank": 4, "coordinates": 70, "memory_bytes": 5e8,
            "has_bytes": None, "round_s": 0.25, "has_s": 2.0}  # fmt: skip
    asked = {
        "fewest": {"clients": 3, "layer": 1, "component": 3, "round": 2},
        "min_contributors": 3,
        "holders": 3,
        "known_rounds": 2,
        "tiers": [tier],
    }
    text = printed({"method": {"contracts": [contract([1, 2], dealt_by_chance(5))]}, "allocation": asked})
    flat = " ".join(text.split())
    assert "who trains what: fedra, the same in all 2 rounds" in flat
    assert (
        "3 (component 4 of layer 1, round 2), and a sum needs 3: no loss before masking is survived" in flat
    )
    assert (
        "client-1: 1 to 2 of 4 layers at rank 4, 70 coordinates; memory 500.00 MB; a round 0.25 s of 2 s"
        in flat
    )
    assert printed({"method": {"contracts": [{"rounds": [1]}]}, "allocation": None}) == ""


def report_in_parts() -> dict[str, Any]:
    """A report whose rounds have two allocations."""
    report = report_of()
    base = report["method"]["contracts"][0]
    both = [
        {**base, **contract(rounds, dealt_by_chance(5, seed))} for seed, rounds in ((1, [1, 3]), (2, [2]))
    ]
    return {**report, "method": {**report["method"], "contracts": both}}


def test_the_page_has_the_map_and_every_allocation_by_round() -> None:
    report = report_in_parts()
    text = re.sub(r"\s+", " ", Page(render(report, metrics_of())).text)
    assert "Who trains what" in text
    for one in report["method"]["contracts"]:
        for client_id in one["allocation"]["clients"]:
            assert client_id in text
    assert "encoder.layer.3" in text
    assert text.count(" at rank ") >= 4
    heat = heat_of(report)
    assert heat is not None
    assert "Who trains what" not in Page(render(report_of(), metrics_of())).text


def test_contracts_that_differ_in_who_trains_what_alone_are_one_line_of_the_method() -> None:
    report = report_in_parts()
    every = sorted(n for one in report["method"]["contracts"] for n in one["rounds"])
    text = re.sub(r"\s+", " ", Page(render(report, metrics_of())).text)
    start = text.index("one client sends")
    assert f"{every[0]}–{every[-1]}" in text[start : start + 120]


def test_the_closing_table_names_the_strategy_and_how_thin_layers_were() -> None:
    console = Console(file=io.StringIO(), width=200)
    report = report_in_parts()
    print_summary(console, report, metrics_of())
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above
    assert "in parts" in text
    assert f"2 allocations in {heat_of(report).rounds} rounds; a layer is given to" in text  # type: ignore[union-attr]  # it states some
