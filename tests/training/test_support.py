"""Training on some coordinates: exact against brute force, noise of k dimensions, and nothing else moves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from accounting.adaptive_clip import AdaptiveClip
from fedlora_priv.adapters import read_state, trainable_parameters, write_state
from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.training import PrivateTrainer, StepSettings, coupling, preflight, rehearse
from fedlora_priv.training import linear as linear_module
from fedlora_priv.training import trainer as trainer_module
from fedlora_priv.training.clipping import per_example_clipping
from fedlora_priv.training.dpsgd import SecretNoiseOptimizer
from fedlora_priv.training.losses import model_losses
from fedlora_priv.training.support import coordinates
from protocols.prg import SecretStream

from .brute_force import batch_in_float64, clipped_sum, difference, gradients_alone, in_float64, norms

KEY = bytes(range(32))
KINDS = ("bert-mean", "gpt2", "llama", "llama-lm", "vit")
WAYS = tuple(itertools.product(("direct", "hooks"), ("flat", "per-layer"), (False, True)))
EXACT = 1e-12  # of a model in float64
SETTINGS = {
    "steps": 3,
    "sample_rate": 0.5,
    "planned_batch_size": 6.0,
    "noise_multiplier": 1.0,
    "clip_norm": 0.5,
    "learning_rate": 0.1,
}


def away_from_zero(model):
    """Give the model a state at which every trained array has a gradient."""
    generator = np.random.default_rng(5)
    start = read_state(model)
    write_state(model, {k: generator.normal(0, 0.2, v.shape).astype(np.float32) for k, v in start.items()})
    return model


def at_random(density):
    def support(shapes):
        generator = np.random.default_rng(9)
        return {name: generator.random(shape) < density for name, shape in shapes.items()}

    return support


def by_component(shapes):
    """The first component of each adapted module, and of the head one row."""
    marked = {name: np.zeros(shape, dtype=bool) for name, shape in shapes.items()}
    for name, mask in marked.items():
        mask[(slice(None), 0) if name.endswith("lora_B") else 0] = True
    return marked


def whole_arrays(shapes):
    return {name: np.full(shape, i % 2 == 0) for i, (name, shape) in enumerate(shapes.items())}


def one_coordinate(shapes):
    marked = {name: np.zeros(shape, dtype=bool) for name, shape in shapes.items()}
    next(mask for name, mask in marked.items() if name.endswith("lora_B"))[3, 1] = True
    return marked


SUPPORTS = {
    "half": at_random(0.5),
    "a sixteenth": at_random(1 / 16),
    "components": by_component,
    "whole arrays": whole_arrays,
    "one": one_coordinate,
}


def shapes_of(model):
    return {name: tuple(p.shape) for name, p in trainable_parameters(model).items()}


def cut(gradients, support):
    """Each example's gradient on the support alone, without the arrays that have nothing in it."""
    return [
        {name: g * torch.from_numpy(support[name]) for name, g in one.items() if support[name].any()}
        for one in gradients
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_clipped_sums_on_a_support_equal_brute_force(
    kind, tiny_model, make_examples, make_images, monkeypatch
):
    model = away_from_zero(tiny_model(kind))
    examples = make_images(8) if kind == "vit" else make_examples(8, labels=not kind.endswith("-lm"))
    whole, double = gradients_alone(model, examples), in_float64(model)
    for (which, make), (mode, clipping, twice) in itertools.product(SUPPORTS.items(), WAYS):
        if twice and which != "half":
            continue  # whether activations are kept has nothing to do with which coordinates there are
        support = make(shapes_of(model))
        alone = cut(whole, support)
        clip_norm = 1.01 * float(norms(alone).median())
        trained, parts = coordinates(trainable_parameters(double), support)
        options = {"mode": mode, "clipping": clipping, "gradient_checkpointing": twice, "parts": parts}
        counts = []
        with per_example_clipping(double, trained, **options) as engine:
            for part in ([3, 0, 7, 1, 4], [2], [6, 5]):
                batch = batch_in_float64(examples.subset(part))
                counts.append(engine.add(lambda m, batch=batch: model_losses(m, batch), clip_norm))
            sums = {name: p.summed_grad for name, p in trained.items()}
        for parameter in trained.values():
            parameter.summed_grad = None
        assert set(sums) == {name for name, mask in support.items() if mask.any()}
        assert difference(sums, clipped_sum(alone, clip_norm, clipping)) < EXACT, (which, options)
        assert all(not total[torch.from_numpy(~support[name])].any() for name, total in sums.items())
        wanted = norms(alone, clipping)
        assert (
            sum(c.clipped for c in counts) == int((wanted > clip_norm / len(wanted) ** 0.5).any(0).sum()) > 0
        )


@pytest.mark.parametrize("gather", [0, 10**9], ids=["by entries", "by products"])
@pytest.mark.parametrize(("inside", "outside"), [(7, 40), (40, 7)])
def test_both_ways_to_some_entries_agree(gather, inside, outside, monkeypatch):
    monkeypatch.setattr(linear_module, "_GATHER", gather)
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(inside, outside)
    inputs, outputs = (torch.randn(5, 3, 2, size, generator=generator) for size in (inside, outside))
    mask = np.random.default_rng(0).random((outside, inside)) < 0.1
    _, parts = coordinates({"w": layer.weight}, {"w": mask})
    rows = linear_module.weight_gradients(inputs, outputs, parts["w"]).one_by_one().rows
    wanted = torch.einsum("nsto,nsti->noi", outputs, inputs)[:, torch.from_numpy(mask)]
    torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-5)


def train(trainer, examples, start, support, *, key=KEY, trainable=frozenset({"A", "B", "head"}), **changed):
    settings = StepSettings(**(SETTINGS | changed))
    return trainer.train(
        examples, start, settings, stream=SecretStream(key), trainable=trainable, support=support
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["bert-mean", "gpt2", "llama"])
@pytest.mark.parametrize("sample_rate", [0.5, 0.04], ids=["batches", "mostly empty batches"])
def test_only_the_support_moves(kind, optimizer, sample_rate, tiny_model, make_examples):
    trainer = PrivateTrainer(away_from_zero(tiny_model(kind)))
    start = read_state(trainer.model)
    support = at_random(0.2)(shapes_of(trainer.model))
    result = train(
        trainer, make_examples(12), start, support, optimizer=optimizer, sample_rate=sample_rate, steps=6
    )
    sizes = [record.batch_size for record in result.private_audit]
    assert (0 in sizes) == (sample_rate < 0.1)
    assert result.dimension == sum(int(mask.sum()) for mask in support.values())
    for name, mask in support.items():
        moved = result.state[name].view(np.uint32) != start[name].view(np.uint32)
        assert np.array_equal(moved, mask), "all of the support moves, and no bit of anything else"


def test_noise_has_as_many_dimensions_as_the_support(tiny_model, make_examples):
    trainer, stream, reference = PrivateTrainer(tiny_model()), SecretStream(KEY), SecretStream(KEY)
    support = at_random(0.3)(shapes_of(trainer.model))
    settings = StepSettings(**(SETTINGS | {"steps": 2, "noise_multiplier": 3.0}))
    start = read_state(trainer.model)
    result = trainer.train(make_examples(12), start, settings, stream=stream, support=support)
    k = sum(int(mask.sum()) for mask in support.values())
    for _ in range(2):
        reference.uniform(12)  # the batch
        for _ in range(4):  # draws a normal
            reference.uniform(k + k % 2)
    assert stream.bytes(8) == reference.bytes(8)
    sizes = [record.noise_squares / (k * 1.5**2) for record in result.private_audit]
    assert np.abs(np.array(sizes) - 1).max() < 6 * np.sqrt(2 / k)


def test_adams_moments_are_zero_outside_of_the_support():
    parameters = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(5))]
    mask = np.arange(12).reshape(3, 4) % 5 == 0
    _, parts = coordinates({"a": parameters[0]}, {"a": mask})
    optimizer = SecretNoiseOptimizer(
        torch.optim.Adam(parameters, lr=0.1), stream=SecretStream(KEY), noise_multiplier=1.0, clip_norm=1.0,
        planned_batch_size=2.0, parts=[parts["a"], None],
    )  # fmt: skip
    for _ in range(3):
        optimizer.step()
    state = optimizer.original_optimizer.state[parameters[0]]
    for moment in (state["exp_avg"], state["exp_avg_sq"], parameters[0].detach() - 1):
        assert np.array_equal(moment.numpy() != 0, mask)
    assert (optimizer.original_optimizer.state[parameters[1]]["exp_avg"] != 0).all()


def test_a_support_of_everything_is_training_without_one(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start, examples = read_state(trainer.model), make_examples(12)
    everything = {name: np.ones(shape, dtype=bool) for name, shape in shapes_of(trainer.model).items()}
    some, all_of_it = train(trainer, examples, start, everything), train(trainer, examples, start, None)
    assert some.dimension == all_of_it.dimension
    assert all(np.array_equal(some.state[name], all_of_it.state[name]) for name in start)


def test_a_support_of_one_role_is_training_that_role(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    start, examples = read_state(trainer.model), make_examples(12)
    only_b = {n: np.full(s, n.endswith("lora_B")) for n, s in shapes_of(trainer.model).items()}
    by_support = train(trainer, examples, start, only_b)
    by_role = train(trainer, examples, start, None, trainable=frozenset({"B"}))
    assert by_support.dimension == by_role.dimension
    assert all(np.array_equal(by_support.state[name], by_role.state[name]) for name in start)


@pytest.mark.parametrize("mode", ["direct", "hooks"])
@pytest.mark.parametrize("clipping", ["flat", "per-layer"])
def test_microbatches_make_no_difference(mode, clipping, tiny_model, make_examples):
    trainer = PrivateTrainer(away_from_zero(tiny_model()))
    start, examples = read_state(trainer.model), make_examples(16)
    support = at_random(0.1)(shapes_of(trainer.model))
    states = [
        train(trainer, examples, start, support, mode=mode, clipping=clipping, max_tokens_per_microbatch=most)
        for most in (1, 30, 10_000)
    ]
    for other in states[1:]:
        for name in start:
            np.testing.assert_allclose(other.state[name], states[0].state[name], rtol=0, atol=1e-6)


def test_adaptive_clipping_counts_gradients_on_the_support(tiny_model, make_examples):
    trainer, examples = PrivateTrainer(away_from_zero(tiny_model())), make_examples(12)
    start = read_state(trainer.model)
    support = at_random(0.1)(shapes_of(trainer.model))
    whole = gradients_alone(trainer.model, examples)
    lengths = norms(cut(whole, support))[0]
    clip_norm = float(lengths.median())
    rule = AdaptiveClip(
        target_quantile=0.5, learning_rate=0.2, count_noise_stddev=3.0, smallest_clip_norm=1e-6,
        largest_clip_norm=10.0,
    )  # fmt: skip
    result = train(
        trainer, examples, start, support, steps=1, sample_rate=1.0, clip_norm=clip_norm, adaptive=rule
    )
    (record,) = result.private_audit
    assert record.count is not None
    assert abs(record.count.unclipped - int((lengths <= clip_norm).sum())) <= 1  # the median itself may round
    assert int((norms(whole)[0] <= clip_norm).sum()) < record.count.unclipped - 2, (
        "whole gradients are longer"
    )


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda s: s.pop("classifier.bias"), "differ in classifier.bias"),
        (lambda s: s.update({"more": np.ones(2, dtype=bool)}), "differ in more"),
        (lambda s: s.update({"classifier.bias": np.ones(3, dtype=bool)}), r"bool of shape \(2,\)"),
        (lambda s: s.update({"classifier.bias": np.ones(2)}), "must be bool"),
        (lambda s: s.update({name: np.zeros_like(mask) for name, mask in s.items()}), "no coordinate"),
    ],
    ids=["missing", "too many", "shape", "dtype", "empty"],
)
def test_a_support_that_is_none_is_refused(spoil, complaint, tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    support = at_random(0.5)(shapes_of(trainer.model))
    spoil(support)
    with pytest.raises(ConfigError, match=complaint):
        train(trainer, make_examples(4), read_state(trainer.model), support)


def test_ghost_clipping_is_refused(tiny_model, make_examples):
    trainer = PrivateTrainer(tiny_model())
    support = at_random(0.5)(shapes_of(trainer.model))
    with pytest.raises(ConfigError, match="norms of whole arrays"):
        train(trainer, make_examples(4), read_state(trainer.model), support, mode="ghost")


@pytest.mark.parametrize("which", SUPPORTS)
@pytest.mark.parametrize("kind", ["bert-mean", "gpt2", "llama-lm"])
def test_preflight_looks_at_the_support(kind, which, tiny_model):
    model = tiny_model(kind)
    for mode, clipping in (("direct", "flat"), ("hooks", "per-layer")):
        seen = preflight(model, support=SUPPORTS[which](shapes_of(model)), mode=mode, clipping=clipping)
        assert seen.brute_force_error < 1e-5


def test_a_rehearsal_of_a_support_passes_and_leaves_no_trace(tiny_model):
    trainer = PrivateTrainer(tiny_model())
    start, support = read_state(trainer.model), at_random(0.1)(shapes_of(trainer.model))
    seen = rehearse(trainer, StepSettings(**(SETTINGS | {"optimizer": "adam"})), support=support)
    assert seen.step_error < 1e-5
    assert seen.noise is not None
    assert 0.9 < seen.noise.deviation < 1.1
    assert all(np.array_equal(value, start[name]) for name, value in read_state(trainer.model).items())


def clip_by_short_norms(monkeypatch):
    """Norms of half of the support alone: too short, so clipped too little."""
    real = linear_module._entries

    def half(inputs, outputs, part):
        rows = real(inputs, outputs, part).clone()
        rows[:, ::2] = 0.0
        return rows

    monkeypatch.setattr(linear_module, "_entries", half)


def noise_everywhere(monkeypatch):
    """Noise on all coordinates, as without a support."""

    def make(optimizer, *, parts, **rest):
        return SecretNoiseOptimizer(optimizer, **rest)

    monkeypatch.setattr(trainer_module, "SecretNoiseOptimizer", make)


def weight_decay(monkeypatch):
    """An optimizer that moves what has no gradient."""
    monkeypatch.setattr(
        trainer_module, "make_optimizer",
        lambda name, parameters, rate: torch.optim.SGD(parameters, lr=rate, weight_decay=0.1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (clip_by_short_norms, "differ from brute force"),
        (noise_everywhere, "outside of the support"),
        (weight_decay, "outside of the support"),
    ],
)
def test_what_goes_past_the_support_is_caught(spoil, complaint, tiny_model, make_examples, monkeypatch):
    trainer = PrivateTrainer(away_from_zero(tiny_model()))
    support = at_random(0.2)(shapes_of(trainer.model))
    spoil(monkeypatch)
    with pytest.raises(FedloraError, match=complaint):
        rehearse(trainer, StepSettings(**SETTINGS), support=support)
    if spoil is not clip_by_short_norms:
        # Every training looks, not only the first of these arrays.
        trainer._verified.add((frozenset(name for name, mask in support.items() if mask.any()), False))
        with pytest.raises(FedloraError, match="outside of the support"):
            train(trainer, make_examples(12), read_state(trainer.model), support)


def test_coupling_is_asked_of_the_support(tiny_model):
    model = tiny_model()
    support = at_random(0.1)(shapes_of(model))
    assert coupling(model, read_state(model), support=support) < 1e-5
    only_b = {name: mask for name, mask in support.items() if name.endswith("lora_B")}
    assert coupling(model, read_state(model), support=only_b) < 1e-5
