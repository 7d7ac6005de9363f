"""A residual beside the base weights and an R between A and B: what the model computes, clips, and forgets."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch

from fedlora_priv.adapters import layout, read_state, read_trained, trainable_parameters, write_state
from fedlora_priv.errors import ConfigError, FederationError, FedloraError, StateBeyondBounds
from fedlora_priv.federation.state_check import StateCheck
from fedlora_priv.methods.base import Shared
from fedlora_priv.methods.fedsb import FedSB
from fedlora_priv.methods.residual import merged
from fedlora_priv.modeling import LoraSettings, add_squares, attach_lora
from fedlora_priv.precision import cast_base
from fedlora_priv.training import PrivateTrainer, StepSettings, coupling, coupling_tolerance, rehearse
from fedlora_priv.training.clipping import per_example_clipping
from fedlora_priv.training.losses import model_losses
from protocols.prg import SecretStream

from .brute_force import batch_in_float64, clipped_sum, difference, gradients_alone, in_float64, norms
from .conftest import TARGETS

KINDS = ("bert-mean", "gpt2-lm", "llama")  # Linear with and without bias, and Conv1D, which keeps Wᵀ
WAYS = [
    way
    for way in itertools.product(("direct", "hooks", "ghost"), ("flat", "per-layer"), (False, True))
    if way[0] != "ghost" or not way[2]
]
SETTINGS = {
    "steps": 2, "sample_rate": 0.5, "planned_batch_size": 6.0, "noise_multiplier": 1.0, "clip_norm": 1.0,
    "learning_rate": 0.1,
}  # fmt: skip
SQUARE_ROLES = frozenset({"R", "head"})


def random_state(model, seed=5):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(0, 0.2, v.shape).astype(np.float32) for k, v in read_trained(model).items()}


def with_residual(model, state, seed=6):
    """The state with a residual in all modules but the last: thin in one, dense in the next, and so on."""
    rng, added = np.random.default_rng(seed), dict(state)
    for i, module in enumerate(layout(model).modules[:-1]):
        m, n = module.out_features, module.in_features
        shapes = {"base": (m, n)} if i % 2 else {"base_B": (m, 3), "base_A": (3, n)}
        for part, shape in shapes.items():
            added[f"{module.name}.{part}"] = rng.normal(0, 0.3, shape).astype(np.float32)
    return added


def merged_by_hand(model, state, copied=in_float64):
    """A copy of the model with the residual written into its base weights, and without one beside them."""
    other = copied(model)
    write_state(other, state)
    pieces = merged(layout(model), state)
    for name, layer in (
        (m.name, other.get_base_model().get_submodule(m.name)) for m in layout(model).modules
    ):
        own = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        residual = torch.from_numpy(pieces[name]) - own.detach()
        weight = layer.base_layer.weight
        residual = residual.T if type(layer.base_layer).__name__ == "Conv1D" else residual
        weight.data += residual.to(weight.dtype)
    write_state(other, read_trained(other))
    return other


def logits(model, kind, make_examples):
    batch = batch_in_float64(make_examples(4, labels=not kind.endswith("-lm")))
    with torch.no_grad():
        return model(**batch.inputs).logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_is_added_to_the_base_exactly(kind, tiny_model, make_examples):
    model = tiny_model(kind)
    state = with_residual(model, random_state(model))
    write_state(model, state)
    plain = logits(in_float64(tiny_model(kind)), kind, make_examples)
    wanted = logits(merged_by_hand(model, state), kind, make_examples)
    assert (plain - wanted).abs().max() > 0.01  # the comparison can fail
    torch.testing.assert_close(logits(in_float64(model), kind, make_examples), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits(model, kind, make_examples).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_another_state_leaves_nothing_of_a_residual(kind, tiny_model, make_examples):
    model = tiny_model(kind)
    before, weights = logits(model, kind, make_examples), copy.deepcopy(model.state_dict())
    start, state = read_state(model), with_residual(model, random_state(model))
    write_state(model, state)
    first = logits(model, kind, make_examples)
    assert all(np.array_equal(value, state[name]) for name, value in read_state(model).items())
    assert read_state(model).keys() == state.keys()
    write_state(model, with_residual(model, state, seed=9))
    write_state(model, state)
    assert torch.equal(logits(model, kind, make_examples), first)
    write_state(model, start)
    assert torch.equal(logits(model, kind, make_examples), before)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in model.modules())


def test_a_copy_has_a_residual_of_its_own(tiny_model, make_examples):
    model = tiny_model()
    start, state = read_state(model), with_residual(model, random_state(model))
    write_state(model, state)
    changed, other = logits(model, "bert-mean", make_examples), copy.deepcopy(model)
    write_state(model, start)
    assert torch.equal(logits(other, "bert-mean", make_examples), changed)
    write_state(other, start)
    assert torch.equal(logits(other, "bert-mean", make_examples), logits(model, "bert-mean", make_examples))


@pytest.mark.parametrize("fault", ["one part", "both", "shape", "rank", "module", "nan", "transposed"])
def test_a_residual_that_does_not_fit_is_refused_before_anything_is_written(fault, tiny_model):
    model = tiny_model("gpt2-lm")
    before = with_residual(model, read_state(model))
    write_state(model, before)
    first, second = (module.name for module in layout(model).modules)
    thin = {f"{first}.base_B": np.ones((48, 2), np.float32), f"{first}.base_A": np.ones((2, 16), np.float32)}
    parts = {
        "one part": {f"{first}.base_B": np.ones((48, 2), np.float32)},
        "both": thin | {f"{first}.base": np.ones((48, 16), np.float32)},
        "shape": thin | {f"{first}.base_B": np.ones((48, 3), np.float32)},
        "rank": {f"{first}.base_B": np.ones((48, 17), np.float32), f"{first}.base_A": np.ones((17, 16), np.float32)},
        "module": {"other.base": np.ones((48, 16), np.float32)},
        "nan": {f"{first}.base": np.full((48, 16), np.nan, np.float32)},
        "transposed": {f"{second}.base": np.ones((16, 48), np.float32)},
    }[fault]  # fmt: skip
    with pytest.raises(FedloraError, match=r"other\.base|residual of|must be a finite array of shape"):
        write_state(model, random_state(model) | parts)
    after = read_state(model)
    assert after.keys() == before.keys()
    assert all(np.array_equal(value, before[name]) for name, value in after.items())


def test_a_base_in_bfloat16_is_too_coarse_for_a_residual(tiny_base):
    base = tiny_base("llama")
    cast_base(base, "bfloat16")
    model = attach_lora(base, LoraSettings(TARGETS["llama"], rank=2), 7)
    with pytest.raises(FedloraError, match=r"bfloat16, too coarse for a residual.*float32"):
        write_state(model, with_residual(model, random_state(model)))


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_with_a_residual_equals_brute_force_on_the_merged_base(kind, tiny_model, make_examples):
    model = tiny_model(kind)
    state = with_residual(model, random_state(model))
    write_state(model, state)
    examples = make_examples(6, labels=not kind.endswith("-lm"))
    require_exact(model, merged_by_hand(model, state), examples, list(trainable_parameters(model)))


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_of_squares_equals_brute_force(kind, tiny_model, make_examples):
    model = with_squares(tiny_model(kind))
    write_state(model, random_state(model))
    names = [name for name in trainable_parameters(model) if not name.endswith((".lora_A", ".lora_B"))]
    assert sum(name.endswith(".lora_R") for name in names) == len(layout(model).modules)
    examples = make_examples(6, labels=not kind.endswith("-lm"))
    require_exact(model, model, examples, names)


def with_squares(model):
    add_squares(model)
    return model


def require_exact(model, reference, examples, names):
    """Require that every engine's clipped sum on `model` is what plain autograd on `reference` gives."""
    alone, double = gradients_alone(reference, examples, names=names), in_float64(model)
    clip_norm = 1.01 * float(norms(alone).median())  # some are clipped and some are not
    for mode, clipping, checkpointing in WAYS:
        trained = {name: trainable_parameters(double)[name] for name in names}
        options = {"mode": mode, "clipping": clipping, "gradient_checkpointing": checkpointing}
        with per_example_clipping(double, trained, **options) as engine:
            for part in ([3, 0, 1, 4], [5, 2]):
                batch = batch_in_float64(examples.subset(part))
                engine.add(partial(model_losses, batch=batch), clip_norm)
            sums = {name: parameter.summed_grad for name, parameter in trained.items()}
        for parameter in trained.values():
            parameter.summed_grad = None
        assert difference(sums, clipped_sum(alone, clip_norm, clipping)) < 1e-12, options


@pytest.mark.parametrize("kind", KINDS)
def test_a_square_between_the_factors_is_plain_lora_with_b_times_r(kind, tiny_model, make_examples):
    plain, model = tiny_model(kind), with_squares(tiny_model(kind))
    write_state(model, random_state(model))
    state = read_state(model)
    write_state(plain, FedSB().as_lora(layout(model), state))
    assert set(layout(model).shapes()) | {m.r_name for m in layout(model).modules} == set(state)
    wanted = logits(plain, kind, make_examples)
    torch.testing.assert_close(logits(model, kind, make_examples), wanted, rtol=1e-5, atol=1e-6)
    assert (wanted - logits(tiny_model(kind), kind, make_examples)).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["direct", "hooks", "ghost"])
def test_fed_sb_trains_and_noises_squares_and_head_alone(mode, tiny_model, make_examples):
    trainer = PrivateTrainer(with_squares(tiny_model()))
    start = FedSB().begin(trainer.layout, read_state(trainer.model), Shared(3, 0))
    settings = StepSettings(**SETTINGS | {"mode": mode})
    rehearse(trainer, settings, trainable=SQUARE_ROLES)
    result = trainer.train(
        make_examples(12), start, settings, stream=SecretStream(bytes(32)), trainable=SQUARE_ROLES
    )
    roles = {name: trainer.layout.role(name) for name in start}
    assert result.state.keys() == start.keys()
    for name, value in result.state.items():
        assert np.array_equal(value, start[name]) == (roles[name] in "AB"), name
    assert result.dimension == sum(v.size for n, v in start.items() if roles[n] in SQUARE_ROLES)
    assert {"R", "A", "B", "head"} == set(roles.values())


def test_an_r_that_is_not_there_cannot_be_trained(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    with pytest.raises(ConfigError, match="no R to train"):
        trainer.train(
            make_examples(4), read_state(trainer.model), StepSettings(**SETTINGS), stream=SecretStream(),
            trainable=SQUARE_ROLES,
        )  # fmt: skip


@pytest.mark.parametrize("mode", ["direct", "hooks", "ghost"])
def test_training_and_evaluation_are_with_the_residual(mode, tiny_model, make_examples):
    """A step without noise from W0 + residual is the step from a base that has the residual in its weights."""
    trainer, examples = PrivateTrainer(tiny_model("llama-lm")), make_examples(12, labels=False)
    state = with_residual(trainer.model, random_state(trainer.model))
    other = PrivateTrainer(merged_by_hand(trainer.model, state, copy.deepcopy))
    settings = StepSettings(**SETTINGS | {"mode": mode, "noise_multiplier": 0.0, "sample_rate": 1.0})
    rehearse(trainer, settings)
    trained = {n: v for n, v in state.items() if trainer.layout.role(n) != "base"}
    found, wanted, without = (
        each.train(examples, start, settings, stream=SecretStream(bytes(32))).state
        for each, start in ((trainer, state), (other, trained), (trainer, trained))
    )
    assert found.keys() == trained.keys()
    flat = [np.concatenate([s[n].ravel() for n in trained]) for s in (found, wanted, without)]
    np.testing.assert_allclose(flat[0], flat[1], atol=1e-6)
    assert np.abs(flat[0] - flat[2]).max() > 1e-4
    perplexities = [
        each.evaluate(examples, s).value
        for each, s in ((trainer, state), (other, trained), (trainer, trained))
    ]
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-5)
    assert perplexities[2] != pytest.approx(perplexities[1], rel=1e-3)


def test_a_hostile_residual_is_refused_like_a_hostile_adapter(tiny_model):
    model = tiny_model()
    honest = with_residual(model, random_state(model))
    check = StateCheck(model)
    check(honest)
    assert coupling(model, honest) < 0.1 * coupling_tolerance(model)
    assert read_state(model).keys() == read_trained(model).keys()  # as it was
    name = next(name for name in honest if name.endswith(".base_A"))
    with pytest.raises(StateBeyondBounds, match="entries up to"):
        check(honest | {name: honest[name] * 1e4})
    both = {n: 99 * np.sign(v) if n.endswith((".base_A", ".base_B")) else v for n, v in honest.items()}
    with pytest.raises(StateBeyondBounds, match=r"changes base weights by up to 2\.94e\+04"):
        check(both)  # no entry of a factor is too large, but those of their product are: √3·99 squared


def test_the_check_knows_a_state_by_its_names_and_shapes_too(tiny_model):
    model = tiny_model("gpt2-lm")
    state = read_state(model)
    first, second = (module.name for module in layout(model).modules)
    dense = np.full((48, 16), 0.1, np.float32)
    check = StateCheck(model)
    check(state | {f"{first}.base": dense})
    for odd in ({f"{first}.base": dense.reshape(16, 48)}, {f"{second}.base_B": dense}):
        with pytest.raises(FederationError, match="does not fit"):
            check(state | odd)
