"""The mean of products from sums: where it is exact, how near it comes elsewhere, and whether it knows."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import chi2

from fedlora_priv.methods import public
from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.crossterm import DEGREES, CrossTerm
from fedlora_priv.methods.fedex import FedEx
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fra import FRALoRA
from fedlora_priv.methods.layout import Layout, LoraModule
from fedlora_priv.methods.residual import merged
from tests.methods.lab import (
    Round,
    correlated,
    independent,
    layout_of,
    mean_product,
    optimum,
    product,
    relative,
    run,
)

RANK = 8
SQUARE = layout_of(LoraModule("w", 128, 128, RANK, 1.0), heads=False)
(W,) = SQUARE.modules
SKETCH, TWO_PASS, EXACT = (FRALoRA(CrossTerm(mode)) for mode in ("sketch", "two-pass", "exact"))


def error(done: Round, clients: list[dict], m: LoraModule = W) -> float:
    return relative(product(m, done.state), mean_product(m, clients))


# --- how near ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drift", [0.1, 1.0])
def test_a_sketch_as_wide_as_all_ranks_together_is_exact(drift: float) -> None:
    layout = layout_of(LoraModule("w", 96, 80, 4, 2.0), LoraModule("v", 90, 96, 4, 2.0))
    start, clients = independent(layout, np.random.default_rng(0), 5, drift)
    wide = CrossTerm("sketch", columns=5 * 4)
    dense, sketched = run(EXACT, layout, start, clients), run(FRALoRA(wide), layout, start, clients)
    for m in layout.modules:
        assert relative(product(m, sketched.state), product(m, dense.state)) < 1e-6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("p", "drift"), [(2, 0.5), (8, 0.5), (8, 1.0)])
def test_correlated_drifts_are_as_good_as_they_can_be(p: int, drift: float, seed: int) -> None:
    """Where FedIT is off by factors: B_i = B0 + U·C_i and A_i = A0 + C_iᵀ·V."""
    start, clients = correlated(SQUARE, np.random.default_rng(seed), 10, drift, p)
    best = optimum(mean_product(W, clients), RANK) / np.linalg.norm(mean_product(W, clients))
    assert error(run(SKETCH, SQUARE, start, clients), clients) < 1.01 * best
    assert error(run(TWO_PASS, SQUARE, start, clients), clients) < 1.01 * best
    assert error(run(FedIT(), SQUARE, start, clients), clients) > 1.7 * best


@pytest.mark.parametrize("clients_of", [independent, correlated])
@pytest.mark.parametrize("drift", [0.1, 0.3, 1.0, 2.0])
def test_a_sketch_is_hardly_ever_worse_than_fedit(drift: float, clients_of: object) -> None:
    """6 % is the bound on independent drifts; what shrinking leaves is far less. Rank 24 ≫ 8 in the correlated case."""
    extra = (24,) if clients_of is correlated else ()
    for seed in range(4):
        start, clients = clients_of(SQUARE, np.random.default_rng(seed), 10, drift, *extra)
        ours, fedit = (error(run(x, SQUARE, start, clients), clients) for x in (SKETCH, FedIT()))
        assert ours < 1.01 * fedit


def test_without_shrinking_independent_drifts_would_be_worse_than_fedit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, clients = independent(SQUARE, np.random.default_rng(0), 10, 2.0)
    fedit = error(run(FedIT(), SQUARE, start, clients), clients)
    monkeypatch.setattr("fedlora_priv.methods.crossterm._shrinkage", lambda h, f: np.ones(len(h)))
    assert error(run(SKETCH, SQUARE, start, clients), clients) > 1.1 * fedit


def test_a_second_pass_is_nearer_than_one() -> None:
    for seed in range(4):
        start, clients = correlated(SQUARE, np.random.default_rng(seed), 10, 0.5, 24)
        assert error(run(TWO_PASS, SQUARE, start, clients), clients) < error(
            run(SKETCH, SQUARE, start, clients), clients
        )


def test_nobody_moving_changes_nothing() -> None:
    start, _ = independent(SQUARE, np.random.default_rng(0), 1, 1.0)
    for method in (SKETCH, TWO_PASS):
        assert error(run(method, SQUARE, start, [start, start]), [start]) < 1e-6


# --- the certificate -----------------------------------------------------------------------------------


def test_so_many_columns_give_a_fifth_in_nineteen_of_twenty_at_worst() -> None:
    """An error of rank one is the worst case: its estimate is χ² with one degree of freedom a column."""

    def coverage(g: int) -> float:
        return float(chi2.cdf(1.2**2 * g, g) - chi2.cdf(0.8**2 * g, g))

    assert coverage(DEGREES) >= 0.95
    assert coverage(DEGREES - 3) < 0.95


@pytest.mark.parametrize("modules", [1, 4])
def test_the_certificate_is_near_the_true_error(modules: int) -> None:
    """Of 100 rounds at least 95; with errors of rank about one a module, as hard as it gets."""
    layout = layout_of(*(LoraModule(f"w{i}", 24, 20, 2, 1.0) for i in range(modules)), heads=False)
    method, near = FedEx(CrossTerm("sketch", columns=1)), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        start, clients = correlated(layout, rng, 4, 0.5, 2)
        done = run(method, layout, start, clients, seed=seed)
        total = merged(layout, done.state)
        missed = [np.linalg.norm(total[m.name] - mean_product(m, clients)) for m in layout.modules]
        estimate = math.sqrt(sum(e**2 for e in done.certificate.errors.values()))
        near += abs(estimate / np.linalg.norm(missed) - 1) <= 0.2
    assert near >= 95  # the seeds are fixed: this is a measurement, which cannot fail by chance


def test_every_module_has_its_own_columns() -> None:
    """With the same for all, modules with like errors would be wrong together, and pooling them would gain nothing."""
    layout = layout_of(*(LoraModule(f"w{i}", 24, 20, 2, 1.0) for i in range(3)), heads=False)
    start, clients = independent(layout, np.random.default_rng(0), 3, 0.5)
    alike = [
        {f"{m.name}.{ab}": c[f"w0.{ab}"] for m in layout.modules for ab in ("lora_A", "lora_B")}
        for c in (start, *clients)
    ]
    done = run(SKETCH, layout, alike[0], alike[1:])
    assert len(set(done.certificate.errors.values())) == 3


def test_the_certificate_of_a_dense_sum_is_the_error() -> None:
    start, clients = independent(SQUARE, np.random.default_rng(1), 4, 1.0)
    done = run(EXACT, SQUARE, start, clients)
    assert done.certificate.columns is None
    assert done.certificate.error == pytest.approx(error(done, clients), rel=1e-5)
    assert done.certificate.sizes["w"] == pytest.approx(np.linalg.norm(mean_product(W, clients)), rel=1e-5)


def test_the_certificate_sees_a_wrong_result() -> None:
    start, clients = correlated(SQUARE, np.random.default_rng(1), 6, 0.5, 2)
    done = run(SKETCH, SQUARE, start, clients)
    wrong = dict(done.state) | {W.b_name: 2 * done.state[W.b_name]}
    told = SKETCH.certify(SQUARE, start, done.sums, done.n, done.shared, wrong)
    true = relative(product(W, wrong), mean_product(W, clients))
    assert told.error == pytest.approx(true, rel=0.2)


# --- the policy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fallback", ["two-pass", "exact"])
def test_a_second_exchange_comes_only_if_the_sketch_misses_too_much(fallback: str) -> None:
    policy = FRALoRA(CrossTerm("sketch", fallback=fallback, tolerance=0.2))
    rng = np.random.default_rng(0)
    start, clients = correlated(SQUARE, rng, 10, 0.5, 4)
    assert run(policy, SQUARE, start, clients).shared.exchange == 0
    start, clients = correlated(SQUARE, rng, 10, 0.5, 24)
    once, twice = run(SKETCH, SQUARE, start, clients), run(policy, SQUARE, start, clients)
    assert twice.shared.exchange == 1
    assert error(twice, clients) < error(once, clients)
    if fallback == "exact":
        best = optimum(mean_product(W, clients), RANK) / np.linalg.norm(mean_product(W, clients))
        assert error(twice, clients) == pytest.approx(best, rel=1e-5)
    assert policy.contract(SQUARE).may_stop_early


# --- what it takes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sketch", "two-pass"])
def test_no_side_ever_forms_a_matrix_of_the_models_size(mode: str) -> None:
    m = LoraModule("w", 2048, 2048, 4, 1.0)
    layout, method = layout_of(m, heads=False), FRALoRA(CrossTerm(mode))
    start, clients = independent(layout, np.random.default_rng(0), 2, 0.5)
    tracemalloc.start()
    done = run(method, layout, start, clients)
    assert done.certificate.error > 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2048 * 2048 * 4 / 2  # half of one such matrix in float32


# --- what travels --------------------------------------------------------------------------------------


def test_uploads_are_as_long_as_stated() -> None:
    """r = k = 8, m = n = 384, 36 modules, so 4 held-out columns each: (5r + 1 + 4)·n, against LoRA's 2rn."""
    layout = Layout(tuple(LoraModule(f"w{i}", 384, 384, 8, 2.0) for i in range(36)), {})
    lora = layout.dense_fp32_bytes / 4
    sizes = [m.contract(layout).round_dimension / lora for m in (FedIT(), SKETCH, TWO_PASS, EXACT)]
    assert sizes == pytest.approx([1.0, (5 * 8 + 1 + 4) / 16, (4 * 8 + 4) / 16, 384 / 16])


# --- what everybody draws ------------------------------------------------------------------------------


def test_public_randomness_is_the_same_everywhere() -> None:
    """Golden values: a client with another numpy must draw the very same sketch."""
    drawn = public.gaussian(Shared(7, 3), "range/w", (2, 2))
    assert drawn.ravel().tolist() == pytest.approx(GOLDEN_GAUSSIAN, abs=1e-12)
    assert public.uniform(Shared(7, 3), "range/w", 0.5, (2,)).tolist() == pytest.approx(
        GOLDEN_UNIFORM, abs=1e-15
    )


GOLDEN_GAUSSIAN = [1.4779726362926267, -1.3348135273498896, -0.9065662693659239, -0.39120963858779834]
GOLDEN_UNIFORM = [-0.2775677586893648, -0.11992476805721741]


def test_public_randomness_is_standard_normal_and_independent() -> None:
    drawn = public.gaussian(Shared(7, 3), "x", (200_001,))
    assert abs(drawn.mean()) < 5 / math.sqrt(drawn.size)  # five deviations: 6e-7
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / drawn.size)
    assert abs((drawn**4).mean() - 3) < 5 * math.sqrt(96 / drawn.size)
    others = [public.gaussian(s, label, (200_001,)) for s, label in
              ((Shared(8, 3), "x"), (Shared(7, 4), "x"), (Shared(7, 3), "y"))]  # fmt: skip
    for other in others:
        assert abs(np.mean(drawn * other)) < 5 / math.sqrt(drawn.size)
    assert public.uniform(Shared(7, 3), "x", 0.25, (1000,)).max() <= 0.25
