"""Examples that a model has no place for: one clear line, before anything is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedlora_priv.adapters import read_state
from fedlora_priv.errors import ConfigError, DataError
from fedlora_priv.modeling import LoraSettings, attach_lora
from fedlora_priv.training import PrivateTrainer, TokenisedExamples, preflight
from fedlora_priv.training.fitting import longest_input, refuse_unfit
from fedlora_priv.training.settings import StepSettings
from protocols.prg import SecretStream


def texts(length=5, label=1, token=7, pad=0):
    return TokenisedExamples((np.full(length, token), np.array([3])), np.array([label, 0]), pad)


@pytest.mark.parametrize("label", [2, -1])
def test_a_label_out_of_range_stops_training_before_it_begins(label, tiny_model):
    trainer, stream = PrivateTrainer(tiny_model()), SecretStream(bytes(32))
    settings = StepSettings(
        steps=1, sample_rate=1e-9, planned_batch_size=1.0, noise_multiplier=1.0, clip_norm=1.0,
        learning_rate=0.1, optimizer="sgd", max_tokens_per_microbatch=64,
    )  # fmt: skip
    with pytest.raises(DataError, match="a label is out of range: the model has classes 0 to 1"):
        trainer.train(texts(label=label), read_state(trainer.model), settings, stream=stream)
    assert stream.uniform(1) == SecretStream(bytes(32)).uniform(1)  # nothing was drawn


def test_labels_of_images_are_checked_too(tiny_model, make_images):
    images = make_images(3)
    images.labels[1] = 2
    with pytest.raises(DataError, match="label is out of range"):
        refuse_unfit(tiny_model("vit"), images)


@pytest.mark.parametrize(
    ("kind", "longest"), [("bert-mean", 64), ("roberta", 64), ("gpt2", 64), ("llama-lm", 64), ("vit", None)]
)
def test_the_longest_input(kind, longest, tiny_model):
    assert longest_input(tiny_model(kind)) == longest


def test_positions_hold_the_padded_width(tiny_model):
    model = tiny_model("gpt2")
    model.get_base_model().config.n_positions = 50
    assert longest_input(model) == 48  # 50 tokens would be padded to 56


@pytest.mark.parametrize("kind", ["bert-mean", "roberta", "gpt2", "llama"])
def test_a_text_longer_than_the_positions(kind, tiny_model):
    model = tiny_model(kind)
    refuse_unfit(model, texts(length=64))
    model(**texts(length=64).collate(torch.device("cpu")).inputs)  # which the model can indeed take
    with pytest.raises(DataError, match=r"positions for \(64\); tokenise with max_length = 64"):
        refuse_unfit(model, texts(length=65))


@pytest.mark.parametrize("token", [97, -1])
def test_a_token_outside_the_vocabulary(token, tiny_model):
    with pytest.raises(DataError, match="outside the model's vocabulary of 97"):
        refuse_unfit(tiny_model(), texts(token=token))


def test_another_padding_than_the_model_looks_for(tiny_model):
    # It would take padding for the text's last token, and so depend on the longest text of its batch.
    with pytest.raises(ConfigError, match="padded with token 5, the model expects 0"):
        refuse_unfit(tiny_model("llama"), texts(pad=5))
    refuse_unfit(tiny_model("bert-mean"), texts(pad=5))  # masked, whatever it is


def test_a_model_without_a_padding_token(tiny_base):
    base = tiny_base("gpt2")
    base.config.pad_token_id = None
    model = attach_lora(base, LoraSettings(("c_attn",), rank=2), seed=0)
    with pytest.raises(
        ConfigError, match=r"GPT2ForSequenceClassification has no padding token.*pad_token_id"
    ):
        PrivateTrainer(model)


@pytest.mark.parametrize("rows", [["good film"], [{"input_ids": [5, 6]}], None])
def test_rows_that_are_not_tokenised(rows, tiny_model):
    with pytest.raises(
        DataError, match=r"examples are a .*, not tokenised; use fedlora_priv\.training\.tokenise"
    ):
        refuse_unfit(tiny_model(), rows)


def test_no_examples_fit(tiny_model):
    refuse_unfit(tiny_model(), TokenisedExamples((), np.zeros(0, dtype=np.int64), 0))


def test_texts_and_images_are_not_taken_for_each_other(tiny_model, make_images):
    with pytest.raises(DataError, match="takes images, not texts"):
        refuse_unfit(tiny_model("vit"), texts())
    with pytest.raises(DataError, match="takes texts, not images"):
        refuse_unfit(tiny_model(), make_images(3))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda pixels: pixels[:, :, :4, :4], r"takes no images of shape \(1, 4, 4\)"),
        (lambda pixels: np.repeat(pixels, 3, axis=1), r"takes no images of shape \(3, 8, 8\)"),
        (lambda pixels: pixels * np.float32(np.nan), "not finite"),
    ],
)
def test_images_that_the_model_has_no_place_for(change, line, tiny_model, make_images):
    images = make_images(3)
    with pytest.raises(DataError, match=line):
        refuse_unfit(tiny_model("vit"), replace(images, pixels=change(images.pixels)))


def test_a_padding_token_that_the_model_has_not(tiny_model):
    with pytest.raises(DataError, match="padding token 97 is outside"):
        refuse_unfit(tiny_model(), texts(pad=97))
    with pytest.raises(DataError, match="no padding token"):
        texts(pad=None)


def test_labels_that_are_no_class_numbers(tiny_model):
    with pytest.raises(DataError, match="labels are float64"):
        refuse_unfit(tiny_model(), replace(texts(), labels=np.array([0.0, 1.0])))


def test_evaluation_refuses_what_training_refuses(tiny_model):
    with pytest.raises(DataError, match="more tokens than the model has positions"):
        PrivateTrainer(tiny_model()).evaluate(texts(length=65))


def test_frozen_weights_of_other_precisions(tiny_model):
    model = tiny_model()
    model.get_base_model().encoder.embeddings.LayerNorm.half()
    with pytest.raises(ConfigError, match="load the frozen weights in float32 or bfloat16"):
        PrivateTrainer(model)
    model = tiny_model()
    model.get_base_model().encoder.encoder.layer[1].output.dense.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="in one precision"):
        preflight(model)
