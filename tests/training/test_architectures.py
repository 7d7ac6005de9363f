"""Every kind of model: loaded from a folder, trained, saved, and loaded again by plain transformers and peft."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertLMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from fedlora_priv.adapter_folder import save_adapter
from fedlora_priv.adapters import layout, read_state, trainable_parameters, write_state
from fedlora_priv.errors import ConfigError
from fedlora_priv.modeling import LoraSettings, attach_lora, load_model
from fedlora_priv.targets import head_names, resolve_targets
from fedlora_priv.training import PrivateTrainer, preflight
from fedlora_priv.training.settings import StepSettings
from protocols.prg import SecretStream

CLASSIFIERS = ["bert", "roberta", "gpt2", "llama", "qwen2", "qwen3"]
GENERATIVE = ["gpt2-lm", "llama-lm", "qwen2-lm", "qwen3-lm"]
KINDS = [*CLASSIFIERS, *GENERATIVE, "vit"]
TARGETS = {"bert": "query", "roberta": "query", "gpt2": "c_attn"}
LOADERS = {
    "classification": AutoModelForSequenceClassification,
    "language-modelling": AutoModelForCausalLM,
    "image-classification": AutoModelForImageClassification,
}
STEPS = StepSettings(
    steps=2, sample_rate=1.0, planned_batch_size=6.0, noise_multiplier=1.0, clip_norm=1.0, learning_rate=0.1,
    optimizer="sgd", max_tokens_per_microbatch=64,
)  # fmt: skip


def task_of(kind: str) -> str:
    if kind == "vit":
        return "image-classification"
    return "language-modelling" if kind.endswith("-lm") else "classification"


def targets_of(kind: str) -> tuple[str, ...]:
    return (TARGETS.get(kind.split("-")[0], "q_proj"),)


@pytest.fixture
def some_examples(make_examples, make_images):
    """Builds examples for a kind of model."""

    def build(kind, n=6):
        return make_images(n) if kind == "vit" else make_examples(n, labels=not kind.endswith("-lm"))

    return build


@pytest.mark.parametrize("kind", KINDS)
def test_loads_trains_saves_and_loads_in_plain_peft(kind, tiny_base, some_examples, tmp_path):
    tiny_base(kind).save_pretrained(tmp_path / "base")
    task, labels = task_of(kind), None if kind.endswith("-lm") else 2
    lora = LoraSettings(targets_of(kind), rank=4, alpha=8.0, use_rslora=True)
    model = load_model(tmp_path / "base", task=task, pooling="native", num_labels=labels, lora=lora, seed=3)
    assert {module.scaling for module in layout(model).modules} == {8.0 / 4**0.5}
    examples, start = some_examples(kind), read_state(model)
    state = PrivateTrainer(model).train(examples, start, STEPS, stream=SecretStream(bytes(32))).state
    assert all(not np.array_equal(state[name], start[name]) for name in start)
    write_state(model, state)

    folder = save_adapter(model, tmp_path / "adapter", base_model="acme/base")
    options = {} if labels is None else {"num_labels": labels}
    plain = LOADERS[task].from_pretrained(tmp_path / "base", **options).float()
    again = PeftModel.from_pretrained(plain, str(folder)).eval()
    inputs = examples.collate(torch.device("cpu")).inputs
    with torch.no_grad():
        trained, loaded = model(**inputs).logits, again(**inputs).logits
        write_state(model, start)
        assert not torch.equal(model(**inputs).logits, trained)  # the comparison can fail
    assert torch.equal(trained, loaded)
    card = (folder / "README.md").read_text()
    assert f"from transformers import {LOADERS[task].__name__}" in card
    assert ("num_labels=2" in card) == (labels is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_per_example_gradients_of_all_linear_maps_are_exact(kind, tiny_base):
    report = preflight(attach_lora(tiny_base(kind), LoraSettings("all-linear", rank=2), seed=0))
    assert report.brute_force_error < 1e-4
    assert report.clipped_error < 1e-4
    assert report.companion_error < 1e-5


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("bert", {"classifier.weight", "classifier.bias"}),
        ("roberta", {f"classifier.{part}.{what}" for part in ("dense", "out_proj") for what in ("weight", "bias")}),
        ("gpt2", {"score.weight"}), ("llama", {"score.weight"}), ("vit", {"classifier.weight", "classifier.bias"}),
        ("llama-lm", set()),
    ],
)  # fmt: skip
def test_heads_are_saved_and_trained_whole(kind, heads, tiny_model):
    model = tiny_model(kind)
    assert set(layout(model).heads) == heads
    assert heads <= set(trainable_parameters(model))


@pytest.mark.parametrize("kind", ["bert-mean", *KINDS])
def test_all_linear_is_what_peft_takes_without_the_head(kind, tiny_base):
    base = tiny_base(kind)
    heads = head_names(base, generative=kind.endswith("-lm"))
    ours = set(resolve_targets(base, "all-linear", heads))
    task = {"classification": TaskType.SEQ_CLS, "language-modelling": TaskType.CAUSAL_LM}.get(task_of(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(
            base, LoraConfig(target_modules="all-linear", task_type=task)
        ).base_model.model
    theirs = {name for name, module in wrapped.named_modules() if hasattr(module, "lora_A")}
    # PEFT would give a head of several layers, or of no type that it knows, LoRA besides training it.
    assert ours == {name for name in theirs if name.split(".")[0] not in heads}
    assert not any("lm_head" in name or "embed" in name for name in ours)
    assert len(ours) >= 8


def test_an_output_layer_tied_to_the_embeddings_is_no_target(tiny_base):
    lora = LoraSettings(("lm_head",), rank=2)
    with pytest.raises(ConfigError, match=r"lm_head shares its weights with transformer\.wte"):
        attach_lora(tiny_base("gpt2-lm"), lora, seed=0)
    untied = attach_lora(tiny_base("llama-lm"), lora, seed=0)
    assert [module.name for module in layout(untied).modules] == ["lm_head"]
    assert preflight(untied).brute_force_error < 1e-4


def test_a_head_tied_to_the_base_is_refused(tiny_base):
    base = tiny_base("bert")
    base.config.num_labels = 16
    base.classifier = nn.Linear(16, 16)
    base.classifier.weight = base.bert.pooler.dense.weight
    with pytest.raises(ConfigError, match="classifier shares its weights with bert"):
        attach_lora(base, LoraSettings(("query",)), seed=0)


def test_maps_inside_a_mixture_of_experts_are_refused():
    torch.manual_seed(0)
    base = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=32, num_local_experts=2, pad_token_id=0,
        )
    )  # fmt: skip
    base.model.layers[0].mlp.shared = nn.Linear(16, 16)  # as in models with shared experts
    with pytest.raises(ConfigError, match=r"mlp\.shared is in a mixture of experts"):
        attach_lora(base, LoraSettings(("shared",)), seed=0)
    assert preflight(attach_lora(base, LoraSettings(("q_proj",), rank=2), seed=0)).companion_error < 1e-4


def test_a_language_model_that_looks_ahead_is_refused(tmp_path):
    config = BertConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        pad_token_id=0, is_decoder=False,
    )  # fmt: skip
    BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="BertLMHeadModel sees the tokens that it is to predict"):
        load_model(tmp_path, task="language-modelling", lora=LoraSettings(("query",)), seed=0)


def test_an_encoder_is_no_language_model(tiny_base, tmp_path):
    tiny_base("llama").save_pretrained(tmp_path)  # a classifier's checkpoint: no output layer
    with pytest.raises(ConfigError, match=r"no weights for lm_head\.weight.*causal"):
        load_model(tmp_path, task="language-modelling", lora=LoraSettings(("q_proj",)), seed=0)


def test_labels_go_with_the_task(tmp_path):
    lora = LoraSettings(("query",))
    with pytest.raises(ConfigError, match="has no labels"):
        load_model(tmp_path, task="language-modelling", num_labels=2, lora=lora, seed=0)
    with pytest.raises(ConfigError, match="at least 2 labels"):
        load_model(tmp_path, lora=lora, seed=0)


def test_an_image_checkpoint_for_other_classes_gets_a_new_head(tiny_base, tmp_path):
    tiny_base("vit").save_pretrained(tmp_path)
    model = load_model(
        tmp_path, task="image-classification", num_labels=5, lora=LoraSettings(("q_proj",)), seed=0
    )
    assert layout(model).heads["classifier.weight"] == (5, 16)


def test_all_linear_is_the_only_word():
    with pytest.raises(ConfigError, match=re.escape("'query'; give a list")):
        LoraSettings("query")


def test_real_llama_continues_text_privately(stories):
    lora = LoraSettings(("q_proj", "v_proj"), rank=4, alpha=8.0)
    model = load_model(stories, task="language-modelling", lora=lora, seed=0)
    assert preflight(model).brute_force_error < 1e-3
