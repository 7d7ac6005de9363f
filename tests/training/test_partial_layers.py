"""A client that trains some layers: what is clipped, and that the others cost a forward pass and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertModel

from fedlora_priv.adapters import read_state, trainable_parameters, write_state
from fedlora_priv.modeling import LoraSettings, attach_lora
from fedlora_priv.pooling import MeanPoolingClassifier
from fedlora_priv.training import direct, ghost
from fedlora_priv.training.clipping import per_example_clipping
from fedlora_priv.training.losses import model_losses

from .brute_force import clipped_sum, difference, gradients_alone, norms
from .conftest import TARGETS, tiny_bert

LAYERS = 6
PARTS = {"top": (4, 5), "scattered": (1, 4), "lowest": (0,), "all": tuple(range(LAYERS))}
WAYS = [("direct", False), ("direct", True), ("hooks", False), ("hooks", True), ("ghost", False)]


@pytest.fixture(scope="module")
def model() -> Any:
    """Six layers, away from B = 0."""
    torch.manual_seed(0)
    config = tiny_bert()
    config.num_hidden_layers = LAYERS
    lora = LoraSettings(TARGETS["bert"], rank=2, alpha=4.0)
    model = attach_lora(MeanPoolingClassifier(BertModel(config).float(), 2), lora, 7)
    rng = np.random.default_rng(5)
    state = read_state(model)
    write_state(model, {k: rng.normal(0, 0.2, v.shape).astype(np.float32) for k, v in state.items()})
    return model


def layer_of(name: str) -> int | None:
    """The layer that a parameter or module is in."""
    return int(name.split(".layer.")[1].split(".")[0]) if ".layer." in name else None


def part_of(model: Any, held: tuple[int, ...]) -> dict[str, nn.Parameter]:
    """The parameters of these layers, and the head's."""
    return {
        name: p
        for name, p in trainable_parameters(model).items()
        if layer_of(name) in held or layer_of(name) is None
    }


def blocks(model: Any) -> dict[int, nn.Module]:
    """The layers by number."""
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__ == "BertLayer":
            found[int(name.rpartition(".")[2])] = module
    return found


@contextmanager
def crossed(model: Any) -> Iterator[set[int]]:
    """Which layers a backward pass goes through: what comes out of them has a gradient."""
    seen: set[int] = set()

    def watch(number: int, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda _: seen.add(number))

    with ExitStack() as stack:
        for number, block in blocks(model).items():
            hook = block.register_forward_hook(lambda _m, _i, output, number=number: watch(number, output))
            stack.callback(hook.remove)
        yield seen


def add(
    model: Any, examples: Any, trained: dict, mode: str, checkpointing: bool, clip_norm: float = 2.0
) -> tuple[dict, set[int]]:
    """One batch's clipped sums, and which layers were crossed backward."""
    batch = examples.collate(torch.device("cpu"))
    options = {"mode": mode, "gradient_checkpointing": checkpointing}
    with crossed(model) as seen, per_example_clipping(model, trained, **options) as engine:
        engine.add(lambda m: model_losses(m, batch), clip_norm)
        for name, parameter in trainable_parameters(model).items():
            if name not in trained:
                for left in ("summed_grad", "grad_sample", "_norm_sample"):
                    assert getattr(parameter, left, None) is None, (name, left)
                assert parameter.grad is None
        sums = {name: parameter.summed_grad for name, parameter in trained.items()}
    for parameter in trained.values():
        parameter.summed_grad = None
    return sums, seen


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("mode", "checkpointing"), WAYS)
def test_a_part_is_clipped_alone_and_nothing_below_it_is_crossed(
    model: Any, make_examples: Any, mode: str, checkpointing: bool, part: str
) -> None:
    examples, held = make_examples(6), PARTS[part]
    trained = part_of(model, held)
    alone = gradients_alone(model, examples, names=list(trained))
    clip_norm = 1.01 * float(norms(alone).median())  # some are clipped and some are not
    sums, seen = add(model, examples, trained, mode, checkpointing, clip_norm)
    assert difference(sums, clipped_sum(alone, clip_norm)) < 1e-6
    assert seen == set(range(min(held), LAYERS))


@pytest.mark.parametrize("part", PARTS)
def test_only_what_is_trained_has_gradients_by_example(
    model: Any, make_examples: Any, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    made: list[tuple[int, ...]] = []
    real = direct.weight_gradients
    for engine in (direct, ghost):
        monkeypatch.setattr(
            engine, "weight_gradients", lambda i, *more: made.append(i.shape) or real(i, *more)
        )
    for mode in ("direct", "ghost"):
        made.clear()
        add(model, make_examples(6), part_of(model, PARTS[part]), mode, False)
        assert len(made) == len(PARTS[part]) * 4 + 1  # A and B of query and value, and the head's weight
    hooked = []
    with per_example_clipping(model, part_of(model, PARTS[part]), mode="hooks"):
        for name, module in model.named_modules():
            if any("capture" in getattr(hook, "__name__", "") for hook in module._forward_hooks.values()):
                hooked.append(layer_of(name))
    assert len(hooked) == len(PARTS[part]) * 4 + 1
    assert set(hooked) == {None, *PARTS[part]}


def test_what_is_kept_for_the_backward_pass_is_what_is_crossed(model: Any, make_examples: Any) -> None:
    """Below the lowest trained layer nothing is kept; above it a layer keeps about the same whether it is trained."""
    kept = {}
    for name, held in {**PARTS, "head": ()}.items():
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            add(model, make_examples(6), part_of(model, held), "direct", False)
        kept[name] = sum(size for pointer, size in saved.items() if pointer not in weights)
    assert kept["head"] < 0.05 * kept["all"]
    assert kept["top"] - kept["head"] == pytest.approx((kept["all"] - kept["head"]) / 3, rel=0.1)
    assert kept["scattered"] < kept["lowest"] <= kept["all"]
