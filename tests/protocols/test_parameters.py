"""The tails are exact, the bounds hold for every set of losses on small rings and for simulated sessions on larger."""

from __future__ import annotations

import itertools
import math
import runpy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import protocols
from protocols.errors import LocalProtocolError
from protocols.secagg.graph import MaskGraph
from protocols.secagg.parameters import (
    abort_bound,
    abort_bound_of_losses,
    binomial_tail,
    choose,
    hypergeometric_tail,
)
from protocols.secagg.session import Thresholds, recommended

ROOT = Path(protocols.__file__).resolve().parent.parent
T1 = bytes(range(32))


@pytest.mark.parametrize(
    ("trials", "p"), [(1, Fraction(1, 3)), (40, Fraction(1, 10)), (300, Fraction(9, 10))]
)
def test_the_binomial_tail_is_exact(trials: int, p: Fraction) -> None:
    terms = [math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(trials + 1)]
    for least in range(-1, trials + 2, max(1, trials // 20)):
        exact = float(sum(terms[max(least, 0) :], Fraction(0)))
        assert binomial_tail(trials, float(p), least) == pytest.approx(exact, rel=1e-9)
    assert binomial_tail(trials, 0.0, 1) == 0
    assert binomial_tail(trials, 0.0, 0) == 1


@pytest.mark.parametrize(
    ("population", "marked", "drawn"), [(5, 2, 3), (60, 20, 30), (999, 100, 100), (7, 7, 3)]
)
def test_the_hypergeometric_tail_is_exact(population: int, marked: int, drawn: int) -> None:
    every = math.comb(population, drawn)
    for least in range(-1, drawn + 2, max(1, drawn // 20)):
        ways = sum(
            math.comb(marked, k) * math.comb(population - marked, drawn - k)
            for k in range(max(least, 0), drawn + 1)
        )
        assert hypergeometric_tail(population, marked, drawn, least) == pytest.approx(ways / every, rel=1e-9)


def aborts(graph: MaskGraph, counts: Thresholds, colluders: int, lost: frozenset[int]) -> bool:
    """Whether honest parties fail when these clients are lost: the three conditions of docs/parameters.md."""
    left = frozenset(range(graph.n)) - lost
    return (
        len(left) < max(counts.quorum, counts.min_survivors)
        or any(len(left.intersection(graph.holders(i))) < counts.threshold for i in range(graph.n))
        or graph.weakest_cut(left) <= colluders
    )


@pytest.mark.parametrize(
    ("n", "colluders", "degree", "threshold"),
    [(9, 1, 6, 4), (9, 1, 6, 5), (11, 0, 4, 3), (12, 1, 6, 3), (12, 2, 8, 5), (10, 1, 9, 6)],
)
def test_the_bounds_hold_for_every_set_of_losses(n: int, colluders: int, degree: int, threshold: int) -> None:
    # A uniform set of losses on one ring is a fixed set on a uniform ring: the ring's order drops out.
    graph = MaskGraph(n, degree, T1)
    counts = replace(recommended(n, colluders, degree), threshold=threshold)
    bad = [
        sum(
            aborts(graph, counts, colluders, frozenset(lost))
            for lost in itertools.combinations(range(n), size)
        )
        for size in range(n + 1)
    ]
    informative = 0
    for size in range(n + 1):
        exact, bound = bad[size] / math.comb(n, size), abort_bound_of_losses(n, colluders, counts, size)
        assert exact <= bound + 1e-12
        informative += 0 < bound < 1
    for p in (0.01, 0.05, 0.2, 0.5):
        exact = sum(count * p**size * (1 - p) ** (n - size) for size, count in enumerate(bad))
        bound = abort_bound(n, colluders, counts, p)
        assert exact <= bound * (1 + 1e-12)
        if degree == n - 1:
            assert bound == pytest.approx(exact, rel=1e-9)
        elif p == 0.01:
            assert bound < 12 * exact + 1e-9  # the union bound is not far off where it matters
    assert informative or (n, degree) not in ((12, 6), (11, 4))


def test_a_ring_of_degree_c_fails_without_any_loss() -> None:
    counts = replace(recommended(12, 4, 6), degree=4, threshold=5)
    assert aborts(MaskGraph(12, 4, T1), counts, 4, frozenset())
    assert abort_bound_of_losses(12, 4, counts, 0) == abort_bound(12, 4, counts, 0.0) == 1.0


def test_the_bounds_hold_in_simulated_sessions() -> None:
    # A frequency above its bound by 6 standard deviations would be a false alarm in 1e9.
    n, colluders, degree, sessions = 60, 2, 12, 1000
    counts = Thresholds(quorum=32, threshold=5, min_survivors=32, degree=degree)
    rng = np.random.default_rng(1)
    failed = failed_of_18 = 0
    for number in range(sessions):
        graph = MaskGraph(n, degree, number.to_bytes(32, "little"))
        failed += aborts(graph, counts, colluders, frozenset(np.flatnonzero(rng.random(n) < 0.22).tolist()))
        failed_of_18 += aborts(graph, counts, colluders, frozenset(range(18)))  # always the same ones
    for seen, bound in (
        (failed / sessions, abort_bound(n, colluders, counts, 0.22)),
        (failed_of_18 / sessions, abort_bound_of_losses(n, colluders, counts, 18)),
    ):
        assert bound / 20 < seen <= bound + 6 * math.sqrt(bound * (1 - bound) / sessions)
        assert bound < 0.9


@pytest.mark.parametrize(
    ("n", "colluders", "rate", "allowed"),
    [
        (101, 5, 0.1, 1e-6),
        (130, 0, 0.05, 1e-4),
        (150, 40, 0.1, 1e-3),
        (200, 20, 0.2, 1e-9),
        (1000, 60, 0.1, 1e-8),
    ],
)
def test_the_choice_is_safe_reliable_and_the_cheapest(
    n: int, colluders: int, rate: float, allowed: float
) -> None:
    counts = choose(n, colluders, rate, allowed)
    assert 2 * counts.quorum > n + colluders
    assert counts.quorum <= counts.min_survivors <= n
    assert colluders < counts.threshold <= counts.degree + 1
    assert abort_bound(n, colluders, counts, rate) <= allowed
    higher = replace(counts, threshold=counts.threshold + 1)
    assert abort_bound(n, colluders, higher, rate) > allowed
    for degree in range(colluders + colluders % 2 + 2, counts.degree, 2):
        smaller = replace(recommended(n, colluders, degree), threshold=colluders + 1)
        assert abort_bound(n, colluders, smaller, rate) > allowed


def test_the_design_figures() -> None:
    assert choose(5, 1, 0.01, 0.001) == Thresholds(quorum=4, threshold=4, min_survivors=4, degree=4)
    large = choose(1000, 60, 0.1, 1e-8)
    assert (large.degree, large.quorum) == (100, 531)
    for threshold in range(61, 71):
        assert abort_bound(1000, 60, replace(large, threshold=threshold), 0.1) < 1e-5


def test_few_clients_are_completely_joined() -> None:
    assert choose(100, 10, 0.1, 1e-6).degree == 99
    assert choose(101, 10, 0.1, 1e-6).degree < 100
    assert choose(40, 5, 0.1, 1e-3, complete_up_to=20).degree < 39
    assert choose(101, 98, 0.0, 1e-6).degree == 100  # no ring has room for so many colluders


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((5, 1, 0.1, 1e-2), "may fail with probability 0.081: add clients"),
        ((200, 20, 0.9, 1e-6), "may fail"),
        ((3, 2, 0.1, 0.1), "cannot be protected from 2 colluders"),
        ((5, -1, 0.1, 0.1), "5 clients and -1 colluders are out of range"),
        ((70_000, 1, 0.1, 0.1), "70000 clients and 1 colluders are out of range"),
        ((10, 1, 1.0, 0.1), "dropout_rate must be"),
        ((10, 1, -0.1, 0.1), "dropout_rate must be"),
        ((10, 1, 0.1, 0.0), "failure_probability"),
        ((10, 1, math.nan, 0.1), "dropout_rate must be"),
    ],
)
def test_what_cannot_be_promised_is_refused(arguments: tuple[int, int, float, float], match: str) -> None:
    with pytest.raises(LocalProtocolError, match=match):
        choose(*arguments)


def test_the_table_in_the_docs_is_what_its_command_prints() -> None:
    table = runpy.run_path(str(ROOT / "docs" / "parameters.py"))["table"]()
    assert table in (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
