"""Clients that each train a part: sums and denominators against plain means over the holders, whoever survives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fedlora_priv.methods import residual
from fedlora_priv.methods.base import Method, Shared
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.errors import AssumptionError, SumError, UploadError
from fedlora_priv.methods.fedask import FedASK
from fedlora_priv.methods.fedex import FedEx
from fedlora_priv.methods.fedilora import FediLoRA
from fedlora_priv.methods.fedit import FedIT
from fedlora_priv.methods.fedsa import FedSALoRA
from fedlora_priv.methods.fedsb import FedSB
from fedlora_priv.methods.fedsvd import FedSVD
from fedlora_priv.methods.ffa import FFALoRA
from fedlora_priv.methods.flexlora import FlexLoRA
from fedlora_priv.methods.fra import FRALoRA
from fedlora_priv.methods.hetlora import LEAST_WEIGHT, HetLoRA, weight_name
from fedlora_priv.methods.layout import Layout, LoraModule
from fedlora_priv.methods.lora_fair import LoRAFair
from fedlora_priv.methods.optimizers import Adam
from fedlora_priv.methods.partial import Partial, holders_name
from fedlora_priv.methods.raclora import RACLoRA
from fedlora_priv.methods.rolora import RoLoRA
from fedlora_priv.methods.schedule import hybrid
from tests.methods.lab import SEED, layout_of, random_state, run

LAYOUT = layout_of(
    LoraModule("layer.0.query", 14, 12, 4, 2.0),
    LoraModule("layer.1.query", 14, 12, 4, 2.0),
    LoraModule("layer.2.value", 11, 16, 3, 0.5),
)
NAMES = [m.name for m in LAYOUT.modules]
PARTS = [frozenset(NAMES), frozenset(NAMES[:2]), frozenset(NAMES[1:]), frozenset(NAMES[:1]), frozenset(NAMES)]
SHARED = Shared(SEED, 1)

METHODS: list[Method] = [
    FedIT(), FFALoRA(), FedSVD(), FRALoRA(CrossTerm("exact")), FRALoRA(CrossTerm("sketch")),
    FRALoRA(CrossTerm("two-pass")), FedEx(), FedASK(), LoRAFair(), RoLoRA(), FedSALoRA(), FedSB(), RACLoRA(),
    hybrid(2),
]  # fmt: skip


def own_layout(ranks: dict[str, int], scalings: dict[str, float]) -> Layout:
    return replace(
        LAYOUT,
        modules=tuple(replace(m, rank=ranks[m.name], scaling=scalings[m.name]) for m in LAYOUT.modules),
    )


def train(method: Method, number: int, start: dict, parts: list, seed: int) -> list[dict]:
    """What clients make of the start: every trained array of what they hold, and the head, has moved."""
    rng, method = np.random.default_rng(seed), method.at(number)
    trains, shapes, clients = method.contract(LAYOUT).trains, method.shapes(LAYOUT), []
    for part in parts:
        own = dict(method.start(LAYOUT, start, Shared(SEED, number)))
        for name, shape in shapes.items():
            role = LAYOUT.role(name)
            if role in trains and (role == "head" or name.rpartition(".")[0] in part):
                own[name] = (own[name] + rng.normal(size=shape)).astype(np.float32)
        clients.append(own)
    return clients


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_each_module_is_a_federation_of_those_who_train_it(method: Method, number: int) -> None:
    start = dict(method.begin(LAYOUT, random_state(LAYOUT, np.random.default_rng(0)), SHARED))
    clients = train(method, number, start, PARTS, 1)
    own = [Partial(method, trains=part).at(number) for part in PARTS]
    done = run(Partial(method), LAYOUT, start, clients, number=number, own=own)
    whole = run(method, LAYOUT, start, clients, number=number)
    for name in LAYOUT.heads:
        assert_allclose(done.state[name], whole.state[name], rtol=1e-6)
    for module in LAYOUT.modules:
        holders = [c for c, part in zip(clients, PARTS, strict=True) if module.name in part]
        assert done.sums[holders_name(module)].tolist() == [len(holders)] * len(
            done.sums[holders_name(module)]
        )
        alone = run(method, LAYOUT, start, holders, number=number).state
        mine = {name for name in alone if name.startswith(f"{module.name}.")}
        assert mine == {name for name in done.state if name.startswith(f"{module.name}.")}
        if method.at(number).moves_by_mean:  # an SVD may turn the signs of its factors
            for name in mine:
                assert_allclose(done.state[name], alone[name], rtol=1e-5, atol=1e-5)
        assert_allclose(whole_change(module, done.state), whole_change(module, alone), rtol=1e-4, atol=1e-4)


def whole_change(module: LoraModule, state: dict) -> np.ndarray:
    """What a module's adapter and base residual add to its weight."""
    plain = dict(state)
    if module.r_name in state:
        plain[module.b_name] = state[module.b_name] @ state[module.r_name]
    return residual.whole(module, plain).dense()[0]


def test_a_certificate_is_of_the_means_over_holders() -> None:
    start = random_state(LAYOUT, np.random.default_rng(0))
    method = FRALoRA(CrossTerm("exact"))
    clients = train(method, 1, start, PARTS, 2)
    done = run(Partial(method), LAYOUT, start, clients, own=[Partial(method, trains=p) for p in PARTS])
    for module in LAYOUT.modules:
        holders = [c for c, part in zip(clients, PARTS, strict=True) if module.name in part]
        alone = run(method, LAYOUT, start, holders).certificate
        assert done.certificate.errors[module.name] == pytest.approx(alone.errors[module.name], rel=1e-4)


@st.composite
def federations(draw: st.DrawFn) -> tuple[list[frozenset[str]], list[Layout], list[bool]]:
    """Who trains which modules at which ranks and scalings, and who survives; one client of all modules does."""
    n = draw(st.integers(2, 6))
    parts = [frozenset(NAMES), *(draw(st.frozensets(st.sampled_from(NAMES))) for _ in range(n - 1))]
    own = [
        own_layout(
            {m.name: draw(st.integers(1, m.rank)) for m in LAYOUT.modules},
            {m.name: draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])) for m in LAYOUT.modules},
        )
        for _ in range(n)
    ]
    survives = [True, *(draw(st.booleans()) for _ in range(n - 1))]
    return parts, own, survives


def trained_part(
    method: Method, start: dict, own: Layout, part: frozenset[str], rng: np.random.Generator
) -> dict:
    mine = dict(method.start(LAYOUT, start, SHARED))
    for name, shape in own.shapes().items():
        if name in LAYOUT.heads or name.rpartition(".")[0] in part:
            mine[name] = (mine[name] + rng.normal(size=shape)).astype(np.float32)
    return mine


@given(federations(), st.sampled_from([None, 20]))
@settings(max_examples=40, deadline=None)
def test_fedilora_is_the_mean_of_each_component_over_those_who_have_it(federation, value_bits) -> None:
    parts, own, survives = federation
    rng = np.random.default_rng(3)
    start = random_state(LAYOUT, rng)
    methods = [FediLoRA(o, p) for o, p in zip(own, parts, strict=True)]
    clients = [trained_part(m, start, o, p, rng) for m, o, p in zip(methods, own, parts, strict=True)]
    alive = [k for k, yes in enumerate(survives) if yes]
    done = run(
        FediLoRA(),
        LAYOUT,
        start,
        [clients[k] for k in alive],
        own=[methods[k] for k in alive],
        value_bits=value_bits,
    )
    tolerance = {"rtol": 1e-4, "atol": 1e-4 if value_bits else 1e-5}
    for i, m in enumerate(LAYOUT.modules):
        for j in range(m.rank):
            holders = [k for k in alive if m.name in parts[k] and own[k].modules[i].rank > j]
            assert round(float(done.sums[holders_name(m)][j])) == len(holders)
            if not holders:  # nobody has trained it: it stays
                assert_allclose(done.state[m.a_name][j], start[m.a_name][j])
                assert_allclose(done.state[m.b_name][:, j], start[m.b_name][:, j])
                continue
            a = np.mean([clients[k][m.a_name][j] for k in holders], axis=0)
            b = np.mean(
                [clients[k][m.b_name][:, j] * own[k].modules[i].scaling / m.scaling for k in holders], axis=0
            )
            assert_allclose(done.state[m.a_name][j], a, **tolerance)
            assert_allclose(done.state[m.b_name][:, j], b, **tolerance)
    for name in LAYOUT.heads:
        assert_allclose(done.state[name], np.mean([clients[k][name] for k in alive], axis=0), **tolerance)


@given(federations(), st.sampled_from([None, 20]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_hetlora_is_the_padded_mean_weighted_by_norm(federation, value_bits, together) -> None:
    _, own, survives = federation
    common = min(m.rank for layout in own for m in layout.modules) if together else 0
    rng = np.random.default_rng(3)
    start = random_state(LAYOUT, rng, 0.3)
    methods = [HetLoRA(o, 20.0, common) for o in own]
    clients = [trained_part(m, start, o, frozenset(NAMES), rng) for m, o in zip(methods, own, strict=True)]
    alive = [k for k, yes in enumerate(survives) if yes]
    done = run(
        HetLoRA(None, 20.0, common),
        LAYOUT,
        start,
        [clients[k] for k in alive],
        own=[methods[k] for k in alive],
        value_bits=value_bits,
    )
    tolerance = {"rtol": 1e-3, "atol": 2e-4 if value_bits else 1e-5}
    for i, m in enumerate(LAYOUT.modules):
        a, b, total = np.zeros((m.rank, m.in_features)), np.zeros((m.out_features, m.rank)), 0.0
        for k in alive:
            r, s = own[k].modules[i].rank, own[k].modules[i].scaling
            norm = np.linalg.norm(s * clients[k][m.b_name].astype(float) @ clients[k][m.a_name])
            w = min(max(norm / 20.0, LEAST_WEIGHT), 1.0)
            a[:r] += w * clients[k][m.a_name]
            b[:, :r] += w * clients[k][m.b_name] * s / m.scaling
            total += w
        assert_allclose(done.sums[weight_name(m)], [total], rtol=1e-4)
        assert_allclose(done.state[m.a_name], a / total, **tolerance)
        assert_allclose(done.state[m.b_name], b / total, **tolerance)


def test_hetlora_in_parts_weighs_holders_only() -> None:
    start = random_state(LAYOUT, np.random.default_rng(0))
    clients = train(HetLoRA(), 1, start, PARTS, 4)
    done = run(Partial(HetLoRA()), LAYOUT, start, clients, own=[Partial(HetLoRA(), trains=p) for p in PARTS])
    for m in LAYOUT.modules:
        holders = [c for c, part in zip(clients, PARTS, strict=True) if m.name in part]
        alone = run(HetLoRA(), LAYOUT, start, holders).state
        assert_allclose(done.state[m.a_name], alone[m.a_name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [Partial(FedIT()), Partial(HetLoRA()), HetLoRA(), FediLoRA()])
def test_counts_and_weights_are_at_most_one(method: Method) -> None:
    contract = method.contract(LAYOUT)
    bounded = {
        name
        for name in contract.uploads
        if name.endswith((".holders", ".weight")) and name not in LAYOUT.heads
    }
    assert dict(contract.limits) == dict.fromkeys(bounded, 1.0)
    assert contract.travels_whole
    assert Partial(RACLoRA()).changes_base


def test_what_is_not_held_uploads_nothing() -> None:
    start = random_state(LAYOUT, np.random.default_rng(0))
    for method in METHODS:
        state = dict(method.begin(LAYOUT, start, SHARED))
        (client,) = train(method, 1, state, [frozenset(NAMES[:1])], 5)
        part = Partial(method, trains=frozenset(NAMES[:1])).at(1)
        upload = part.upload(LAYOUT, state, client, SHARED)
        for name, array in upload.items():
            held = name in LAYOUT.heads or name.startswith(NAMES[0])
            assert array.any() == held, (method.name, name)


def test_a_module_that_is_not_held_but_has_changed_is_refused() -> None:
    start = random_state(LAYOUT, np.random.default_rng(0))
    name = f"{NAMES[1]}.lora_B"
    with pytest.raises(UploadError, match=f"{name} is not of this client's part"):
        Partial(FedIT(), trains=frozenset(NAMES[:1])).upload(
            LAYOUT, start, start | {name: start[name] + 1}, SHARED
        )


def test_a_server_optimiser_steps_over_parts() -> None:
    start = random_state(LAYOUT, np.random.default_rng(0))
    clients = train(FedIT(), 1, start, PARTS, 6)
    done = run(Partial(FedIT()), LAYOUT, start, clients, own=[Partial(FedIT(), trains=p) for p in PARTS])
    state, _ = Adam(0.1).step(done.method, LAYOUT, start, done.state, {})
    for name, array in start.items():
        assert_allclose(state[name], array + 0.1 * np.sign(done.state[name] - array), atol=1e-4)


@pytest.mark.parametrize(
    ("counts", "why"),
    [([0.0] * 4, "no survivor trained"), ([2.0, 3.0, 1.0, 1.0], "no counts"), ([9.0] * 4, "no counts")],
)
def test_counts_that_are_none_are_refused(counts: list[float], why: str) -> None:
    start = random_state(LAYOUT, np.random.default_rng(0))
    clients = train(FedIT(), 1, start, PARTS, 7)
    done = run(Partial(FedIT()), LAYOUT, start, clients, own=[Partial(FedIT(), trains=p) for p in PARTS])
    sums = done.sums | {holders_name(LAYOUT.modules[0]): np.array(counts)}
    with pytest.raises(SumError, match=why):
        Partial(FedIT()).combine(LAYOUT, start, sums, 5, SHARED)
    sums = start | {weight_name(m): np.zeros(1) for m in LAYOUT.modules}
    with pytest.raises(SumError, match="sum to nothing"):
        HetLoRA().combine(LAYOUT, start, sums, 5, SHARED)


def test_what_does_not_go_together_is_refused() -> None:
    start = random_state(LAYOUT, np.random.default_rng(0))
    small = own_layout(dict.fromkeys(NAMES, 2), dict.fromkeys(NAMES, 1.0))
    big = replace(LAYOUT, modules=(replace(LAYOUT.modules[0], rank=5), *LAYOUT.modules[1:]))
    with pytest.raises(AssumptionError, match="counts of its own"):
        Partial(FlexLoRA())
    for method in (FRALoRA(), FedSVD(), FedSB(), RACLoRA()):
        state = dict(method.begin(LAYOUT, start, SHARED))
        with pytest.raises(AssumptionError, match="does not average by component"):
            Partial(method, small).upload(LAYOUT, state, dict(state), SHARED)
    with pytest.raises(AssumptionError, match=r"layer\.9"):
        Partial(FedIT(), trains=frozenset({"layer.9"})).upload(LAYOUT, start, start, SHARED)
    for method in (FediLoRA(big), HetLoRA(big)):
        with pytest.raises(AssumptionError, match="rank 5 at a client"):
            method.upload(LAYOUT, start, start, SHARED)
    with pytest.raises(AssumptionError, match="rank 2 at a client, and 3 components are everybody's"):
        HetLoRA(small, common=3).upload(LAYOUT, start, start, SHARED)
    for cap in (0.0, -1.0, float("nan")):
        with pytest.raises(AssumptionError, match="positive norm"):
            HetLoRA(largest=cap)


def test_frozen_factors_in_another_scaling_come_back_bit_for_bit() -> None:
    """B in a client's scaling and back is rounded; a frozen B must not be taken for a trained one."""
    start = random_state(LAYOUT, np.random.default_rng(0))
    own = own_layout(dict.fromkeys(NAMES, 2), dict.fromkeys(NAMES, 3.0))
    even = Partial(RoLoRA(), own).at(2)
    upload = even.upload(LAYOUT, start, even.start(LAYOUT, start, Shared(SEED, 2)), Shared(SEED, 2))
    for m in LAYOUT.modules:
        assert_array_equal(upload[m.a_name], 0.0)
        assert upload[holders_name(m)].tolist() == [1.0, 1.0] + [0.0] * (m.rank - 2)
