"""The benchmarks' own parts: every section is there, and a line says what its figures are."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.common import Row, markdown
from benchmarks.run import SECTIONS, report
from benchmarks.scaling import CASES, FAILURE, LOSSES, measure
from benchmarks.sessions import BOX_BYTES, _peak
from benchmarks.simulation import Simulation
from protocols.secagg.parameters import choose


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_is_a_module(section: str) -> None:
    assert importlib.util.find_spec(f"benchmarks.{section}") is not None


@pytest.mark.parametrize(
    ("cost", "reference", "ratio"),
    [(0.002, 0.001, "2.00"), (0.9, 1.0, "0.90"), (1.0, 8.5, "1/8.5"), (1.0, 1547.2, "1/1,547")],
)
def test_a_line_has_the_ratio(cost: float, reference: float, ratio: str) -> None:
    assert Row("ours", cost, "theirs", reference).cells()[4] == ratio


def test_a_baseline_that_was_not_measured_has_no_ratio() -> None:
    cells = Row("ours", 0.001, "theirs", None, "≤ 1/6").cells()
    assert markdown(cells) == "| ours | 1.0 ms | theirs | not measured |  | ≤ 1/6 |"


def test_bytes_are_bytes() -> None:
    assert Row("upload", 1500.0, "bits", 1000.0, unit="bytes").cells()[1] == "1,500 bytes"


def test_the_report_names_its_command() -> None:
    assert "`python benchmarks/run.py`" in "\n".join(report(()))


def test_a_case_is_measured_and_loses_a_tenth() -> None:
    cost = measure(10, 1, 100)
    assert (cost.n, cost.degree, cost.d, cost.modulus_bits) == (10, 9, 100, 12)
    assert 0 < cost.client_s < cost.total_s
    assert 0 < cost.server_s < cost.total_s
    assert cost.up_bytes > 150  # the packed vector alone
    assert cost.peak_bytes > 10_000_000


def test_the_cases_span_the_table() -> None:
    ns, _, ds = zip(*CASES, strict=True)
    assert max(ns) == 1000
    assert max(ds) == 10_000_000
    assert choose(1000, 60, LOSSES, FAILURE).degree == 100
    assert (1000, 60, 100_000) in CASES


def test_the_server_keeps_no_vector() -> None:
    d = 1 << 18
    few, many = (_peak(Simulation(n, d), "mask") for n in (4, 12))
    assert few < 10 * d  # for a moment: a packed message, its values (4·d bytes), and room to unpack in
    assert many < few + d  # eight vectors more would be 32·d bytes


def test_the_server_holds_boxes_once() -> None:
    n = 30
    assert _peak(Simulation(n, 1), "share") < 1.6 * n * (n - 1) * BOX_BYTES  # twice would be above 2
