"""States and PEFT folders: names, round trips, and that plain transformers + peft load what we write."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from fedlora_priv.adapter_folder import save_adapter
from fedlora_priv.adapters import layout, read_state, trainable_parameters, write_state
from fedlora_priv.errors import ConfigError, FedloraError
from fedlora_priv.training import PrivateTrainer, StepSettings
from protocols.prg import SecretStream

SETTINGS = {
    "steps": 2,
    "sample_rate": 1.0,
    "planned_batch_size": 6.0,
    "noise_multiplier": 1.0,
    "clip_norm": 1.0,
    "learning_rate": 0.1,
}


@pytest.mark.parametrize("kind", ["bert-mean", "bert", "gpt2", "llama"])
def test_layout_and_state_agree(kind, tiny_model):
    model = tiny_model(kind)
    found, state = layout(model), read_state(model)
    assert {name: value.shape for name, value in state.items()} == found.shapes()
    assert list(state) == sorted(state)
    assert all(value.dtype == np.float32 for value in state.values())
    assert {found.role(name) for name in state} == {"A", "B", "head"}
    assert all(module.scaling == 4.0 / 2 for module in found.modules)
    assert found.dense_fp32_bytes == sum(value.nbytes for value in state.values())


@pytest.mark.parametrize("kind", ["bert-mean", "gpt2", "llama"])
def test_notation_matches_what_the_model_computes(kind, tiny_model):
    # W = W0 + scaling·B·A, with A (r, n) and B (m, r): the methods rely on it, GPT-2's Conv1D included.
    model = tiny_model(kind)
    module = layout(model).modules[0]
    state = read_state(model)
    state[module.b_name][:] = np.random.default_rng(0).normal(size=state[module.b_name].shape)
    write_state(model, state)
    layer = model.get_base_model().get_submodule(module.name)
    x = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = (layer(x) - layer.base_layer(x)).numpy()
    product = module.scaling * state[module.b_name] @ state[module.a_name]
    np.testing.assert_allclose(change, x.numpy() @ product.T, rtol=1e-3, atol=1e-5)


def test_write_then_read_is_exact_and_copies(tiny_model):
    model = tiny_model()
    generator = np.random.default_rng(0)
    state = {k: generator.normal(size=v.shape).astype(np.float32) for k, v in read_state(model).items()}
    write_state(model, state)
    back = read_state(model)
    assert all(np.array_equal(state[name], back[name]) for name in state)
    back["classifier.bias"][:] = 7
    assert not (read_state(model)["classifier.bias"] == 7).any()


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "nan"])
def test_a_wrong_state_is_refused_before_anything_is_written(fault, tiny_model):
    model = tiny_model()
    before = read_state(model)
    state = {name: value + 1 for name, value in before.items()}
    name = sorted(state)[-1]
    if fault == "missing":
        del state[name]
    elif fault == "extra":
        state["other.lora_A"] = state[name]
    elif fault == "shape":
        state[name] = state[name].T
    else:
        state[name][0, 0] = np.nan
    with pytest.raises(FedloraError, match="same model and LoRA"):
        write_state(model, state)
    assert all(np.array_equal(value, before[key]) for key, value in read_state(model).items())


def test_a_head_that_is_not_trained_is_no_part_of_the_state(tiny_model, make_examples, tmp_path):
    model = tiny_model(train_head=False)
    trainer = PrivateTrainer(model)
    assert trainer.layout.heads == {}
    start = read_state(model)
    result = trainer.train(make_examples(6), start, StepSettings(**SETTINGS), stream=SecretStream(bytes(32)))
    assert set(result.state) == set(start) == set(trainer.layout.shapes())


@pytest.mark.parametrize("unfrozen", ["word_embeddings", "LayerNorm"])
def test_anything_else_trainable_is_refused(unfrozen, tiny_model):
    model = tiny_model()
    for name, parameter in model.named_parameters():
        if unfrozen in name:
            parameter.requires_grad_(True)
    with pytest.raises(ConfigError, match=f"{unfrozen}.* would be trained"):
        trainable_parameters(model)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"target_modules": ["query", "word_embeddings"]}])
def test_dora_and_lora_on_embeddings_are_refused(options, tiny_base):
    config = LoraConfig(**({"target_modules": ["query"]} | options))
    model = get_peft_model(tiny_base("bert-mean"), config)
    with pytest.raises(ConfigError, match="not supported"):
        PrivateTrainer(model)


@pytest.mark.parametrize("train_head", [True, False])
@pytest.mark.parametrize("kind", ["bert-mean", "bert", "gpt2", "llama"])
def test_trap_8_saved_adapters_load_in_plain_peft(
    kind, train_head, tiny_model, tiny_base, make_examples, tmp_path
):
    model = tiny_model(kind, train_head=train_head)
    trainer, examples = PrivateTrainer(model), make_examples(6)
    state = trainer.train(
        examples, read_state(model), StepSettings(**SETTINGS), stream=SecretStream(bytes(32))
    ).state
    write_state(model, state)
    folder = save_adapter(model, tmp_path / "adapter", base_model="acme/base", notes="epsilon 8")
    loaded = PeftModel.from_pretrained(tiny_base(kind), str(folder)).eval()
    batch = {"input_ids": torch.from_numpy(examples.input_ids[0])[None]}
    with torch.no_grad():
        trained, again = model(**batch).logits, loaded(**batch).logits
        fresh = tiny_model(kind)(**batch).logits
    assert torch.equal(trained, again)
    assert not torch.equal(trained, fresh)  # the comparison can fail


def test_the_folder_names_the_base_and_tells_how_to_load(tiny_model, tmp_path):
    model = tiny_model()
    private = model.peft_config["default"].base_model_name_or_path
    folder = save_adapter(
        model, tmp_path / "deep" / "adapter", base_model="acme/base", notes="epsilon 8 here"
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "acme/base"
    assert config["modules_to_save"] == ["classifier"]
    card = (folder / "README.md").read_text()
    assert all(text in card for text in ("acme/base", "MeanPoolingClassifier", "PeftModel", "epsilon 8 here"))
    assert model.peft_config["default"].base_model_name_or_path == private


def test_pooling_imports_nothing_else_of_this_package():
    code = (
        "import sys, fedlora_priv.pooling;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in"
        " ('fedlora_priv', 'protocols', 'accounting', 'opacus')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "['fedlora_priv', 'fedlora_priv.pooling']"
