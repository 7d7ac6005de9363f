"""What methods refuse, each as one typed error and before anything is released."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedlora_priv.errors import FederationError
from fedlora_priv.methods.base import Method, Shared
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.errors import (
    AssumptionError,
    MethodError,
    PrivateInitialisation,
    SumError,
    UploadError,
)
from fedlora_priv.methods.fedask import FedASK
from fedlora_priv.methods.fedex import FedEx
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fedsb import FedSB, PublicGradients
from fedlora_priv.methods.fedsvd import FedSVD
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.flora import FLoRA
from fedlora_priv.methods.fra import FRALoRA
from fedlora_priv.methods.layout import Layout, LoraModule
from fedlora_priv.methods.lora_fair import LoRAFair
from fedlora_priv.methods.optimizers import Adam, Average, Momentum
from fedlora_priv.methods.raclora import RACLoRA
from fedlora_priv.methods.rolora import RoLoRA
from fedlora_priv.methods.schedule import Schedule, hybrid
from tests.methods.lab import TWO_SHAPES, independent, random_state, run

SHARED = Shared(7, 1)
SKETCH, TWO_PASS, EXACT = (FRALoRA(CrossTerm(mode)) for mode in ("sketch", "two-pass", "exact"))
WITH_BASIS = [TWO_PASS, FedASK(trains_a=True)]


@pytest.fixture
def start() -> dict:
    return random_state(TWO_SHAPES, np.random.default_rng(0))


def test_every_refusal_is_one_that_the_federation_knows() -> None:
    assert issubclass(MethodError, FederationError)
    assert {AssumptionError, UploadError, SumError} == set(MethodError.__subclasses__())


@pytest.mark.parametrize("method", [FedIT(), EXACT, SKETCH, FedSVD(), LoRAFair()])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_client_that_diverged_uploads_nothing(method: Method, value: float, start: dict) -> None:
    broken = start | {"layer.0.query.lora_B": np.full((14, 3), value, np.float32)}
    with pytest.raises(UploadError, match=r"NaN or an infinity in layer.0.query.lora_B"):
        method.upload(TWO_SHAPES, start, broken, SHARED)


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: a.T])
def test_arrays_of_another_shape_are_refused(change: Callable[[np.ndarray], np.ndarray], start: dict) -> None:
    odd = start | {"layer.1.value.lora_A": change(start["layer.1.value.lora_A"])}
    with pytest.raises(UploadError, match=r"layer.1.value.lora_A of shape .* not \(4, 16\)"):
        FedIT().upload(TWO_SHAPES, start, odd, SHARED)
    without = {k: v for k, v in start.items() if k != "classifier.bias"}
    with pytest.raises(UploadError, match=r"classifier.bias"):
        FedIT().upload(TWO_SHAPES, start, without, SHARED)


@pytest.mark.parametrize(
    ("method", "number", "name"),
    [(FFALoRA(), 1, "lora_A"), (FedSVD(), 1, "lora_A"), (FedASK(), 1, "lora_A"), (RoLoRA(), 2, "lora_B"),
     (RACLoRA(), 1, "lora_A"), (hybrid(2), 2, "lora_A")],
)  # fmt: skip
def test_a_frozen_factor_that_was_trained_is_refused(
    method: Method, number: int, name: str, start: dict
) -> None:
    name = f"layer.0.value.{name}"
    with pytest.raises(UploadError, match=f"{name} is frozen"):
        method.at(number).upload(TWO_SHAPES, start, start | {name: start[name] + 1}, Shared(7, number))


@pytest.mark.parametrize("method", [FedIT(), EXACT, SKETCH, FedEx(), FLoRA(), FedASK(), LoRAFair()])
def test_a_sum_that_is_none_is_refused(method: Method) -> None:
    start, clients = independent(TWO_SHAPES, np.random.default_rng(0), 3, 0.5)
    if "A" not in method.contract(TWO_SHAPES).trains:
        clients = [c | {m.a_name: start[m.a_name] for m in TWO_SHAPES.modules} for c in clients]
    done = run(method, TWO_SHAPES, start, clients)
    name = next(iter(done.sums))
    nan = done.sums | {name: np.full_like(done.sums[name], np.nan)}
    missing = {k: v for k, v in done.sums.items() if k != name}
    for sums, n, why in (
        (nan, 3, "NaN"), (missing, 3, "differ in"), (done.sums | {"extra": np.zeros(1)}, 3, "differ in extra"),
        (done.sums | {name: done.sums[name][:1]}, 3, "of shape"), (done.sums, 0, "no survivor"),
    ):  # fmt: skip
        with pytest.raises(SumError, match=why):
            method.combine(TWO_SHAPES, start, sums, n, done.shared)
        with pytest.raises(SumError, match=why):
            method.announce(TWO_SHAPES, start, sums, n, done.shared)


@pytest.mark.parametrize("method", [EXACT, SKETCH, FedSVD(), FedEx(), FLoRA(), FedASK(), LoRAFair(), FedSB()])
@pytest.mark.parametrize(("rank", "scaling", "why"), [(6, 1.0, "rank cannot be 6"), (0, 1.0, "rank cannot be 0"),
                                                      (2, 0.0, "scaling 0"), (2, np.nan, "scaling nan")])  # fmt: skip
def test_a_rank_above_the_matrix_or_no_scaling_is_refused(
    method: Method, rank: int, scaling: float, why: str
) -> None:
    layout = Layout((LoraModule("w", 8, 5, rank, scaling),), {})
    state = random_state(layout, np.random.default_rng(0))
    with pytest.raises(AssumptionError, match=why):
        method.upload(layout, state, state, SHARED)


@pytest.mark.parametrize(("what", "value"), [("scaling", 4.0), ("rank", 2), ("in_features", 11)])
def test_a_client_with_another_lora_is_refused(what: str, value: float) -> None:
    first, *others = TWO_SHAPES.modules
    own = replace(TWO_SHAPES, modules=(replace(first, **{what: value}), *others))
    FedIT().accept(TWO_SHAPES, TWO_SHAPES)
    with pytest.raises(AssumptionError, match=f"layer.0.query has {what} {value} at a client"):
        FedIT().accept(TWO_SHAPES, own)


def test_a_schedule_with_gaps_is_refused() -> None:
    for phases in ({}, {2: FFALoRA()}, {0: FFALoRA(), 1: FedIT()}):
        with pytest.raises(AssumptionError, match="gap"):
            Schedule(phases)
    with pytest.raises(AssumptionError, match="states hold other arrays"):
        Schedule({1: FFALoRA(), 4: FedSB()})
    with pytest.raises(AssumptionError, match="no FRA rounds"):
        hybrid(1)
    with pytest.raises(AssumptionError, match="no round -1"):
        hybrid(2).at(-1)


def test_another_rounds_method_is_refused(start: dict) -> None:
    for method, number in ((hybrid(3), 1), (RoLoRA(), 2)):
        with pytest.raises(AssumptionError, match="ask its `at`"):
            method.upload(TWO_SHAPES, start, start, Shared(7, number))


def test_a_private_initialisation_is_refused() -> None:
    gradients = {m.name: np.ones((m.out_features, m.in_features)) for m in TWO_SHAPES.modules}
    with pytest.raises(PrivateInitialisation, match="private data"):
        FedSB(gradients)
    with pytest.raises(PrivateInitialisation, match="no public source"):
        PublicGradients(gradients, " ")
    few = PublicGradients({"layer.0.query": gradients["layer.0.query"]}, "a public corpus")
    with pytest.raises(AssumptionError, match=r"no finite gradient of shape .* for layer.0.value"):
        FedSB(few).begin(TWO_SHAPES, random_state(TWO_SHAPES, np.random.default_rng(0)), SHARED)
    assert "array" not in repr(few)


@pytest.mark.parametrize("method", WITH_BASIS)
@pytest.mark.parametrize(
    ("factor", "why"),
    [(100.0, "not orthonormal"), (np.nan, "announcement has a NaN"), (None, "announcement and the contract")],
)
def test_a_client_projects_on_no_basis_that_amplifies(method: Method, factor: float | None, why: str) -> None:
    start, clients = independent(TWO_SHAPES, np.random.default_rng(0), 3, 0.5)
    good = run(method, TWO_SHAPES, start, clients).shared
    bad = {} if factor is None else {k: v * np.float32(factor) for k, v in good.announced.items()}
    with pytest.raises(UploadError, match=why):
        method.upload(TWO_SHAPES, start, clients[0], replace(good, announced=bad))
    twice = {
        k: np.repeat(v[:, :1], v.shape[1], axis=1) for k, v in good.announced.items()
    }  # columns of norm 1
    with pytest.raises(UploadError, match="not orthonormal"):
        method.upload(TWO_SHAPES, start, clients[0], replace(good, announced=twice))
    short = {k: v[:-1] for k, v in good.announced.items()}
    with pytest.raises(UploadError, match=r"announcement has layer.\S+ of shape"):
        method.upload(TWO_SHAPES, start, clients[0], replace(good, announced=short))


def test_lora_fair_needs_the_mean_of_a() -> None:
    start, clients = independent(TWO_SHAPES, np.random.default_rng(0), 3, 0.5)
    means = {m.a_name: start[m.a_name] for m in TWO_SHAPES.modules}
    for announced, why in (
        ({}, "announcement and the contract differ"),
        (means | {"layer.0.query.lora_B": start["layer.0.query.lora_B"]}, "differ in layer.0.query.lora_B"),
        (means | {"layer.0.query.lora_A": np.full((3, 12), np.nan, np.float32)}, "announcement has a NaN"),
    ):
        with pytest.raises(UploadError, match=why):
            LoRAFair().upload(TWO_SHAPES, start, clients[0], Shared(7, 1, 1, announced))


@pytest.mark.parametrize(
    "make",
    [lambda: CrossTerm("exact", fallback="two-pass"), lambda: CrossTerm(tolerance=0.0), lambda: CrossTerm(columns=0),
     lambda: RACLoRA(0)],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(AssumptionError):
        make()


@pytest.mark.parametrize("method", [EXACT, FedSVD(), FLoRA(), FedEx(), RACLoRA(), FedASK(), LoRAFair()])
@pytest.mark.parametrize("optimizer", [Average(), Momentum(), Adam()])
def test_server_optimisers_refuse_what_is_more_than_a_mean(
    method: Method, optimizer: Adam, start: dict
) -> None:
    with pytest.raises(AssumptionError, match="more than move arrays by their mean change"):
        optimizer.step(method, TWO_SHAPES, start, start, {})
