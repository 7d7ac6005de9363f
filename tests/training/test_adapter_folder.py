"""Folders of models that are more than one adapter: plain transformers + peft make the same logits of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from fedlora_priv import adapter_folder
from fedlora_priv.adapter_folder import load_adapter, save_adapter
from fedlora_priv.adapters import layout, read_state, write_state
from fedlora_priv.modeling import LoraSettings, add_squares, attach_lora

from .test_lora_parts import random_state, with_residual

KINDS = ("bert-mean", "bert", "gpt2", "gpt2-lm", "llama", "llama-lm")
THIN, DENSE, SQUARE = "thin", "thin and dense", "square"


def trained(kind, what, tiny_model):
    """A tiny model in a random state with a residual or a square."""
    model = tiny_model(kind)
    if what == SQUARE:
        add_squares(model)
        write_state(model, random_state(model))
        return model
    state = with_residual(model, random_state(model))
    if what == THIN:
        state = {name: array for name, array in state.items() if not name.endswith(".base")}
    write_state(model, state)
    return model


def logits(model, kind, make_examples):
    batch = make_examples(5, labels=not kind.endswith("-lm")).collate(torch.device("cpu"))
    with torch.no_grad():
        return model(**batch.inputs).logits


def require_same(found, model, kind, make_examples, tiny_model):
    """Require the same logits to float32 rounding, which an untrained model does not have."""
    wanted = logits(model, kind, make_examples)
    torch.testing.assert_close(logits(found, kind, make_examples), wanted, rtol=1e-5, atol=1e-5)
    assert (logits(tiny_model(kind), kind, make_examples) - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("what", [THIN, DENSE, SQUARE])
@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_is_the_whole_map_in_plain_peft(
    kind, what, tiny_model, tiny_base, make_examples, tmp_path
):
    model = trained(kind, what, tiny_model)
    before = read_state(model)
    folder = save_adapter(model, tmp_path / "adapter", base_model="acme/base", notes="epsilon 8")
    assert not (folder / "base").exists()
    loaded = PeftModel.from_pretrained(tiny_base(kind), str(folder)).eval()
    require_same(loaded, model, kind, make_examples, tiny_model)
    require_same(load_adapter(tiny_model(kind), folder), model, kind, make_examples, tiny_model)
    after = read_state(model)  # left as it was, the training's rank included
    assert after.keys() == before.keys()
    assert all(np.array_equal(value, before[name]) for name, value in after.items())
    assert model.peft_config["default"].rank_pattern == {}
    assert {module.rank for module in layout(model).modules} == {2}
    config, card = (
        json.loads((folder / "adapter_config.json").read_text()),
        (folder / "README.md").read_text(),
    )
    assert bool(config["rank_pattern"]) == (what != SQUARE) == ("Everything is inside" in card)


@pytest.mark.parametrize("kind", ["bert-mean", "gpt2-lm", "llama"])
def test_a_changed_base_is_loaded_as_the_card_says(
    kind, tiny_model, make_examples, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(adapter_folder, "_is_smaller_merged", lambda model: True)
    model = trained(kind, DENSE, tiny_model)
    before = read_state(model)
    folder = save_adapter(model, tmp_path / "adapter", base_model="acme/base")
    card = (folder / "README.md").read_text()
    assert "A changed base" in card
    code = card.split("```python\n")[1].split("```")[0].replace("path/to/this/folder", str(folder))
    names: dict[str, object] = {}
    exec(code, names)
    require_same(names["model"], model, kind, make_examples, tiny_model)
    require_same(load_adapter(tiny_model(kind), folder), model, kind, make_examples, tiny_model)
    capsys.readouterr()  # transformers says that the pooler, which has no part in the mean, is new
    write_state(model, before)
    monkeypatch.undo()  # the same folder once more: the base in it is now nobody's
    save_adapter(model, folder, base_model="acme/base")
    require_same(load_adapter(tiny_model(kind), folder), model, kind, make_examples, tiny_model)
    monkeypatch.setattr(adapter_folder, "_is_smaller_merged", lambda model: True)
    save_adapter(model, folder, base_model="acme/base")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "acme/base, changed: see the folder 'base'"
    assert config["rank_pattern"] == {}
    after = read_state(model)
    assert all(np.array_equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("dense", [True, False])
def test_the_base_is_saved_only_where_that_is_smaller(dense, tiny_base, tmp_path):
    model = attach_lora(tiny_base("llama-lm"), LoraSettings("all-linear", rank=2), 7)
    state = read_state(model)
    for module in layout(model).modules:
        m, n = module.out_features, module.in_features
        shapes = {"base": (m, n)} if dense else {"base_B": (m, 3), "base_A": (3, n)}
        state |= {f"{module.name}.{part}": np.ones(shape, np.float32) for part, shape in shapes.items()}
    write_state(model, state)
    folder = save_adapter(model, tmp_path / "adapter", base_model="acme/base")
    assert (folder / "base").exists() == dense
    bytes_of = {path.parent.name: path.stat().st_size for path in folder.rglob("*.safetensors")}
    whole = 4 * sum(p.numel() for p in tiny_base("llama-lm").parameters())
    assert sum(bytes_of.values()) < 1.3 * whole  # as much as the model and a small adapter, at most
    if dense:
        LlamaForCausalLM.from_pretrained(folder / "base")


def test_a_scaling_by_the_square_root_stays_what_it_was(tiny_base, make_examples, tmp_path):
    lora = LoraSettings(("query", "value"), rank=4, alpha=6.0, use_rslora=True)
    model = attach_lora(tiny_base("bert"), lora, 7)
    write_state(model, with_residual(model, random_state(model)))
    folder = save_adapter(model, tmp_path / "adapter", base_model="acme/base")
    loaded = PeftModel.from_pretrained(tiny_base("bert"), str(folder)).eval()
    wanted = logits(model, "bert", make_examples)
    torch.testing.assert_close(logits(loaded, "bert", make_examples), wanted, rtol=1e-5, atol=1e-5)


def test_the_rank_of_one_module_is_not_that_of_its_namesake(tiny_base, tmp_path):
    """PEFT compares patterns with the ends of names unless they say otherwise."""

    def base():
        made = tiny_base("bert-mean")
        made.encoder.a = torch.nn.ModuleDict({"query": torch.nn.Linear(16, 16)})
        inner = torch.nn.ModuleDict({"a": torch.nn.ModuleDict({"query": torch.nn.Linear(16, 16)})})
        made.encoder.z = torch.nn.ModuleDict({"encoder": inner})
        return made

    model = attach_lora(base(), LoraSettings(("query",), rank=2, alpha=4.0), 7)
    names = [module.name for module in layout(model).modules]
    assert {"encoder.a.query", "encoder.z.encoder.a.query"} < set(names)
    write_state(model, random_state(model) | {"encoder.a.query.base": np.ones((16, 16), np.float32)})
    folder = save_adapter(model, tmp_path / "adapter", base_model="acme/base")
    loaded = PeftModel.from_pretrained(base(), str(folder))
    ranks = {module.name: module.rank for module in layout(loaded).modules}
    assert ranks == {name: 18 if name == "encoder.a.query" else 2 for name in names}


@pytest.mark.parametrize("kind", ["llama-lm", "bert-mean"])
@pytest.mark.parametrize("what", [THIN, SQUARE])
def test_cards_have_one_empty_line_between_paragraphs(kind, what, tiny_model, tmp_path: Path):
    notes = "## Privacy\n\nepsilon 8\n"
    folder = save_adapter(
        trained(kind, what, tiny_model), tmp_path / "a", base_model="acme/base", notes=notes
    )
    card = (folder / "README.md").read_text()
    assert "\n\n\n" not in card
    assert card.endswith("\n")
    assert not card.endswith("\n\n")
    assert ("## Generating" in card) == (kind == "llama-lm")
