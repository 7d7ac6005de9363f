"""Every method against its own equations, written once more in the plainest numpy."""

from __future__ import annotations

import typing

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize

from fedlora_priv.config import Experiment
from fedlora_priv.config_federation import AggregationSection
from fedlora_priv.methods import METHODS, Layout, LoraModule, Shared, get
from fedlora_priv.methods.base import Method
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.fedask import FedASK
from fedlora_priv.methods.fedex import FedEx
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fedsa import FedSALoRA
from fedlora_priv.methods.fedsb import FedSB, PublicGradients
from fedlora_priv.methods.fedsvd import FedSVD
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.flexlora import FlexLoRA
from fedlora_priv.methods.flora import FLoRA
from fedlora_priv.methods.fra import FRALoRA
from fedlora_priv.methods.lora_fair import LoRAFair, objective, refine
from fedlora_priv.methods.raclora import RACLoRA
from fedlora_priv.methods.registry import reads
from fedlora_priv.methods.residual import merged
from fedlora_priv.methods.rolora import RoLoRA
from fedlora_priv.methods.schedule import hybrid
from tests.methods.lab import (
    TWO_SHAPES,
    cut,
    independent,
    layout_of,
    mean,
    mean_product,
    optimum,
    product,
    random_state,
    relative,
    run,
)

LAYOUT = TWO_SHAPES
SHARED = Shared(seed=7, round=3)

DENSE = CrossTerm("exact")
ALL: dict[str, Method] = METHODS | {
    "fra exact": FRALoRA(DENSE), "fra two-pass": FRALoRA(CrossTerm("two-pass")), "flora exact": FLoRA(cross=DENSE),
    "fedex exact": FedEx(DENSE),
}  # fmt: skip


def federation(method: Method, number: int = 1, clients: int = 4) -> tuple[dict, list[dict]]:
    """A start, and clients that have trained what the method lets them train."""
    rng = np.random.default_rng(0)
    start = dict(method.begin(LAYOUT, random_state(LAYOUT, rng), Shared(7, 0)))
    trains = method.at(number).contract(LAYOUT).trains
    return start, [
        {
            k: v + rng.normal(size=v.shape).astype(np.float32) * (LAYOUT.role(k) in trains)
            for k, v in start.items()
        }
        for _ in range(clients)
    ]


# --- all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_client_counts(name: str) -> None:
    """A known baseline averages client 0 alone by a typo; changing any client must change our result."""
    method = ALL[name]
    start, clients = federation(method)
    trains = method.at(1).contract(LAYOUT).trains - method.at(1).contract(LAYOUT).stays_home
    before = run(method, LAYOUT, start, clients).state
    for i, one in enumerate(clients):
        other = {k: v + 1 if LAYOUT.role(k) in trains else v for k, v in one.items()}
        after = run(method, LAYOUT, start, [*clients[:i], other, *clients[i + 1 :]]).state
        assert any(
            before[k].shape != after[k].shape or not np.allclose(before[k], after[k]) for k in before
        ), i


def factor_means(m: LoraModule, start: dict, clients: list[dict]) -> np.ndarray:
    return m.scaling * mean(clients, m.b_name) @ mean(clients, m.a_name)


def own_start_and_mean_a(m: LoraModule, start: dict, clients: list[dict]) -> np.ndarray:
    return m.scaling * start[m.b_name] @ mean(clients, m.a_name)


def best_of_rank(m: LoraModule, start: dict, clients: list[dict]) -> np.ndarray:
    return cut(mean_product(m, clients), m.rank)


def whole_mean(m: LoraModule, start: dict, clients: list[dict]) -> np.ndarray:
    return mean_product(m, clients)


def mean_square(m: LoraModule, start: dict, clients: list[dict]) -> np.ndarray:
    return np.mean([m.scaling * start[m.b_name] @ c[m.r_name] @ start[m.a_name] for c in clients], axis=0)


WIDE = CrossTerm("sketch", columns=99)  # as many as the matrix has: nothing is left out
EQUATIONS: list[tuple[Method, int, typing.Callable[..., np.ndarray]]] = [
    (FedIT(), 1, factor_means), (FFALoRA(), 1, whole_mean), (FRALoRA(DENSE), 1, best_of_rank),
    (FRALoRA(WIDE), 1, best_of_rank),
    (FRALoRA(CrossTerm("two-pass", columns=99)), 1, best_of_rank), (FedSVD(), 1, whole_mean),
    (FlexLoRA(cross=WIDE), 1, best_of_rank), (FlexLoRA(cross=DENSE), 1, best_of_rank),
    (FedASK(), 1, whole_mean), (FLoRA(cross=DENSE), 1, whole_mean), (FLoRA(cross=WIDE), 1, whole_mean),
    (FedEx(DENSE), 1, whole_mean), (FedEx(WIDE), 1, whole_mean), (RoLoRA(), 1, whole_mean), (RoLoRA(), 2, whole_mean),
    (FedSALoRA(), 1, own_start_and_mean_a), (FedSB(), 1, mean_square), (RACLoRA(), 1, whole_mean),
    (RACLoRA(2), 1, whole_mean), (hybrid(3, WIDE), 2, best_of_rank), (hybrid(3, WIDE), 3, whole_mean),
]  # fmt: skip
"""What a round adds to W0 in all, adapter and base; LoRA-FAIR's minimum has a test of its own."""


@pytest.mark.parametrize("value_bits", [None, 24])
@pytest.mark.parametrize("case", range(len(EQUATIONS)))
def test_a_round_is_the_methods_own_equation_over_the_survivors(case: int, value_bits: int | None) -> None:
    method, number, equation = EQUATIONS[case]
    rng = np.random.default_rng(case)
    start, clients = federation(method, number, clients=6)
    survivors = [clients[i] for i in rng.choice(6, size=int(rng.integers(2, 6)), replace=False)]
    done = run(method, LAYOUT, start, survivors, number=number, value_bits=value_bits).state
    plain = method.as_lora(LAYOUT, done) if isinstance(method, FedSB) else done
    tolerance = 1e-6 if value_bits is None else 1e-5
    total = merged(LAYOUT, plain)
    for m in LAYOUT.modules:
        assert relative(total[m.name], equation(m, start, survivors)) < tolerance
    if "head" in method.at(number).contract(LAYOUT).stays_home:
        return
    for name in LAYOUT.heads:
        assert_allclose(done[name], mean(survivors, name), atol=1e-6 if value_bits is None else 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_what_travels_is_what_the_contract_says(name: str) -> None:
    method = ALL[name]
    start, clients = federation(method)
    done = run(method, LAYOUT, start, clients)
    contract = method.contract(LAYOUT)
    assert done.uploaded == contract.round_dimension
    assert len(contract.announces) == len(contract.later)
    last = {k: v.shape for k, v in done.shared.announced.items()}
    assert last == dict(contract.announced(contract.exchanges - 1))
    assert all(np.abs(done.sums[k]).max() <= done.n * bound for k, bound in contract.limits.items())
    again = run(method, LAYOUT, start, clients)
    for k in done.state:
        assert_array_equal(done.state[k], again.state[k])  # randomness is public: the same for everybody


@pytest.mark.parametrize("name", ALL)
def test_a_method_can_go_on_from_what_it_made(name: str) -> None:
    method = ALL[name]
    start, _ = federation(method)
    rng = np.random.default_rng(1)
    for number in (1, 2, 3, 4):
        now = method.at(number)
        trains = now.contract(LAYOUT).trains
        mine = now.start(LAYOUT, start, Shared(7, number))
        clients = [
            {
                k: v + rng.normal(size=v.shape).astype(np.float32) * (LAYOUT.role(k) in trains)
                for k, v in mine.items()
            }
            for _ in range(3)
        ]
        start = run(method, LAYOUT, start, clients, number=number).state
        assert all(np.isfinite(v).all() and v.dtype == np.float32 for v in start.values())


# --- one by one ----------------------------------------------------------------------------------------


def test_fedit_averages_every_array_over_all_clients() -> None:
    start, clients = federation(get("fedit"))
    combined = run(get("fedit"), LAYOUT, start, clients).state
    for name in LAYOUT.shapes():
        assert_allclose(combined[name], mean(clients, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "number"), [("ffa", 1), ("fedsvd", 1), ("fedask", 1), ("rolora", 1), ("rolora", 2)]
)
def test_with_one_factor_common_the_mean_product_is_exact(name: str, number: int) -> None:
    start, clients = federation(ALL[name], number)
    combined = run(ALL[name], LAYOUT, start, clients, number=number).state
    for m in LAYOUT.modules:
        assert relative(product(m, combined), mean_product(m, clients)) < 1e-5


def test_ffa_and_rolora_leave_the_frozen_factor_alone() -> None:
    for name, number, factor in (("ffa", 1, "a_name"), ("rolora", 1, "a_name"), ("rolora", 2, "b_name")):
        start, clients = federation(ALL[name], number)
        combined = run(ALL[name], LAYOUT, start, clients, number=number).state
        for m in LAYOUT.modules:
            assert_array_equal(combined[getattr(m, factor)], start[getattr(m, factor)])


def test_fedsvd_leaves_orthonormal_rows() -> None:
    start, clients = federation(ALL["fedsvd"])
    combined = run(ALL["fedsvd"], LAYOUT, start, clients).state
    for m in LAYOUT.modules:
        a, b = combined[m.a_name], combined[m.b_name]
        assert_allclose(a @ a.T, np.eye(m.rank), atol=1e-6)
        gram = b.T @ b  # B = UΣ: orthogonal columns, the longest first
        assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-4 * gram.max())
        assert (np.diff(np.diag(gram)) <= 0).all()


def test_fra_is_the_best_rank_r_of_the_mean_product() -> None:
    start, clients = federation(FRALoRA(DENSE))
    combined = run(FRALoRA(DENSE), LAYOUT, start, clients).state
    for m in LAYOUT.modules:
        wanted = mean_product(m, clients)
        assert np.linalg.norm(wanted - product(m, combined)) == pytest.approx(
            optimum(wanted, m.rank), rel=1e-4
        )
        b, a = combined[m.b_name], combined[m.a_name]
        assert_allclose(b.T @ b, a @ a.T, atol=1e-4 * np.linalg.norm(a) ** 2)  # √Σ each
    assert_allclose(combined["classifier.bias"], mean(clients, "classifier.bias"), atol=1e-6)


def test_a_vanished_direction_can_still_be_trained() -> None:
    m = LoraModule("w", 6, 5, 3, 2.0)
    layout = Layout((m,), {})
    start = {m.b_name: np.zeros((6, 3), np.float32), m.a_name: np.ones((3, 5), np.float32)}
    trained = {m.b_name: np.outer(np.arange(6.0), [1, 0, 0]).astype(np.float32), m.a_name: start[m.a_name]}
    state = run(FRALoRA(DENSE), layout, start, [trained]).state
    assert_allclose(product(m, state), product(m, trained), atol=1e-5)
    assert (np.linalg.norm(state[m.a_name], axis=1) > 0).all()
    assert state[m.b_name].any(axis=0).sum() == 1  # exactly zero beside a fresh row, so that nothing is added
    still = run(FRALoRA(DENSE), layout, start, [start]).state  # nothing at all was learned
    assert not still[m.b_name].any()
    assert np.linalg.matrix_rank(still[m.a_name]) == 3


def test_fedask_with_both_factors_trained_is_exact_where_the_columns_reach() -> None:
    """k ≥ dim span{B_i} + 2: with two clients and rank 3 the span has 6 dimensions."""
    layout = layout_of(LoraModule("w", 20, 18, 3, 2.0), heads=False)
    (m,) = layout.modules
    start, clients = independent(layout, np.random.default_rng(2), 2, 1.0)
    wanted = cut(mean_product(m, clients), m.rank)
    enough = run(FedASK(5, trains_a=True), layout, start, clients).state
    assert relative(product(m, enough), wanted) < 1e-5
    few = run(FedASK(0, trains_a=True), layout, start, clients).state
    assert relative(product(m, few), wanted) > 0.05
    assert not FedASK(trains_a=True).contract(layout).exact


def test_fedsa_shares_a_alone() -> None:
    method = FedSALoRA()
    start, clients = federation(method)
    combined = run(method, LAYOUT, start, clients).state
    own = method.personal(LAYOUT, combined, clients[2])
    for m in LAYOUT.modules:
        assert_allclose(combined[m.a_name], mean(clients, m.a_name), rtol=1e-5, atol=1e-6)
        assert_array_equal(combined[m.b_name], start[m.b_name])
        assert_array_equal(own[m.b_name], clients[2][m.b_name])
        assert_array_equal(own[m.a_name], combined[m.a_name])
    assert_array_equal(own["classifier.bias"], clients[2]["classifier.bias"])
    assert (
        method.contract(LAYOUT).stays_home <= method.contract(LAYOUT).trains
    )  # clipped and noised all the same


def test_fedsb_is_the_mean_of_r_between_fixed_factors() -> None:
    method = FedSB()
    start, clients = federation(method)
    combined = run(method, LAYOUT, start, clients).state
    plain = method.as_lora(LAYOUT, combined)
    for m in LAYOUT.modules:
        b, a = start[m.b_name], start[m.a_name]
        assert_allclose(b.T @ b, np.eye(m.rank), atol=1e-6)
        assert_allclose(a @ a.T, np.eye(m.rank), atol=1e-6)
        assert not start[m.r_name].any()
        wanted = np.mean([m.scaling * b @ c[m.r_name] @ a for c in clients], axis=0)
        assert relative(product(m, plain), wanted) < 1e-5
    assert method.contract(LAYOUT).dimension == sum(m.rank**2 for m in LAYOUT.modules) + 14


def test_fedsb_takes_its_factors_from_a_public_gradient() -> None:
    rng = np.random.default_rng(5)
    gradients = {m.name: rng.normal(size=(m.out_features, m.in_features)) for m in LAYOUT.modules}
    method = FedSB(PublicGradients(gradients, "the public half of the corpus"))
    start = method.begin(LAYOUT, random_state(LAYOUT, rng), SHARED)
    for m in LAYOUT.modules:
        g = gradients[m.name]
        core = start[m.b_name].T @ -g @ start[m.a_name].T  # the best rank r of −G lies in their span
        assert_allclose(start[m.b_name] @ core @ start[m.a_name], cut(-g, m.rank), atol=1e-5)


def test_lora_fair_finds_the_minimum_of_its_objective() -> None:
    """Against a general minimiser, from the definition with whole matrices."""
    rng = np.random.default_rng(3)
    corrected = 0
    for drift in (0.1, 1.0, 3.0):
        layout = layout_of(LoraModule("w", 9, 8, 2, 1.0), heads=False)
        (m,) = layout.modules
        start, clients = independent(layout, rng, 5, drift)
        state = run(LoRAFair(), layout, start, clients).state
        b_bar, a_bar = mean(clients, m.b_name), mean(clients, m.a_name)
        delta_w = mean_product(m, clients)
        within = delta_w @ np.linalg.pinv(a_bar) @ a_bar

        def defined(x, b_bar=b_bar, a_bar=a_bar, delta_w=delta_w, within=within):
            b = x.reshape(b_bar.shape)
            cosine = np.sum(delta_w * (b @ a_bar)) / np.linalg.norm(within) / np.linalg.norm(b @ a_bar)
            return 1 - cosine + 0.01 * np.linalg.norm(b - b_bar)

        best = min(
            (minimize(defined, (b_bar + s * rng.normal(size=b_bar.shape)).ravel()) for s in (1e-3, 0.3)),
            key=lambda found: found.fun,
        )
        ours = defined(state[m.b_name].astype(float).ravel())
        assert ours <= min(best.fun, defined(b_bar.ravel())) + 1e-5
        assert_allclose(state[m.a_name], a_bar, rtol=1e-5, atol=1e-6)
        corrected += np.linalg.norm(state[m.b_name] - b_bar) > 1e-3
    assert corrected >= 1
    image = delta_w @ a_bar.T
    assert defined(b_bar.ravel()) == pytest.approx(objective(b_bar, b_bar, a_bar, image, 0.01))


def test_lora_fair_leaves_what_needs_no_correction() -> None:
    rng = np.random.default_rng(4)
    b, a = rng.normal(size=(7, 2)), rng.normal(size=(2, 6))
    assert_array_equal(refine(b, a, b @ (a @ a.T), 0.01), b)  # already there
    assert_array_equal(refine(b, a, np.zeros((7, 2)), 0.01), b)  # the clients' products cancel


# --- the registry --------------------------------------------------------------------------------------


def test_the_experiment_file_takes_every_method_that_is_listed() -> None:
    section = Experiment.model_fields["federation"].annotation
    assert typing.get_args(section.model_fields["method"].annotation) == tuple(METHODS)
    assert [method.name for method in METHODS.values()] == list(METHODS)


def test_every_option_of_an_experiment_is_read_by_some_method_and_none_is_unknown() -> None:
    keys = {f"aggregation.{key}" for key in AggregationSection.model_fields} | {"lora.ranks"}
    assert set().union(*(reads(name) for name in METHODS)) == keys


@pytest.mark.parametrize("name", ALL)
def test_a_contract_can_be_printed(name: str) -> None:
    method, contract = ALL[name], ALL[name].contract(LAYOUT)
    assert all((method.name, method.title, method.source, contract.noise, contract.leaks))
    names = [k for j in range(contract.exchanges) for k in contract.exchange(j)]
    assert len(names) == len(set(names))  # sums of all exchanges go into one mapping


def test_get_names_the_nearest() -> None:
    with pytest.raises(KeyError, match=r"did you mean 'ffa'"):
        get("fffa")


def test_dense_bytes_count_every_trainable_in_float32() -> None:
    assert LAYOUT.dense_fp32_bytes == 4 * (2 * 3 * (14 + 12) + 4 * (11 + 16) + 12 + 2)


def test_roles_are_told_by_name() -> None:
    names = ("classifier.bias", "layer.0.query.lora_A", "layer.0.query.lora_R", "layer.0.query.base_B")
    assert [LAYOUT.role(name) for name in names] == ["head", "A", "R", "base"]
    for unknown in ("layer.0.query.lora_C", "layer.9.query.lora_A", "classifier.weights"):
        with pytest.raises(KeyError):
            LAYOUT.role(unknown)


@pytest.mark.parametrize("name", ALL)
def test_whatever_is_no_change_of_an_array_or_of_a_product_travels_whole(name: str) -> None:
    contract = ALL[name].contract(LAYOUT)
    names = {k for j in range(contract.exchanges) for k in contract.exchange(j)}
    maps = {k for k in names - set(ALL[name].shapes(LAYOUT)) if not k.endswith(".delta_w")}
    assert contract.travels_whole == bool(maps)
