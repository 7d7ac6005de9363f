"""A small run in which clients train parts: what its plan drew is what its report, its page and its table draw."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from fedlora_priv.allocation.findings import Findings
from fedlora_priv.config import Experiment
from fedlora_priv.federation.allocating import allocation
from fedlora_priv.federation.preview import preview
from fedlora_priv.federation.run import run
from fedlora_priv.federation.setup import assemble
from fedlora_priv.methods.layout import Layout
from fedlora_priv.reports.allocations import drawn, heat_of
from fedlora_priv.reports.html import render
from fedlora_priv.reports.tables import print_plan
from fedlora_priv.reports.terminal import print_summary
from tests.conftest import Silent
from tests.test_html import Page

FIVE = [f"client-{k}" for k in range(1, 6)]


@pytest.fixture
def experiment(experiment_file: Callable[..., Path]) -> Experiment:
    """Five clients, of which two have room for one of the model's two layers, drawn anew in each of two rounds."""
    return Experiment.load(experiment_file(
        federation={"clients": 5, "rounds": 2, "method": "fedit"},
        communication={"support": "dense", "density": 1.0},
        allocation={"strategy": "fedra", "tiers": [{"clients": FIVE[:2], "max_layers": 1}]},
    ))  # fmt: skip


def printed(show: Callable[[Console], None]) -> str:
    console = Console(file=io.StringIO(), width=100)
    show(console)
    return console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO from above


def counted(experiment: Experiment, layout: Layout, client_id: str, layer: int) -> float:
    """In which part of the rounds a client trains a layer."""
    dealt = [allocation(experiment, layout, number, Findings()) for number in (1, 2)]
    return sum(layer in one.parts[client_id].layers for one in dealt if one is not None) / 2


def test_the_map_of_a_plan_is_that_of_its_run(experiment: Experiment, silent: Silent) -> None:
    planned, outcome = preview(experiment), run(experiment, progress=silent)
    layout = assemble(experiment, lambda _: None).layout
    before, after = heat_of(planned), heat_of(outcome.report)
    assert before is not None
    assert after is not None
    for client_id in FIVE:
        for layer in (0, 1):
            share = counted(experiment, layout, client_id, layer)
            assert before.share(client_id, layer) == after.share(client_id, layer) == share
    assert list(drawn(before)) == list(drawn(after))

    text = printed(lambda console: print_plan(console, planned))
    assert all(line in text for line in drawn(before))
    assert "a sum needs 3" in text
    assert "client-1, client-2: 1 of 2 layers at rank 2" in text
    page = re.sub(r"\s+", " ", Page(render(outcome.report, outcome.metrics)).text)
    assert "Who trains what" in page
    assert "at rank 2" in page
    assert "in parts" in printed(lambda console: print_summary(console, outcome.report, outcome.metrics))
