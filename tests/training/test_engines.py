"""Every clipping engine against brute force: norms and clipped sums, however the batch is cut and padded."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora_priv.adapters import read_state, trainable_parameters, write_state
from fedlora_priv.modeling import LoraSettings, attach_lora, load_model
from fedlora_priv.precision import cast_base
from fedlora_priv.training import PrivateTrainer, StepSettings, TokenisedExamples
from fedlora_priv.training import engine as engine_module
from fedlora_priv.training.clipping import per_example_clipping
from fedlora_priv.training.losses import model_losses
from protocols.prg import SecretStream

from .brute_force import batch_in_float64, clipped_sum, difference, gradients_alone, in_float64, norms
from .conftest import TARGETS

KINDS = ("bert-mean", "bert", "roberta", "gpt2", "llama", "qwen2", "vit", "gpt2-lm", "llama-lm", "qwen3-lm")
MODES = ("direct", "hooks", "ghost")
CLIPPINGS = ("flat", "per-layer")
WAYS = [way for way in itertools.product(MODES, CLIPPINGS, (False, True)) if way[0] != "ghost" or not way[2]]
TOLERANCE = 1e-6  # of a model in float32 against brute force in float64; 6e-7 was seen
EXACT = 1e-12  # of one in float64
KEY = bytes(range(32))


def _model(kind, tiny_model):
    """A tiny model away from B = 0, where every gradient of A would be zero."""
    model = tiny_model(kind)
    generator = np.random.default_rng(5)
    start = read_state(model)
    write_state(model, {k: generator.normal(0, 0.2, v.shape).astype(np.float32) for k, v in start.items()})
    return model


def _collate(examples):
    return examples.collate(torch.device("cpu"))


def _clip(model, examples, parts, clip_norm, *, trained=None, collate=_collate, **options):
    """What an engine makes of a batch cut into `parts`: the clipped sums and the counts of each part."""
    trained = trained or trainable_parameters(model)
    counts = []
    with per_example_clipping(model, trained, **options) as engine:
        for part in parts:
            batch = collate(examples.subset(part))
            counts.append(engine.add(lambda m, batch=batch: model_losses(m, batch), clip_norm))
        sums = {name: parameter.summed_grad for name, parameter in trained.items()}
    for parameter in trained.values():
        parameter.summed_grad = None
    return sums, counts


def _examples(kind, make_examples, make_images, n=8):
    return make_images(n) if kind == "vit" else make_examples(n, labels=not kind.endswith("-lm"))


@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_clipped_sums_equal_brute_force(kind, tiny_model, make_examples, make_images, monkeypatch):
    model, examples = _model(kind, tiny_model), _examples(kind, make_examples, make_images)
    alone = gradients_alone(model, examples)
    clip_norm = 1.01 * float(norms(alone).median())  # some are clipped and some are not
    seen, real = [], engine_module.clip_factors
    monkeypatch.setattr(engine_module, "clip_factors", lambda s, c: seen.append(s.sqrt()) or real(s, c))
    for mode, clipping, checkpointing in WAYS:
        seen.clear()
        options = {"mode": mode, "clipping": clipping, "gradient_checkpointing": checkpointing}
        sums, counts = _clip(model, examples, [[3, 0, 7, 1, 4], [2], [6, 5]], clip_norm, **options)
        wanted = norms(alone, clipping)[:, [3, 0, 7, 1, 4, 2, 6, 5]]
        torch.testing.assert_close(torch.cat(seen, dim=1), wanted, rtol=TOLERANCE, atol=TOLERANCE * clip_norm)
        assert difference(sums, clipped_sum(alone, clip_norm, clipping)) < TOLERANCE, options
        bound = clip_norm / len(wanted) ** 0.5
        assert sum(c.clipped for c in counts) == int((wanted > bound).any(dim=0).sum()) > 0
        assert sum(c.examples for c in counts) == 8
        assert max(c.largest_norm for c in counts) <= clip_norm


@pytest.mark.parametrize("kind", KINDS)
def test_engines_are_exact_but_for_float32(kind, tiny_model, make_examples, make_images):
    """In float64 nothing is left of the differences, so rounding is all that they are."""
    model, examples = _model(kind, tiny_model), _examples(kind, make_examples, make_images)
    alone, double = gradients_alone(model, examples), in_float64(model)
    clip_norm, parts = 1.01 * float(norms(alone).median()), [[3, 0, 7, 1, 4], [2], [6, 5]]
    for mode, clipping, checkpointing in WAYS:
        options = {"mode": mode, "clipping": clipping, "gradient_checkpointing": checkpointing}
        sums, _ = _clip(double, examples, parts, clip_norm, collate=batch_in_float64, **options)
        assert difference(sums, clipped_sum(alone, clip_norm, clipping)) < EXACT, options


@pytest.mark.parametrize("mode", MODES)
def test_the_real_small_llama(mode, stories, make_examples):
    lora = LoraSettings(("q_proj", "v_proj"), rank=4)
    model = load_model(str(stories), pooling="mean", num_labels=2, lora=lora, seed=1)
    examples = make_examples(5)
    generator = np.random.default_rng(5)
    start = {k: generator.normal(0, 0.1, v.shape).astype(np.float32) for k, v in read_state(model).items()}
    write_state(model, start)
    alone = gradients_alone(model, examples)
    clip_norm = 1.01 * float(norms(alone).median())
    for clipping in CLIPPINGS:
        sums, _ = _clip(model, examples, [[0, 1, 2], [3, 4]], clip_norm, mode=mode, clipping=clipping)
        # These gradients partly cancel: plain autograd in float32, one by one, is off by 1e-6 itself.
        assert difference(sums, clipped_sum(alone, clip_norm, clipping)) < 2 * TOLERANCE
        sums, _ = _clip(
            in_float64(model), examples, [[0, 1, 2], [3, 4]], clip_norm, collate=batch_in_float64,
            mode=mode, clipping=clipping,
        )  # fmt: skip
        assert difference(sums, clipped_sum(alone, clip_norm, clipping)) < EXACT


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "roles", [("lora_B",), ("lora_A",), ("weight", "bias"), ("lora_B", "weight", "bias")]
)
def test_a_part_of_the_arrays_is_clipped_by_its_own_norm(mode, roles, tiny_model, make_examples):
    model, examples = _model("bert-mean", tiny_model), make_examples(6)
    trained = {n: p for n, p in trainable_parameters(model).items() if n.endswith(roles)}
    alone = gradients_alone(model, examples, names=list(trained))
    clip_norm = 1.01 * float(norms(alone).median())
    sums, _ = _clip(model, examples, [range(4), [4, 5]], clip_norm, trained=trained, mode=mode)
    assert difference(sums, clipped_sum(alone, clip_norm)) < TOLERANCE


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 14), min_size=1, max_size=7), st.integers(1, 7), st.sampled_from(CLIPPINGS),
    st.sampled_from(MODES), st.floats(0.01, 10.0),
)  # fmt: skip
def test_any_lengths_and_any_cut(one_model, lengths, size, clipping, mode, clip_norm):
    generator = np.random.default_rng(sum(lengths))
    ids = tuple(generator.integers(1, 97, length) for length in lengths)
    examples = TokenisedExamples(ids, generator.integers(0, 2, len(ids)), 0)
    parts = [list(range(len(ids)))[start : start + size] for start in range(0, len(ids), size)]
    sums, _ = _clip(
        one_model, examples, parts, clip_norm, collate=batch_in_float64, mode=mode, clipping=clipping
    )
    wanted = clipped_sum(gradients_alone(one_model, examples), clip_norm, clipping)
    assert difference(sums, wanted) < EXACT


@pytest.fixture(scope="module")
def one_model(request):
    """One model for all drawn cases, as hypothesis wants it."""
    from .conftest import _tiny_model

    return in_float64(_model("bert-mean", _tiny_model))


def test_the_oracle_tells_clipping_of_examples_from_clipping_of_microbatches(tiny_model, make_examples):
    alone = gradients_alone(_model("bert-mean", tiny_model), make_examples(6))
    clip_norm = 1.01 * float(norms(alone).median())
    pairs = [{n: a[n] + b[n] for n in a} for a, b in zip(alone[::2], alone[1::2], strict=True)]
    assert difference(clipped_sum(pairs, clip_norm), clipped_sum(alone, clip_norm)) > 0.1
    assert difference(clipped_sum(alone, clip_norm, "per-layer"), clipped_sum(alone, clip_norm)) > 0.01


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("kind", ["bert-mean", "llama-lm", "vit"])
def test_all_ways_give_the_same_noised_state(kind, clipping, tiny_model, make_examples, make_images):
    model, examples = _model(kind, tiny_model), _examples(kind, make_examples, make_images, 10)
    trainer, start, states = PrivateTrainer(model), read_state(model), []
    ways = [(mode, checkpointing) for mode, way, checkpointing in WAYS if way == clipping]
    for (mode, checkpointing), max_tokens in zip(ways, itertools.cycle((1, 25, 10_000)), strict=False):
        given_settings = StepSettings(
            steps=5, sample_rate=0.1, planned_batch_size=1.0, noise_multiplier=0.5, clip_norm=0.5,
            learning_rate=0.1, max_tokens_per_microbatch=max_tokens, clipping=clipping, mode=mode,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        result = trainer.train(examples, start, given_settings, stream=SecretStream(KEY))
        states.append(np.concatenate([result.state[name].ravel() for name in start]))
    sizes = [record.batch_size for record in result.private_audit]
    assert 0 in sizes, "one batch should be empty"
    assert max(sizes) > 1
    moved = np.abs(states[0] - np.concatenate([start[name].ravel() for name in start])).max()
    for state in states[1:]:
        np.testing.assert_allclose(state, states[0], rtol=0, atol=1e-5 * moved)


@pytest.mark.parametrize("kind", ["bert-mean", "llama"])
def test_a_base_in_bfloat16_changes_no_bound(kind, tiny_base, make_examples):
    """All arithmetic of clipping is in float32 or better; only what the frozen layers pass on is coarse."""
    base = tiny_base(kind)
    cast_base(base, "bfloat16")
    model = attach_lora(base, LoraSettings(TARGETS[kind.split("-")[0]], rank=2), 7)
    write_state(model, {k: np.full_like(v, 0.1) + 0.1 * v for k, v in read_state(model).items()})
    found = {}
    for mode in ("direct", "hooks"):  # ghost is refused: see test_precision
        sums, counts = _clip(model, make_examples(6), [[0, 1, 2, 3], [4, 5]], 0.01, mode=mode)
        assert all(value.dtype == torch.float64 for value in sums.values())
        assert sum(c.clipped for c in counts) == 6
        assert max(c.largest_norm for c in counts) <= 0.01
        found[mode] = sums
    assert difference(found["hooks"], found["direct"]) < 0.02
