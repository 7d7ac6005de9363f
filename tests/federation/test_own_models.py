"""The models that a federation's clients train: of their own rank, on shared base weights, fit for the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlora_priv.adapters import adapted_layers, read_state, state_name, write_state
from fedlora_priv.config import Experiment
from fedlora_priv.errors import ConfigError, FederationError
from fedlora_priv.federation import setup
from fedlora_priv.federation.setup import Parts, assemble
from fedlora_priv.methods import Shared
from fedlora_priv.modeling import LoraSettings, load_model, with_rank
from fedlora_priv.training import PrivateTrainer, StepSettings
from protocols.prg import SecretStream

WHOLE = {"support": "dense", "density": 1.0, "value_bits": 16}
RANKS = [4, 2, 1, 2, 4]


@pytest.fixture
def parts_of(experiment_file: Callable[..., Path]) -> Callable[..., Parts]:
    """Assembles an experiment with that method: ``parts_of("flora", lora={...})``."""

    def make(method: str, **sections: Any) -> Parts:
        federation = {"method": method, "rounds": 2}
        file = experiment_file(federation=federation, communication=WHOLE, **sections)
        return assemble(Experiment.load(file), lambda line: None)

    return make


@pytest.fixture
def unequal(parts_of: Callable[..., Parts]) -> Parts:
    return parts_of(
        "flexlora", lora={"rank": 4, "alpha": 4.0, "ranks": RANKS}, secure_aggregation={"mode": "insecure"}
    )


def frozen(model: Any) -> dict[str, int]:
    return {n: p.data_ptr() for n, p in model.named_parameters() if state_name(n) is None}


def test_clients_train_their_own_ranks_on_one_base(unequal: Parts) -> None:
    own = [unequal.trainers[client_id] for client_id in unequal.plans]
    assert [trainer.layout.modules[0].rank for trainer in own] == RANKS
    assert [trainer.layout.modules[0].scaling for trainer in own] == [4.0 / rank for rank in RANKS]
    assert own[0] is own[4] is unequal.trainer
    assert own[1] is own[3]
    assert (
        frozen(own[0].model) == frozen(own[1].model) == frozen(own[2].model)
    )  # not one frozen weight is copied
    trained = [{id(p) for n, p in t.model.named_parameters() if state_name(n)} for t in own[:3]]
    assert not (trained[0] & trained[1])
    assert not (trained[1] & trained[2])


def test_a_client_of_small_rank_starts_from_its_part_and_noises_no_more(unequal: Parts) -> None:
    state = {
        name: np.random.default_rng(0).normal(0, 0.2, array.shape).astype(np.float32)
        for name, array in unequal.initial.items()
    }
    shared, client_id = Shared(3, 1), list(unequal.plans)[1]
    method, trainer = unequal.method_of(client_id), unequal.trainers[client_id]
    start = method.start(unequal.layout, state, shared)
    settings = StepSettings(
        steps=1,
        sample_rate=0.5,
        planned_batch_size=10.0,
        noise_multiplier=1.0,
        clip_norm=1.0,
        learning_rate=0.1,
    )
    result = trainer.train(unequal.examples[client_id], start, settings, stream=SecretStream())
    module = unequal.layout.modules[0]
    assert result.state[module.a_name].shape == (2, module.in_features)
    assert result.dimension == sum(array.size for array in start.values())
    upload = method.upload(unequal.layout, state, result.state, shared)
    assert {name: array.shape for name, array in upload.items()} == unequal.method.contract(
        unequal.layout
    ).uploads
    # Scaled as its own: what its model computes is its first two components of the global product.
    write_state(trainer.model, start)
    layer = adapted_layers(trainer.model)[module.name]
    product = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    wanted = module.scaling * state[module.b_name][:, :2] @ state[module.a_name][:2]
    np.testing.assert_allclose(product.detach().numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_residuals_of_one_model_are_not_those_of_another(unequal: Parts) -> None:
    first, second = unequal.trainer, unequal.trainers[list(unequal.plans)[1]]
    rows = unequal.evaluation
    assert rows is not None
    before = second.evaluate(rows, read_state(second.model))
    residual = np.full((32, 32), 3.0, np.float32)
    write_state(first.model, read_state(first.model) | {f"{first.layout.modules[0].name}.base": residual})
    assert second.evaluate(rows) == before


def test_a_model_of_another_rank_keeps_a_scaling_by_the_square_root(tiny_model: Path) -> None:
    lora = LoraSettings(("query",), rank=4, alpha=4.0, use_rslora=True)
    model = load_model(tiny_model, num_labels=2, lora=lora, seed=0)
    layer = next(iter(adapted_layers(with_rank(model, 9)).values()))
    assert layer.scaling["default"] == 4.0 / 3.0
    assert next(iter(adapted_layers(model).values())).scaling["default"] == 2.0


def test_every_model_and_every_part_that_is_trained_is_rehearsed(
    unequal: Parts, parts_of: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, frozenset[str], bool]] = []

    def rehearse(
        trainer: Any, settings: StepSettings, *, trainable: frozenset[str], support: Any, penalty: Any
    ) -> str:
        assert support is None
        assert penalty is None
        with_residual = any(".base" in name for name in read_state(trainer.model))
        seen.append((trainer.layout.modules[0].rank, trainable, with_residual))
        return "what was seen"

    monkeypatch.setattr(setup, "rehearse", rehearse)
    everything = frozenset({"A", "B", "head"})
    assert unequal.rehearse() == "what was seen"
    assert seen == [(4, everything, False), (2, everything, False), (1, everything, False)]
    seen.clear()
    for method in ("rolora", "rac-lora", "fed-sb"):
        parts_of(method).rehearse()
    assert seen == [
        (2, frozenset({"B", "head"}), False), (2, frozenset({"A", "head"}), False),
        (2, frozenset({"B", "head"}), True), (2, frozenset({"R", "head"}), False),
    ]  # fmt: skip


@pytest.mark.parametrize("method", ["flora", "fed-sb"])
def test_a_real_rehearsal_passes_with_what_the_method_adds(
    parts_of: Callable[..., Parts], method: str
) -> None:
    parts = parts_of(method)
    before = read_state(parts.trainer.model)
    assert parts.rehearse().step_error < 1e-3
    after = read_state(parts.trainer.model)
    assert after.keys() == before.keys()
    assert any(name.endswith(".lora_R") for name in after) == (method == "fed-sb")
    assert all(np.array_equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("method", ["flora", "fedex", "rac-lora"])
def test_a_base_in_bfloat16_is_refused_where_the_method_changes_it(
    parts_of: Callable[..., Parts], method: str
) -> None:
    with pytest.raises(ConfigError, match=r"changes the base weights.*bfloat16.*float32"):
        parts_of(method, model={"base_dtype": "bfloat16"})


def test_a_client_of_another_rank_is_refused_where_ranks_must_be_equal(
    parts_of: Callable[..., Parts],
) -> None:
    parts = parts_of("fedit")
    client_id = next(iter(parts.plans))
    small = PrivateTrainer(with_rank(parts.trainer.model, 1))
    odd = replace(parts, trainers={**parts.trainers, client_id: small})
    with pytest.raises(FederationError, match="has rank 1 at a client and 2 in the federation"):
        odd.method_of(client_id)
