"""Methods that change the base weights: what is kept, that it adds up over rounds, and that plain PEFT can use it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fedlora_priv.methods.base import Method, Shared
from fedlora_priv.methods.crossterm import CrossTerm
from fedlora_priv.methods.fedex import FedEx
from fedlora_priv.methods.flora import FLoRA
from fedlora_priv.methods.layout import LoraModule
from fedlora_priv.methods.raclora import RACLoRA
from fedlora_priv.methods.residual import added, as_adapter, merged
from fedlora_priv.methods.thin import Thin
from tests.methods.lab import layout_of, mean, mean_product, product, random_state, relative, run

LAYOUT = layout_of(LoraModule("w", 60, 50, 3, 2.0), LoraModule("v", 60, 50, 3, 2.0))
THIN, DENSE = CrossTerm("sketch", columns=15), CrossTerm("exact")  # 15 = 5 clients × rank 3: exact too

METHODS: list[Method] = [
    FLoRA(cross=DENSE),
    FLoRA(cross=THIN),
    FedEx(DENSE),
    FedEx(THIN),
    RACLoRA(),
    RACLoRA(2),
]


@pytest.mark.parametrize("case", range(len(METHODS)))
def test_the_base_adds_up_over_rounds_and_fits_a_plain_adapter(case: int) -> None:
    """W0 moves by what each round's clients made together; the adapter of higher rank is the same map."""
    method, rng = METHODS[case], np.random.default_rng(case)
    state = random_state(LAYOUT, rng) | {m.b_name: np.zeros((60, 3), np.float32) for m in LAYOUT.modules}
    trains = method.contract(LAYOUT).trains
    residual = {m.name: np.zeros((60, 50)) for m in LAYOUT.modules}  # the test's own, by the equations
    for number in range(1, 5):
        mine = method.start(LAYOUT, state, Shared(7, number))
        assert all(".base" not in name for name in mine)
        clients = [
            {
                k: v + 0.5 * rng.normal(size=v.shape).astype(np.float32) * (LAYOUT.role(k) in trains)
                for k, v in mine.items()
            }
            for _ in range(5)
        ]
        for m in LAYOUT.modules:
            if isinstance(method, FedEx):
                means = m.scaling * mean(clients, m.b_name) @ mean(clients, m.a_name)
                residual[m.name] += mean_product(m, clients) - means
            elif isinstance(method, FLoRA) or number % method.rounds == 0:
                residual[m.name] += mean_product(m, clients)
        state = run(method, LAYOUT, state, clients, number=number).state
    assert method.contract(LAYOUT).changes_base
    wider, plain = as_adapter(LAYOUT, state)
    assert {k: v.shape for k, v in plain.items()} == wider.shapes()
    for m, wide in zip(LAYOUT.modules, wider.modules, strict=True):
        wanted = residual[m.name] + product(m, state)
        assert relative(merged(LAYOUT, state)[m.name], wanted) < 2e-6
        assert relative(product(wide, plain), wanted) < 2e-6
        assert wide.scaling == m.scaling


def test_a_residual_is_thin_while_that_is_smaller() -> None:
    """One block of RAC-LoRA adds rank 3; 60·50/(60 + 50) is 27."""
    method, rng, kinds = RACLoRA(), np.random.default_rng(0), []
    state = random_state(LAYOUT, rng) | {m.b_name: np.zeros((60, 3), np.float32) for m in LAYOUT.modules}
    for number in range(1, 12):
        moved = {
            k: v + rng.normal(size=v.shape).astype(np.float32)
            for k, v in state.items()
            if k.endswith("lora_B")
        }
        state = run(method, LAYOUT, state, [state | moved], number=number).state
        kinds.append(state["w.base_B"].shape[1] if "w.base_B" in state else "dense")
    assert kinds == [3, 6, 9, 12, 15, 18, 21, 24, 27, "dense", "dense"]
    wider, _ = as_adapter(LAYOUT, state)
    assert wider.modules[0].rank == 3 + 50


def test_the_fresh_factor_is_the_same_for_everybody_and_new_every_round() -> None:
    method, rng = FLoRA(cross=DENSE), np.random.default_rng(0)
    state = random_state(LAYOUT, rng)
    first, again = (run(method, LAYOUT, state, [state], number=1).state for _ in range(2))
    other = run(method, LAYOUT, state, [state], number=2).state
    assert_allclose(first["w.lora_A"], again["w.lora_A"], rtol=0)
    assert not np.allclose(first["w.lora_A"], other["w.lora_A"])
    assert not np.allclose(first["w.lora_A"], first["v.lora_A"])
    assert np.abs(first["w.lora_A"]).max() <= 1 / np.sqrt(50)
    assert not first["w.lora_B"].any()


def test_a_small_change_beside_a_large_one_is_kept() -> None:
    """What float32 can hold beside the largest stays; a round's change may well be a thousandth of all before it."""
    rng = np.random.default_rng(0)
    (m,) = (LoraModule("w", 60, 50, 3, 2.0),)
    large, small = (Thin(rng.normal(size=(1, 60, 2)), c * rng.normal(size=(1, 2, 50))) for c in (1.0, 1e-4))
    state = added((m,), added((m,), {}, large), small)
    kept = state["w.base_B"].astype(float) @ state["w.base_A"] - large.dense()[0]
    assert relative(kept, small.dense()[0]) < 1e-2
    same = added((m,), state, Thin(large.left, -large.right))  # taken back
    assert relative(same["w.base_B"].astype(float) @ same["w.base_A"], small.dense()[0]) < 1e-2
    assert added((m,), {}, Thin(0 * large.left, large.right)) == {}


@pytest.mark.parametrize("cross", [DENSE, THIN])
def test_the_certificate_counts_only_what_the_round_has_added(cross: CrossTerm) -> None:
    method, rng = FLoRA(cross=cross), np.random.default_rng(0)
    state = random_state(LAYOUT, rng) | {m.b_name: np.zeros((60, 3), np.float32) for m in LAYOUT.modules}
    for number in (1, 2):
        mine = method.start(LAYOUT, state, Shared(7, number))
        clients = [
            {k: v + rng.normal(size=v.shape).astype(np.float32) for k, v in mine.items()} for _ in range(5)
        ]
        done = run(method, LAYOUT, state, clients, number=number)
        assert done.certificate.error < 1e-5  # all of it went into the base
        state = done.state
