"""Clients of unequal ranks and scalings: what they start from, and that their sums give the mean of their products."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.errors import AssumptionError, SumError
from fedlora_priv.methods.flexlora import FlexLoRA
from fedlora_priv.methods.flora import FLoRA
from fedlora_priv.methods.layout import Layout, LoraModule
from fedlora_priv.methods.residual import merged
from tests.methods.lab import cut, layout_of, optimum, product, random_state, relative, run

GLOBAL = layout_of(
    LoraModule("w", 40, 36, 6, 2.0), LoraModule("v", 40, 36, 6, 2.0), LoraModule("u", 30, 44, 5, 1.0)
)
SHARED = Shared(7, 1)


def own_layout(rank: int, scaling: float) -> Layout:
    return replace(
        GLOBAL, modules=tuple(replace(m, rank=min(rank, m.rank), scaling=scaling) for m in GLOBAL.modules)
    )


OWN = [own_layout(6, 2.0), own_layout(4, 3.0), own_layout(2, 0.5), own_layout(1, 4.0), own_layout(4, 2.0)]


def federation(kind: type, drift: float, seed: int = 0) -> tuple[dict, list, list[dict]]:
    """A start, the clients' methods, and what they have trained from their own starts."""
    rng = np.random.default_rng(seed)
    start = random_state(GLOBAL, rng)
    methods = [kind(own) for own in OWN]
    clients = [
        {k: v + (drift * rng.normal(size=v.shape)).astype(np.float32)
         for k, v in method.start(GLOBAL, start, SHARED).items()} for method in methods
    ]  # fmt: skip
    return start, methods, clients


def mean_of(clients: list[dict], name: str) -> np.ndarray:
    """mean of s_k·B_kA_k, each client with its own rank and scaling."""
    parts = []
    for own, client in zip(OWN, clients, strict=True):
        (m,) = (m for m in own.modules if m.name == name)
        parts.append(product(m, client))
    return np.mean(parts, axis=0)


def test_a_client_starts_from_the_first_components_in_its_own_scaling() -> None:
    start, methods, _ = federation(FlexLoRA, 0.0)
    for own, method in zip(OWN, methods, strict=True):
        mine = method.start(GLOBAL, start, SHARED)
        for m, o in zip(GLOBAL.modules, own.modules, strict=True):
            first = m.scaling * start[m.b_name][:, : o.rank] @ start[m.a_name][: o.rank]
            assert_allclose(product(o, mine), first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value_bits", [None, 24])
@pytest.mark.parametrize("mode", ["exact", "sketch", "two-pass"])
def test_flexlora_is_the_best_rank_r_of_the_mean_of_unequal_products(
    mode: str, value_bits: int | None
) -> None:
    cross = CrossTerm(mode, columns=None if mode == "exact" else 99)
    start, _, clients = federation(FlexLoRA, 0.5)
    own = [FlexLoRA(layout, cross) for layout in OWN]
    done = run(FlexLoRA(cross=cross), GLOBAL, start, clients, own=own, value_bits=value_bits)
    for m in GLOBAL.modules:
        wanted = mean_of(clients, m.name)
        assert relative(product(m, done.state), cut(wanted, m.rank)) < (2e-6 if value_bits is None else 1e-4)
        assert_allclose(done.state[m.a_name] @ done.state[m.a_name].T, np.eye(m.rank), atol=1e-5)
    assert done.certificate.error == pytest.approx(
        np.sqrt(sum(optimum(mean_of(clients, m.name), m.rank) ** 2 for m in GLOBAL.modules))
        / np.linalg.norm([np.linalg.norm(mean_of(clients, m.name)) for m in GLOBAL.modules]),
        rel=1e-3 if mode == "exact" else 0.2,
    )


def test_of_two_survivors_with_small_ranks_the_other_components_are_gone() -> None:
    """The equation says so: the mean is over those who are there."""
    start, _, clients = federation(FlexLoRA, 0.1)
    cross = CrossTerm("exact")
    own = [FlexLoRA(layout, cross) for layout in OWN]
    done = run(FlexLoRA(cross=cross), GLOBAL, start, clients[2:4], own=own[2:4])
    for m in GLOBAL.modules:
        two = [
            product(next(x for x in o.modules if x.name == m.name), c)
            for o, c in zip(OWN[2:4], clients[2:4], strict=True)
        ]
        assert relative(product(m, done.state), np.mean(two, axis=0)) < 1e-5  # of rank 3 at most


def test_flora_merges_unequal_products() -> None:
    rng = np.random.default_rng(0)
    start = random_state(GLOBAL, rng) | {
        m.b_name: np.zeros((m.out_features, m.rank), np.float32) for m in GLOBAL.modules
    }
    own = [FLoRA(layout, CrossTerm("exact")) for layout in OWN]
    clients = [
        {
            k: v + rng.normal(size=v.shape).astype(np.float32)
            for k, v in method.start(GLOBAL, start, SHARED).items()
        }
        for method in own
    ]
    done = run(FLoRA(cross=CrossTerm("exact")), GLOBAL, start, clients, own=own).state
    for m in GLOBAL.modules:
        assert relative(merged(GLOBAL, done)[m.name], mean_of(clients, m.name)) < 1e-5


def test_a_client_that_does_not_fit_is_refused() -> None:
    start, _, clients = federation(FlexLoRA, 0.5)
    method = FlexLoRA()
    method.accept(GLOBAL, OWN[3])
    for odd, why in (
        (own_layout(6, 2.0).modules[:2], "does not adapt u"),
        ((replace(GLOBAL.modules[0], rank=7), *GLOBAL.modules[1:]), "rank 7 at a client"),
        ((replace(GLOBAL.modules[0], in_features=35), *GLOBAL.modules[1:]), "in_features 35"),
        ((*GLOBAL.modules, LoraModule("x", 4, 4, 1, 1.0)), "adapts x"),
    ):
        with pytest.raises(AssumptionError, match=why):
            method.accept(GLOBAL, replace(GLOBAL, modules=odd))
    with pytest.raises(AssumptionError, match="head"):
        method.accept(GLOBAL, replace(GLOBAL, heads={}))
    big = replace(GLOBAL, modules=(replace(GLOBAL.modules[0], rank=7), *GLOBAL.modules[1:]))
    with pytest.raises(AssumptionError, match="rank 7"):
        FlexLoRA(big).upload(GLOBAL, start, clients[0], SHARED)


@pytest.mark.parametrize(
    ("counts", "why"),
    [
        ([0, 0, 0, 0, 0, 0], "no survivor trained w"),
        ([2, 3, 1, 1, 0, 0], "no counts"),
        ([9, 3, 1, 1, 0, 0], "no counts"),
    ],
)
def test_counts_that_are_none_are_refused(counts: list[int], why: str) -> None:
    start, methods, clients = federation(FlexLoRA, 0.5)
    done = run(FlexLoRA(), GLOBAL, start, clients, own=methods)
    spoilt = done.sums | {"w.held_by": np.array(counts, float)}
    with pytest.raises(SumError, match=why):
        FlexLoRA().combine(GLOBAL, start, spoilt, done.n, done.shared)
