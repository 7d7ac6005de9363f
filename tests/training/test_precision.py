"""Devices, and a frozen base in bfloat16 with everything that is trained in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fedlora_priv.precision as precision
from fedlora_priv.adapters import read_state, trainable_parameters, write_state
from fedlora_priv.errors import ConfigError
from fedlora_priv.modeling import LoraSettings, attach_lora, load_model
from fedlora_priv.precision import cast_base, refuse_emulated_bfloat16, resolve_device
from fedlora_priv.training import PrivateTrainer, TokenisedExamples
from fedlora_priv.training.clipping import choose_engine
from fedlora_priv.training.hooks import per_example_gradients
from fedlora_priv.training.losses import example_losses
from fedlora_priv.training.settings import StepSettings
from protocols.prg import SecretStream

CPU = torch.device("cpu")
KINDS = ["bert-mean", "roberta", "gpt2", "llama", "qwen3", "gpt2-lm", "llama-lm"]


@pytest.fixture
def model_in(tiny_base, tiny_model):
    """Builds a tiny model with random adapters on a base of a precision."""

    def build(kind, dtype):
        base = tiny_base(kind)
        cast_base(base, dtype)
        targets = tuple({m.name.rsplit(".", 1)[-1] for m in PrivateTrainer(tiny_model(kind)).layout.modules})
        model = attach_lora(base, LoraSettings(targets, rank=2, alpha=4.0), seed=7)
        rng = np.random.default_rng(0)
        random = {k: rng.normal(0, 0.1, v.shape).astype(np.float32) for k, v in read_state(model).items()}
        write_state(model, random)
        return model

    return build


def gradients(model, examples, row):
    """One example's gradient in the batch of all of them, float64."""
    parameters = trainable_parameters(model)
    batch = examples.collate(CPU)
    with per_example_gradients(model, parameters) as hooked:
        losses = example_losses(hooked(**batch.inputs).logits, batch)
        assert losses.dtype == torch.float32
        losses.sum().backward()
        assert all(p.grad_sample.dtype == torch.float32 for p in parameters.values())
        rows = [p.grad_sample[row].flatten().double() for p in parameters.values()]
    return torch.cat(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_in_bfloat16_changes_gradients_by_its_rounding_only(kind, model_in, make_examples):
    examples = make_examples(4, labels=not kind.endswith("-lm"))
    fine, coarse = (gradients(model_in(kind, dtype), examples, 1) for dtype in ("float32", "bfloat16"))
    error = float((fine - coarse).norm() / fine.norm())
    assert 0 < error < 0.05  # bfloat16 has 8 bits; zero would mean that nothing was cast


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_same_bit_for_bit_in_other_company(kind, dtype, model_in, make_examples):
    # Decision 0034: at one width and number of examples. Other lengths of that width, another place.
    model, examples = model_in(kind, dtype), make_examples(4, labels=not kind.endswith("-lm"), longest=8)
    others = make_examples(3, seed=11, labels=not kind.endswith("-lm"), longest=8)
    there = gradients(model, examples, 0)
    elsewhere = gradients(model, others + examples.subset([0]), 3)
    assert torch.equal(there, elsewhere)
    assert not torch.equal(there, gradients(model, examples, 1))


def test_what_is_trained_is_float32_on_a_base_in_bfloat16(tiny_base, make_examples, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: True)
    tiny_base("roberta").save_pretrained(tmp_path)
    lora = LoraSettings(("query",), rank=2)
    model = load_model(tmp_path, pooling="native", num_labels=2, lora=lora, seed=1, base_dtype="bfloat16")
    trained = {id(parameter) for parameter in trainable_parameters(model).values()}
    kinds = {id(p) in trained: p.dtype for p in model.parameters() if "modules_to_save" not in str(p)}
    assert kinds[True] == torch.float32
    assert (
        model.get_base_model().roberta.encoder.layer[0].attention.output.dense.weight.dtype == torch.bfloat16
    )
    same = load_model(tmp_path, pooling="native", num_labels=2, lora=lora, seed=1)
    start = read_state(model)
    assert all(np.array_equal(start[name], value) for name, value in read_state(same).items())
    settings = StepSettings(
        steps=1, sample_rate=1.0, planned_batch_size=4.0, noise_multiplier=1.0, clip_norm=1.0,
        learning_rate=0.1, optimizer="sgd", max_tokens_per_microbatch=64,
    )  # fmt: skip
    trainer = PrivateTrainer(model)
    state = trainer.train(make_examples(4), start, settings, stream=SecretStream(bytes(32))).state
    assert all(not np.array_equal(state[name], start[name]) for name in start)


def test_bfloat16_without_instructions_for_it_is_refused(model_in, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    refuse_emulated_bfloat16(model_in("bert-mean", "float32"), CPU)
    with pytest.raises(ConfigError, match=r'slower than float32 on this cpu.*use "float32"'):
        PrivateTrainer(model_in("bert-mean", "bfloat16"))


def test_ghost_clipping_would_not_bound_what_it_adds(model_in):
    model = model_in("llama", "bfloat16")
    with pytest.raises(ConfigError, match="ghost clipping of a base in half precision"):
        choose_engine(model, trainable_parameters(model), "ghost")
    for mode in ("auto", "direct", "hooks"):
        choose_engine(model, trainable_parameters(model), mode)


def test_attention_on_a_cpu_is_computed_in_float32(model_in):
    seen = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, **options):
        seen.append({query.dtype, key.dtype, value.dtype})
        return original(query, key, value, **options)

    model = model_in("llama", "bfloat16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
        model(**TokenisedExamples((np.array([5, 6, 7]),), np.array([1]), 0).collate(CPU).inputs)
    assert seen == [{torch.float32}] * 2


@pytest.mark.parametrize("wanted", ["gpu", "mps", "cuda:", "cuda:x", "cpu:0", "cuda0", ""])
def test_other_devices_are_refused(wanted):
    with pytest.raises(ConfigError, match="there is no device"):
        resolve_device(wanted)


def test_a_gpu_that_is_not_there(monkeypatch, tiny_model):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    for wanted in ("cuda", "cuda:1"):
        with pytest.raises(ConfigError, match="sees 0 CUDA GPUs"):
            resolve_device(wanted)
    with pytest.raises(ConfigError, match="sees 0 CUDA GPUs"):
        PrivateTrainer(tiny_model(), device="cuda")
    assert PrivateTrainer(tiny_model(), device="auto").device == CPU


def test_a_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="sees 2 CUDA GPUs"):
        resolve_device("cuda:2")
