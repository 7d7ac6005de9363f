"""Loading: the same model for everybody, and a clear line for what cannot be trained privately."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertForMaskedLM

from fedlora_priv.adapters import layout, read_state
from fedlora_priv.errors import AssetError, ConfigError
from fedlora_priv.modeling import LoraSettings, attach_lora, load_model, load_tokenizer
from fedlora_priv.pooling import MeanPoolingClassifier, masked_mean
from fedlora_priv.training import PrivateTrainer, StepSettings, preflight, tokenise
from protocols.prg import SecretStream

LORA = LoraSettings(("query", "value"), rank=2, alpha=4.0)


@pytest.fixture
def bert_folder(tiny_base, tmp_path):
    """A checkpoint without any classification head or pooler, as encoders are published."""
    folder = tmp_path / "bert"
    BertForMaskedLM(tiny_base("bert").config).save_pretrained(folder)
    return folder


def test_start_state_depends_on_the_public_seed_alone(bert_folder):
    def state(seed, global_seed):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        return read_state(load_model(bert_folder, pooling="mean", num_labels=3, lora=LORA, seed=seed))

    first, same, other = state(1, 10), state(1, 11), state(2, 10)
    assert all(np.array_equal(first[name], same[name]) for name in first)
    for name, value in first.items():
        if name.endswith((".lora_B", "bias")):
            assert not value.any()
        else:
            assert not np.array_equal(value, other[name])
            assert np.abs(value).max() <= value.shape[1] ** -0.5
            assert abs(value.std() * np.sqrt(3 * value.shape[1]) - 1) < 0.25


def test_another_target_module_leaves_the_others_as_they_were(bert_folder):
    few = read_state(load_model(bert_folder, pooling="mean", num_labels=2, lora=LORA, seed=1))
    wide = LoraSettings(("query", "key", "value"), rank=2, alpha=4.0)
    more = read_state(load_model(bert_folder, pooling="mean", num_labels=2, lora=wide, seed=1))
    assert len(more) > len(few)
    assert all(np.array_equal(few[name], more[name]) for name in few)


def test_a_loaded_model_is_frozen_float32_and_in_evaluation_mode(bert_folder):
    model = load_model(bert_folder, pooling="mean", num_labels=2, lora=LORA, seed=1)
    assert not any(module.training for module in model.modules())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == len(layout(model).shapes())


def test_native_pooling_refuses_weights_that_nobody_trained(bert_folder):
    with pytest.raises(ConfigError, match=r"no weights for bert\.pooler.*mean"):
        load_model(bert_folder, pooling="native", num_labels=2, lora=LORA, seed=1)


def test_native_pooling_loads_whole_checkpoints(tiny_base, tmp_path):
    base = tiny_base("bert")
    base.save_pretrained(tmp_path)
    model = load_model(tmp_path, pooling="native", num_labels=2, lora=LORA, seed=1)
    assert set(layout(model).heads) == {"classifier.weight", "classifier.bias"}
    assert preflight(model).brute_force_error < 1e-4


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("querry",), "'querry'; the nearest is 'query'"),
        (("query", "values"), "the nearest is 'value'"),
        (("word_embeddings",), r"Embedding\) is not supported"),
        (("LayerNorm",), r"LayerNorm\) is not supported"),
        (("classifier",), "no module of the model is called 'classifier'"),
        (("uery",), "'uery'; the nearest is 'query'"),
    ],
)
def test_target_modules_are_checked(targets, message, tiny_base):
    with pytest.raises(ConfigError, match=message):
        attach_lora(tiny_base("bert-mean"), LoraSettings(targets), seed=0)


def test_a_target_that_also_names_part_of_the_head_leaves_the_head_alone(tiny_base):
    base = tiny_base("bert-mean")
    base.classifier = nn.Sequential()
    base.classifier.add_module("dense", nn.Linear(16, 2))
    model = attach_lora(base, LoraSettings(("dense",), rank=2), seed=0)
    found = layout(model)
    assert set(found.heads) == {"classifier.dense.weight", "classifier.dense.bias"}
    assert not any(module.name.startswith("classifier") for module in found.modules)
    assert len(found.modules) == 6  # three a layer; the encoder's pooler has no part in the mean


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"alpha": 0.0}, "alpha"), ({"target_modules": ()}, "target_modules"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoraSettings(**({"target_modules": ("query",)} | settings))


def test_batch_norm_is_refused(tiny_base, tiny_model):
    base = tiny_base("bert-mean")
    base.encoder.add_module("norm", nn.BatchNorm1d(16))
    with pytest.raises(ConfigError, match=r"encoder\.norm is batch norm"):
        attach_lora(base, LORA, seed=0)
    model = tiny_model()
    model.get_base_model().encoder.add_module("norm", nn.BatchNorm1d(16))
    with pytest.raises(ConfigError, match="batch norm"):
        PrivateTrainer(model)


def test_one_label_is_refused(bert_folder):
    with pytest.raises(ConfigError, match="at least 2 labels"):
        load_model(bert_folder, pooling="mean", num_labels=1, lora=LORA, seed=1)


def test_mean_pooling_ignores_padding():
    hidden = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    pooled = masked_mean(hidden, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    torch.testing.assert_close(pooled[0], hidden[0, :2].mean(dim=0))
    torch.testing.assert_close(pooled[1], hidden[1].mean(dim=0))


def test_mean_pooling_gives_the_mean_loss_where_there_are_labels(tiny_base):
    base, ids = tiny_base("bert-mean").eval(), torch.tensor([[5, 6, 7], [8, 9, 3]])
    output = base(input_ids=ids, labels=torch.tensor([1, 0]))
    chances = output.logits.softmax(dim=1)
    torch.testing.assert_close(output.loss, -(chances[0, 1].log() + chances[1, 0].log()) / 2)
    assert base(input_ids=ids).loss is None


def test_mean_pooling_without_a_mask_means_no_padding(tiny_base):
    base = tiny_base("bert-mean").eval()
    ids = torch.tensor([[4, 5, 6]])
    assert isinstance(base, MeanPoolingClassifier)
    torch.testing.assert_close(base(ids).logits, base(ids, torch.ones_like(ids)).logits)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(AssetError, match="there is no folder"):
        load_model(tmp_path / "nothing", pooling="mean", num_labels=2, lora=LORA, seed=1)


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AssetError, match="cannot load the model"):
        load_model(tmp_path, pooling="mean", num_labels=2, lora=LORA, seed=1)


class _NoRouteError(Exception):
    """What HTTP libraries raise without a network: no OSError."""


@pytest.mark.parametrize("what", ["tokenizer", "model"])
def test_no_network_is_one_line(what, tmp_path, monkeypatch):
    timeouts = []

    def unreachable(name, timeout):
        timeouts.append(timeout)
        raise _NoRouteError("[Errno -2] Name or service not known\nRequest id: 7")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    load = {
        "tokenizer": load_tokenizer,
        "model": partial(load_model, pooling="mean", num_labels=2, lora=LORA, seed=1),
    }[what]
    with pytest.raises(AssetError, match=r"cannot load the model 'acme/model'.*local folder") as caught:
        load("acme/model")
    assert "Name or service not known" in str(caught.value)
    assert "Request id" not in str(caught.value)
    assert timeouts == [5.0]


def test_an_offline_hub_is_asked_nothing_and_fails_at_once(tmp_path):
    code = (
        "from fedlora_priv.modeling import load_tokenizer\nfrom fedlora_priv.errors import AssetError\n"
        "import time; start = time.monotonic()\n"
        "try: load_tokenizer('acme/model')\n"
        "except AssetError: print('refused' if time.monotonic() - start < 10 else 'slow')"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    assert run.stdout.strip() == "refused"


def test_real_llama_trains_and_passes_preflight(stories):
    tokenizer = load_tokenizer(stories)
    lora = LoraSettings(("q_proj", "v_proj"), rank=4, alpha=8.0)
    model = load_model(stories, pooling="native", num_labels=2, lora=lora, seed=0)
    assert preflight(model).brute_force_error < 1e-3
    examples = tokenise(tokenizer, ["Once upon a time", "Lily was sad", ""], [0, 1, 1], max_length=16)
    trainer = PrivateTrainer(model)
    start = read_state(model)
    result = trainer.train(
        examples, start,
        StepSettings(
            steps=2, sample_rate=1.0, planned_batch_size=3, noise_multiplier=1.0, clip_norm=1.0,
            learning_rate=0.1,
        ),
        stream=SecretStream(bytes(32)),
    )  # fmt: skip
    assert all(not np.array_equal(result.state[name], start[name]) for name in start)


def test_models_without_a_head_are_refused(tiny_base):
    with pytest.raises(ConfigError, match="cannot tell the head"):
        attach_lora(tiny_base("bert-mean").encoder, LORA, seed=0)
